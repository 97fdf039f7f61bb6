"""Handwritten digits, three seeds: what training with rounding gains over rounding afterwards.

Training sums in float32, whose bits another processor gives otherwise: margins are those that 12 seeds leave.
"""

from functools import cache
from statistics import mean

import pytest

import qlab

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
from torch import nn  # noqa: E402


def pictures() -> tuple:
    digits = qlab.data.digits()
    x, y, test_x, test_y = (torch.from_numpy(part) for part in digits)
    return x.reshape(-1, 1, 8, 8), y.long(), test_x.reshape(-1, 1, 8, 8), test_y.long()


def train(model: nn.Module, epochs: int, rate: float, seed: int) -> nn.Module:
    x, y, _, _ = pictures()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * 19)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for part in order.split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module) -> float:
    _, _, x, y = pictures()
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def static(bits: int, rule: str = "", method: str = "rtn") -> qlab.Recipe:
    inputs = qlab.Activations(f"int{bits}-asym", "static", "histogram_mse")
    return qlab.Recipe(f"int{bits}-channel{rule}", inputs, method=method)


@cache
def trained_network(seed: int) -> tuple:
    """A seed, and a network that was trained with it."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    return seed, train(model, 8, 5e-3, seed)


@pytest.fixture(params=[0, 1, 2])
def network(request) -> tuple:
    return trained_network(request.param)


def retrained(network: tuple, recipe: qlab.Recipe, epochs: int, **how) -> float:
    seed, model = network
    prepared = train(qlab.prepare_qat(model, recipe, decay=0.9, **how), epochs, 2e-3, seed)
    return accuracy(qlab.convert(prepared, show=False))


def quantized(network: tuple, recipe: qlab.Recipe) -> float:
    return accuracy(qlab.quantize_model(network[1], recipe, pictures()[0][:640].split(64), show=False))


def test_two_bits_trained_are_far_above_two_bits_rounded(network):
    """By the same scheme, whose scales are of the largest weights: of 12 seeds 91 to 96 % where rounding leaves 26 to 67."""
    assert retrained(network, static(2), 4) > max(quantized(network, static(2)) + 20, 90)


def test_two_bits_trained_hold_out_against_the_best_that_rounding_can_do():
    """Scales of least squared error alone leave 88 to 96 %, GPTQ with them 96 to 98; trained with them 97 to 98.

    Which of the latter two is better changes from seed to seed, so that it is asked of the mean; of each where steps are learned.
    """
    gains = []
    for network in map(trained_network, range(3)):
        plain, best = (quantized(network, static(2, "-mse", method)) for method in ("rtn", "gptq"))
        trained = retrained(network, static(2, "-mse"), 10, freeze_after=6 * 19)
        assert trained > plain + 0.5
        assert trained > 96.5
        gains.append(trained - best)
        assert retrained(network, static(2, "-mse"), 20, steps="lsq", freeze_after=12 * 19) > best - 0.5
    assert mean(gains) > -0.5


def test_three_bits_with_learned_steps_are_within_a_point(network):
    """Batch statistics frozen for the last third: weights that oscillate between two codes make the running ones unsteady."""
    assert retrained(network, static(3), 10, steps="lsq", freeze_after=6 * 19) > accuracy(network[1]) - 1


def test_binary_weights_learn(network):
    recipe = qlab.Recipe("binary-channel-mean", qlab.Activations("int4-asym", "static"))
    assert retrained(network, recipe, 4) > 95

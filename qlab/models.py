"""Three small networks of torch that read the digits: a CNN, an MLP and a transformer, trained here in seconds.

Each takes pictures (n, 64) as `qlab.data.digits` gives them and returns logits (n, 10). `qlab.data` hands them out. What
is trained is the same to the last bit each time on the same machine: seeded, on one thread, in float32.
"""

from __future__ import annotations

import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

from qlab.data import digits

try:
    import torch
    from torch import Tensor, nn
except ImportError as error:
    raise ImportError("the networks of qlab.data need torch: pip install 'qlab[torch]'") from error

__all__ = ["Attention", "DigitsTransformer", "TransformerBlock", "digits_cnn", "digits_mlp", "digits_transformer"]


# --- what they are made of -------------------------------------------------------------------------------------------
def _cnn() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, 8, 8)),
            conv1=nn.Conv2d(1, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 3, padding=1, stride=2, bias=False), bn2=nn.BatchNorm2d(32), relu2=nn.ReLU(),
            flatten=nn.Flatten(),  # (n, 32 * 4 * 4)
            linear=nn.Linear(512, 10),
        )
    )  # fmt: skip


def _mlp() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            linear1=nn.Linear(64, 128), relu1=nn.ReLU(),
            linear2=nn.Linear(128, 64), relu2=nn.ReLU(),
            linear3=nn.Linear(64, 10),
        )
    )  # fmt: skip


class Attention(nn.Module):
    """Attention of several heads, of tokens (n, tokens, width) to one another, by four linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return what each token gathers; `mask`, (n, 1, 1, tokens) booleans, is true for the tokens that are there."""
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        gathered = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (n, heads, tokens, head)
        out: Tensor = self.out(gathered.transpose(1, 2).flatten(2))
        return out

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # (n, heads, tokens, head)


class TransformerBlock(nn.Module):
    """Attention, then a GELU network of two layers; each is normalized before and added to what came in."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.up, self.gelu, self.down = (
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of `x`, (n, tokens, width)."""
        y: Tensor = x + self.attention(self.norm1(x))
        y = y + self.down(self.gelu(self.up(self.norm2(y))))
        return y


class DigitsTransformer(nn.Module):
    """A transformer that reads a picture as 8 tokens, its rows of 8 pixels."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.2 * torch.randn(8, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, 2 * width) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, 10) of pictures (n, 64)."""
        rows = x.view(-1, 8, 8)  # (n, tokens, pixels)
        tokens = self.blocks(self.embed(rows) + self.position)
        logits: Tensor = self.head(self.norm(tokens).mean(dim=1))
        return logits


# --- their training --------------------------------------------------------------------------------------------------
@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch, keep it on one thread, and let it follow gradients, all for what is inside only."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _train(model: nn.Module, epochs: int, peak: float, batch: int = 60) -> None:
    """AdamW on pictures that are moved by up to a pixel, the step size rising to its peak and falling to zero."""
    data = digits()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y).long()
    padded = nn.functional.pad(x.view(-1, 8, 8), (1, 1, 1, 1))
    moved = torch.stack([padded[:, i : i + 8, j : j + 8].reshape(-1, 64) for i in range(3) for j in range(3)])  # (9, n, 64)
    steps = epochs * (len(x) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(_warm_up_and_cosine, steps=steps))
    model.train()
    for _ in range(epochs):
        order, move = torch.randperm(len(x)), torch.randint(9, (len(x),))
        move[torch.rand(len(x)) < 0.5] = 4  # half of them stay where they are
        for chosen in torch.split(order, batch):
            loss = nn.functional.cross_entropy(model(moved[move[chosen], chosen]), y[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()


def _warm_up_and_cosine(step: int, steps: int) -> float:
    return min((step + 1) / (0.1 * steps), 0.5 * (1 + math.cos(math.pi * step / steps)))


_MADE: dict[str, tuple[Callable[[], nn.Module], int, float]] = {
    "cnn": (_cnn, 15, 4e-3), "mlp": (_mlp, 45, 4e-3), "transformer": (DigitsTransformer, 18, 4e-3),
}  # fmt: skip
"""How each is made; for how many epochs, and with which largest step, it is trained."""


@lru_cache(maxsize=16)
def _made(name: str, seed: int, untrained: bool) -> nn.Module:
    make, epochs, peak = _MADE[name]
    with _seeded(seed):
        model = make()
        if not untrained:
            _train(model, epochs, peak)
    return model.eval().requires_grad_(True)


def _copy_of(name: str, seed: int, untrained: bool) -> nn.Module:
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r} is not allowed; give an integer from 0 up")
    model = copy.deepcopy(_made(name, seed, bool(untrained)))
    model.zero_grad(set_to_none=True)
    return model


def digits_cnn(seed: int = 0, *, untrained: bool = False) -> nn.Module:
    """Return a small CNN trained on the digits: twice convolution, batch norm and ReLU, then a linear layer.

    Parameters
    ----------
    seed : int
        Of the first weights and of the order of pictures; the same seed gives the same bits on the same machine.
    untrained : bool
        Whether to return the network as it is before the first step.

    Returns
    -------
    torch.nn.Sequential
        In eval mode, float32, takes (n, 64) pictures, returns (n, 10) logits. Each caller has a copy.

    Raises
    ------
    ValueError
        If `seed` is not an integer from 0 up.
    ImportError
        If torch or scikit-learn is not installed.

    Notes
    -----
    Tolerance: training is float32 sums, whose bits another machine may give otherwise; accuracy is then that of another seed.

    Examples
    --------
    >>> import qlab, torch
    >>> model = qlab.data.digits_cnn(untrained=True)
    >>> model(torch.zeros(2, 64)).shape
    torch.Size([2, 10])
    """
    return _copy_of("cnn", seed, untrained)


def digits_mlp(seed: int = 0, *, untrained: bool = False) -> nn.Module:
    """Return an MLP trained on the digits: linear layers 64 -> 128 -> 64 -> 10 with ReLU between them.

    Parameters, returns and errors as of `digits_cnn`.

    Examples
    --------
    >>> import qlab
    >>> qlab.data.digits_mlp(untrained=True).linear2
    Linear(in_features=128, out_features=64, bias=True)
    """
    return _copy_of("mlp", seed, untrained)


def digits_transformer(seed: int = 0, *, untrained: bool = False) -> nn.Module:
    """Return a transformer trained on the digits: 8 rows as tokens, two blocks 64 wide with four heads.

    Parameters, returns and errors as of `digits_cnn`.

    Examples
    --------
    >>> import qlab
    >>> len(qlab.data.digits_transformer(untrained=True).blocks)
    2
    """
    return _copy_of("transformer", seed, untrained)

"""Inputs of layers against their definitions, computed from all rows at once."""

from __future__ import annotations

import hashlib
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qlab._progress import progress
from qlab.model import record
from qlab.model.batches import data_hash
from qlab.model.record import collect_inputs, inputs_of, patches


def model_of_three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4 * 36, 5))


BATCHES = [torch.randn(7, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(3)]


def test_inputs_are_what_the_definitions_say():
    model = model_of_three()
    inputs = collect_inputs(model, BATCHES)
    assert list(inputs) == ["0", "4"]
    rows = F.relu(model[0](torch.cat(BATCHES))).flatten(1).detach()  # (21, 144)
    found = inputs["4"]
    wide = rows.double()
    assert found.count == 21
    torch.testing.assert_close(found.hessian, 2 * wide.T @ wide / 21, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.mean_abs, rows.abs().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.absmax, rows.abs().amax(0))
    torch.testing.assert_close(found.sample, rows)


def test_output_error_is_the_mean_squared_error():
    rows, difference = torch.randn(50, 8), torch.randn(3, 8)
    expected = ((rows @ difference.T) ** 2).sum(1).mean()
    assert inputs_of(rows).output_error(difference) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2)), (2, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding="same", padding_mode="reflect"), (2, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (4, 9, 8)),
        (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 9)),
        (nn.Conv1d(4, 6, 4, stride=2, padding=1), (4, 9)),
        (nn.Linear(4, 6), (2, 3, 4)),
    ],
)
def test_patches_times_the_flattened_weight_are_the_outputs(layer, shape):
    x = torch.randn(shape)
    rows = patches(layer, x) @ layer.weight.flatten(1).T + layer.bias  # (n, out)
    expected = layer(x)
    if not isinstance(layer, nn.Linear):
        expected = expected.unsqueeze(0) if x.ndim == layer.weight.ndim - 1 else expected
        expected = expected.flatten(2).transpose(1, 2)
    torch.testing.assert_close(rows, expected.reshape(-1, 6), rtol=1e-4, atol=1e-5)


def test_patches_of_groups_are_pooled():
    layer = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    x = torch.randn(2, 4, 5, 5)
    rows = patches(layer, x).reshape(2, 4, 9, 9)  # (batch, group, place, kernel)
    expected = torch.einsum("bgpk,gk->bgp", rows, layer.weight.flatten(1))
    torch.testing.assert_close(expected.reshape(2, 4, 3, 3), layer(x), rtol=1e-4, atol=1e-5)


def test_the_sample_is_systematic_whatever_the_batches():
    rows = torch.arange(5000.0).reshape(-1, 1)
    whole, parts = record._Gathered(1), record._Gathered(1)
    whole.add(rows)
    for part in rows.split(37):
        parts.add(part)
    assert torch.equal(whole.sample, parts.sample)
    assert torch.equal(whole.sample[:, 0], torch.arange(0, 5000, 16.0))
    assert len(whole.sample) <= record.SAMPLE


def test_the_model_is_left_as_it_was():
    model = model_of_three()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collect_inputs(model, BATCHES)
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model)


def test_calls_by_tuple_and_dict_and_names():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unused = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)

        def forward(self, x, y):
            return self.a(x) + self.b(input=y)

    x, y = torch.randn(4, 2), torch.randn(4, 2)
    by_tuple, by_dict = collect_inputs(Sum(), [(x, y)]), collect_inputs(Sum(), [{"y": y, "x": x}], ["b"])
    assert list(by_tuple) == ["a", "b"]
    assert list(by_dict) == ["b"]
    assert torch.equal(by_tuple["b"].sample, y)
    assert torch.equal(by_dict["b"].hessian, by_tuple["b"].hessian)
    with pytest.raises(ValueError, match=r"no batch reached .*'unused'"):
        collect_inputs(Sum(), [(x, y)], ["a", "unused"])


def test_observers_are_fed():
    class Seen:
        def __init__(self):
            self.shapes = []

        def update(self, x):
            assert not x.requires_grad
            self.shapes.append(tuple(x.shape))

    seen = Seen()
    assert collect_inputs(model_of_three(), BATCHES, [], observers={"1": seen}) == {}
    assert seen.shapes == [(7, 4, 6, 6)] * 3


def test_data_hash_is_of_the_bytes_in_order():
    expected = hashlib.sha256(b"".join(batch.numpy().tobytes() for batch in BATCHES)).hexdigest()
    assert data_hash(BATCHES) == expected
    assert data_hash(BATCHES[::-1]) != expected
    nested = [([BATCHES[0]], {"more": (BATCHES[1],)}), {"x": [BATCHES[2], None]}]
    assert data_hash(nested) == expected
    half = BATCHES[0].bfloat16().transpose(0, 1)
    assert data_hash([(half, 3)]) == hashlib.sha256(half.contiguous().view(torch.int16).numpy().tobytes()).hexdigest()


def test_progress_shows_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("qlab._progress.PATIENCE", 0.0)
    seen = []
    for item in progress([1, 2, 3, 4], "work"):
        time.sleep(0.05)  # for the line's own thread
        seen.append(item)
    assert seen == [1, 2, 3, 4]
    assert "3/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda m: collect_inputs(m, []), ValueError, "calibration is empty"),
        (lambda m: collect_inputs(m, iter(())), ValueError, "calibration is empty"),
        (lambda m: collect_inputs(m, [[1]]), TypeError, "not list"),
        (lambda m: collect_inputs(m, BATCHES, ["1"]), ValueError, r"\['0', '4'\]"),
        (lambda m: collect_inputs(m, BATCHES, observers={"9": None}), ValueError, "9"),
        (lambda m: collect_inputs(m, [BATCHES[0] * torch.nan]), ValueError, "layer '0' hold .* NaN"),
        (lambda m: inputs_of(torch.zeros(0, 4)), ValueError, "no row"),
    ],
)
def test_refusals(act, error, message):
    model = model_of_three()
    with pytest.raises(error, match=message):
        act(model)
    assert not any(module._forward_pre_hooks for module in model)
    assert model.training


def test_the_line_of_progress_comes_after_two_seconds(monkeypatch):
    waits = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("threading.Timer", lambda seconds, *_: waits.append(seconds) or Waiting())
    assert list(progress([1, 2], "work")) == [1, 2]
    assert waits == [2.0]


class Waiting:
    def start(self):
        pass

    def cancel(self):
        pass

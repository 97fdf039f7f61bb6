"""quantize_model: every layer is in the map, the line of progress, weights that are shared by stealth, torch.ao's layers."""

import time
import warnings

import pytest
import torch
from networks import cnn, held_bytes, mlp
from torch import nn

import qlab
from qlab.model.methods import rtn


def test_the_map_names_batch_normalization_folded_or_not():
    first = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    for model in (first, cnn()):
        quantized = qlab.quantize_model(model, qlab.Recipe("int8-channel"), show=False)
        rows = qlab.quantization_map(quantized).rows
        assert sum(row[5] for row in rows) == held_bytes(model)
        assert sum(row[6] for row in rows) == held_bytes(quantized)
        assert {row[0] for row in rows} == {name for name, m in model.named_modules() if list(m.parameters(recurse=False))}
    how = {row[0]: (row[4], row[6]) for row in qlab.quantization_map(qlab.quantize_model(first, "weight_only_int8")).rows}
    assert how["0"] == ("left: normalization stays in floats", 136)
    assert how["2"] == ("folded into the layer before", 0)


def test_progress_is_shown_layer_by_layer(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("qlab._progress.PATIENCE", 0.0)
    quantize = rtn.quantize_weight
    monkeypatch.setattr("qlab.model.transform.hqq.quantize_weight", lambda *args: time.sleep(0.1) or quantize(*args))
    qlab.quantize_model(mlp(), qlab.Recipe("int4-channel", method="hqq"), show=False)
    assert "2/2 3" in capsys.readouterr().err


class TiedToANumber(nn.Module):
    """The weight of its layer is used once more, under a name of its own."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4, bias=False)
        self.again = self.head.weight

    def forward(self, x):
        return self.head(x) @ self.again


def tied_by_memory():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    model[1].weight = nn.Parameter(model[0].weight.data)
    return model


def torchs_quantized():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model[1] = torch.ao.quantization.quantize_dynamic(nn.Sequential(model[1]), {nn.Linear})[0]
    return model


@pytest.mark.parametrize(
    "model, message",
    [
        (TiedToANumber().eval(), r"\['again', 'head'\] share one weight"),
        (tied_by_memory(), r"\['0', '1'\] share one weight"),
        (torchs_quantized(), r"already quantized \('1' is"),
    ],
)
def test_what_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        qlab.quantize_model(model, "weight_only_int8", show=False)

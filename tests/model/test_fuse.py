"""Folding of batch normalization: the same function, and nothing folded that must not be."""

import pytest
import torch
from networks import cnn, state_hash
from torch import nn

from qlab.model.fuse import fuse, pairs_to_fuse
from qlab.model.qat import prepare_qat
from qlab.model.recipe import Recipe


def test_the_function_is_the_same():
    model, x = cnn(), torch.randn(8, 3, 16, 16)
    before = state_hash(model)
    folded = fuse(model)
    assert state_hash(model) == before
    assert pairs_to_fuse(model) == [("conv1", "bn1"), ("conv2", "bn2"), ("conv4", "bn4")]
    assert not any(isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)) for m in folded.modules())
    want = model(x)
    assert (folded(x) - want).abs().max() < 1e-5 * want.abs().max()
    assert torch.equal(fuse(nn.SyncBatchNorm.convert_sync_batchnorm(model).eval())(x), folded(x))


def test_linear_layers_and_chains_without_a_trace():
    class Data(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU())

        def forward(self, x):
            return self.layers(x) if x.sum() > 0 else -self.layers(x)  # what the tracer cannot follow

    model, x = Data(), torch.randn(9, 4)
    model(x)
    model.eval()
    assert pairs_to_fuse(model) == [("layers.0", "layers.1")]
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=1e-5, atol=1e-6)


def test_what_something_else_uses_stays():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            x = self.conv(x)
            return self.bn(x) + x

    model, x = Two(), torch.randn(2, 1, 3, 3)
    model(x)
    model.eval()
    assert pairs_to_fuse(model) == []
    torch.testing.assert_close(fuse(model)(x), model(x), rtol=0, atol=0)


def test_without_statistics_nothing_is_folded():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    assert pairs_to_fuse(model) == []


def test_train_mode_is_refused():
    with pytest.raises(ValueError, match=r"train mode.*model.eval\(\)"):
        fuse(nn.Sequential(nn.Conv2d(1, 1, 1)))


class Activated(nn.BatchNorm1d):
    """As timm has them: more than a normalization."""

    def forward(self, input):
        return torch.relu(super().forward(input))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x):
        return self.norm(input=self.linear(input=x))


class Columns(nn.Module):
    """Batch normalization of axis 1 of three, which are not the outputs of the layer before."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.linear(x))


@pytest.mark.parametrize(
    "model, shape, folded",
    [
        (nn.Sequential(nn.Linear(8, 8), Activated(8)), (6, 8), False),
        (nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.BatchNorm1d(8)), (6, 8), False),
        (nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)), (6, 8), True),
        (nn.Sequential(nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8, affine=False)), (6, 8, 3), True),
        (ByKeyword(), (6, 8), True),
        (Columns(), (6, 5, 8), False),
    ],
)
@torch.no_grad()
def test_what_may_be_folded(model, shape, folded):
    torch.manual_seed(0)
    model.train()(torch.randn(shape) * 3 + 1)
    model.eval()
    fused, x = fuse(model), torch.randn(shape)
    assert any(isinstance(module, nn.Identity) for module in fused.modules()) is folded
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    prepared = prepare_qat(nn.ModuleList([model, nn.Linear(1, 1)]), Recipe("int16-channel"))[0]
    torch.testing.assert_close(prepared(x), model(x), rtol=1e-3, atol=1e-3)

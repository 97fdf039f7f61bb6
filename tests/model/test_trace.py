"""What follows what: pairs are found where every run of a model has them, and nowhere else."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional

import qlab
from qlab.model.fuse import fuse
from qlab.model.trace import pairs_to_fuse, weights_read


def block():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))


class Model(nn.Module):
    """A convolution and its normalization, and what a subclass makes of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.layers = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), block()
        self.blocks, self.part = nn.ModuleList([block(), block()]), Part()


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.bn(self.conv(x))


class Plain(Model):
    def forward(self, x):
        return self.bn(self.conv(x))


class Default(Model):
    """One argument decides, and a stand-in for it is never None."""

    def forward(self, x, mask=None):
        y = self.conv(x)
        return y if mask is None else self.bn(y) * mask


class Harmless(Model):
    def forward(self, x, mask=None):
        y = self.bn(self.conv(x))
        return y if mask is None else y * mask


class Decides(Model):
    """What torch.fx cannot follow."""

    def forward(self, x):
        return self.run(x) if x.sum() > -1e9 else x


class Whole(Decides):
    def run(self, x):
        return self.part(self.layers(x))


class Taps(Decides):
    def run(self, x):
        total = x
        for layer in self.layers:
            x = layer(x)
            total = total + x.mean()
        return total


class Picks(Decides):
    def run(self, x):
        return self.layers[1](self.layers[0](x)) + self.layers[0](x)


class Iterates(Decides):
    def run(self, x):
        for each in self.blocks:
            x = each(x)
        return self.part(x)


class ByChildren(Decides):
    def run(self, x):
        return self.layers(x) if len(list(self.children())) else x


class Own(nn.Sequential):
    """Called a Sequential, and is none."""

    def forward(self, x):
        y = self[0](x)
        return self[1](y) + y


class Around(Decides):
    def __init__(self):
        super().__init__()
        self.own = Own(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def run(self, x):
        return self.own(x)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > -1e9 else -x


class Reads(Model):
    def forward(self, x):
        return self.bn(self.conv(x)) + functional.conv2d(x, self.conv.weight)


class ReadsStatistics(Model):
    def forward(self, x):
        return self.bn(self.conv(x)) + self.bn.running_mean.sum()


class Twice(Model):
    """The same normalization after two convolutions."""

    def forward(self, x):
        return self.bn(self.conv(self.bn(self.layers[0](x)[:, :3])))


class Reaches(Decides):
    def run(self, x):
        y = self.part.conv(x)
        return self.part.bn(y) + y


class KeepsItsOutput(Part):
    def forward(self, x):
        self.skip = [self.conv(x)]
        return self.bn(self.skip[0])


class Keeps(Decides):
    def __init__(self):
        super().__init__()
        self.part = KeepsItsOutput()

    def run(self, x):
        return self.part(x) + self.part.skip[0]


class OfType(Model):
    def forward(self, x, scale=None):
        y = self.conv(x)
        return self.bn(y * scale if isinstance(scale, torch.Tensor) else y)


class Either(Model):
    def forward(self, x, a=None, b=None):
        y = self.conv(x)
        return y + b if a is None and b is not None else self.bn(y)


class Flag(Model):
    def forward(self, x, twice=False):
        y = self.conv(x)
        return self.bn(2 * y) if twice is True else self.bn(y)


class Other(Decides):
    """Another method of the model looks inside."""

    def run(self, x):
        return self.part(x)

    def features(self, x):
        return self.part.conv(x)


class Hooked(Model):
    """A hook on what is called between the two."""

    def __init__(self):
        super().__init__()
        self.inner = Inner(self.conv)
        self.inner.register_forward_hook(lambda module, given, y: 2 * y)

    def forward(self, x):
        return self.bn(self.inner(x))


class Inner(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return self.conv(x)


class IfNone(Model):
    """As the block of a decoder, whose second input may be None."""

    def forward(self, x, skip):
        y = self.conv(x)
        return self.bn(y) + (y if skip is None else skip)


class FromKeywords(Model):
    def forward(self, x, **more):
        y = self.conv(x)
        skip = more.get("skip")
        return self.bn(y) + (y if skip is None else skip)


class ThreeMayBeGiven(Model):
    def forward(self, x, a=None, b=None, c=None):
        y = self.conv(x)
        return self.bn(y) + (y if a is not None and b is not None and c is None else 0)


class OfTypeInside(Model):
    """Asks for the type where its forward does not show it."""

    def forward(self, x):
        return self.pick(x)

    def pick(self, x):
        y = self.conv(x)
        return self.bn(y) + y if isinstance(x, torch.Tensor) else self.bn(y)


class Queues(Model):
    def __init__(self):
        super().__init__()
        self.last = deque(maxlen=3)

    def forward(self, x):
        y = self.conv(x)
        self.last.append(y)
        return self.bn(y)


class AskedForLists(Model):
    """As the layers of a DenseNet."""

    def forward(self, x):
        return self.bn(self.conv(x if isinstance(x, torch.Tensor) else torch.cat(x, 1)))


class Features(Model):
    def forward(self, x, features=False):
        y = self.bn(self.conv(x))
        return (y, x) if features else y


class Numbered(Decides):
    def run(self, x):
        for i, each in enumerate(self.blocks):
            x = each(x) * i
        return x


class Picked(Decides):
    def run(self, x):
        return self.blocks[1](self.blocks[0](x))


class Named(Decides):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleDict({"0": block(), "1": block()})

    def run(self, x):
        for name, each in self.blocks.items():
            x = each(x) + len(name)
        for each in self.blocks.values():
            x = each(x)
        return x


class LooksInto(Decides):
    def run(self, x):
        for each in self.blocks:
            x = each(x) + each[0](x).mean()
        return x


PART = ("part.conv", "part.bn")
BLOCKS = [(f"blocks.{i}.{j}", f"blocks.{i}.{j + 1}") for i in (0, 1) for j in (0, 3)]
LAYERS = [("layers.0", "layers.1"), ("layers.3", "layers.4")]
CASES = {
    Plain: [("conv", "bn")], Default: [], Harmless: [("conv", "bn")], Whole: [*LAYERS, PART], Taps: [], Picks: [],
    Iterates: [*BLOCKS, PART], ByChildren: [], Around: [], Reads: [], ReadsStatistics: [], Twice: [], Reaches: [], Keeps: [],
    OfType: [],
    Either: [], Flag: [], Other: [], Hooked: [], IfNone: [], FromKeywords: [], ThreeMayBeGiven: [], OfTypeInside: [], Queues: [],
    AskedForLists: [("conv", "bn")], Features: [("conv", "bn")], Numbered: BLOCKS, Picked: BLOCKS, Named: BLOCKS, LooksInto: [],
}  # fmt: skip


def trained(model):
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
    return model.eval()


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_pairs(kind):
    model, x = trained(kind()), torch.randn(2, 3, 5, 5)
    assert pairs_to_fuse(model) == CASES[kind]
    if kind is Hooked:  # the convolution has two names there
        return
    quantized = qlab.quantize_model(model, qlab.Recipe("int16-channel"), show=False)
    given = {IfNone: [(x, None), (x, x)], ThreeMayBeGiven: [(x,), (x, x, x), (x, x)]}.get(kind, [(x,)])
    for fused in (fuse(model), quantized, qlab.prepare_qat(model, qlab.Recipe("int16-channel")).eval()):
        for arguments in given:
            torch.testing.assert_close(fused(*arguments), model(*arguments), rtol=5e-3, atol=5e-3)
        if kind is Either:
            torch.testing.assert_close(fused(x, b=x), model(x, b=x), rtol=2e-3, atol=2e-3)
        if kind is Flag:
            torch.testing.assert_close(fused(x, True), model(x, True), rtol=2e-3, atol=2e-3)
        if kind in (Default, Harmless, OfType):
            torch.testing.assert_close(fused(x, x), model(x, x), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda model: torch.compile(model, backend="eager")])
def test_what_is_put_around_a_model_hands_on(wrap):
    assert [before.rpartition(".")[2] for before, _ in pairs_to_fuse(trained(wrap(nn.Sequential(*block()))))] == ["0", "3"]


def test_training_counts_for_what_is_trained():
    class Differs(Model):
        def forward(self, x):
            y = self.conv(x)
            return self.bn(y) + y if self.training else self.bn(y)

    model, x = trained(Differs()), torch.randn(6, 3, 5, 5)
    assert pairs_to_fuse(model) == [("conv", "bn")]
    prepared = qlab.prepare_qat(model, qlab.Recipe("int16-channel")).train()
    torch.testing.assert_close(prepared(x), model.train()(x), rtol=5e-3, atol=5e-3)


def test_a_class_whose_forward_was_replaced_is_not_read():
    class Replaced(Whole):
        pass

    def forward(self, x):
        return Decides.run(self, x) if x.sum() < -1e9 else self.layers[0](x) + self.layers(x)

    Replaced.forward = forward
    assert pairs_to_fuse(trained(Replaced())) == []


def test_hooks_see_no_stand_ins():
    seen, model = [], trained(nn.Sequential(nn.Sequential(*block()), nn.ReLU()))
    model[0].register_forward_hook(lambda module, given, y: seen.append(y))
    assert pairs_to_fuse(model) == [("0.0", "0.1"), ("0.3", "0.4")]
    assert seen == []


def test_a_chain_with_a_part_that_cannot_be_traced():
    assert pairs_to_fuse(trained(nn.Sequential(*block(), Undecided()))) == [("0", "1"), ("3", "4")]


def test_a_layer_that_two_parts_have_is_not_folded_into_one():
    class Shares(Decides):
        def __init__(self):
            super().__init__()
            self.part.conv = self.conv

        def run(self, x):
            return self.part(self.conv(x))

    assert pairs_to_fuse(trained(Shares())) == []


HOOKS = {
    "before": lambda m: m.bn.register_forward_pre_hook(lambda module, given: (given[0] * 2,)),
    "after": lambda m: m.conv.register_forward_hook(lambda module, given, y: y * 2),
    "watching": lambda m: m.conv.register_forward_hook(lambda module, given, y: m.__dict__.update(seen=y)),
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())
@torch.no_grad()
def test_hooks_keep_layers_apart(hook):
    model, x = trained(Plain()), torch.randn(2, 3, 5, 5)
    hook(model)
    assert pairs_to_fuse(model) == []
    torch.testing.assert_close(fuse(model)(x), model(x))


def test_a_forward_that_was_replaced_keeps_layers_apart():
    model = trained(Plain())
    model.conv.forward = lambda x: x
    assert pairs_to_fuse(model) == []


@torch.no_grad()
def test_normalization_of_another_axis_is_not_taken_for_the_layers():
    """A linear layer of as many outputs as there are tokens: whether it can be folded only shapes say, which come later."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval()
    model[1].running_mean.normal_()
    for folded in (
        fuse(model), qlab.quantize_model(model, qlab.Recipe("int16-channel"), show=False),
        qlab.prepare_qat(model, qlab.Recipe("int16-channel")).eval(),
    ):  # fmt: skip
        x = torch.randn(4, 8)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-3, atol=1e-3)
        with pytest.raises(ValueError, match=r"folded into the layer before it.*\(4, 8, 8\).*another axis"):
            folded(torch.randn(4, 8, 8))


def test_weights_that_a_model_computes_with_itself():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.linear, self.other = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, index, doubled=False):
            index = torch.cat([index, index]) if doubled else index
            x = self.linear(self.table(index)).to(self.other.weight.dtype).to(self.other.weight.device)
            return functional.linear(self.other(x), self.table.weight)

    model = Head().eval()
    assert weights_read(model) == {"table"}
    quantized = qlab.quantize_model(model, qlab.Recipe("int8-channel", types=("Linear", "Embedding")), show=False)
    how = {row[0]: row[4] for row in qlab.quantization_map(quantized).rows}
    assert how == {
        "table": "left: the model computes with its weight itself", "linear": "dequantized on the fly",
        "other": "dequantized on the fly",
    }  # fmt: skip
    index = torch.tensor([0, 3])
    torch.testing.assert_close(quantized(index), model(index), rtol=0.05, atol=0.05)


@torch.no_grad()
def test_normalization_of_other_dimensions():
    model, x = trained(nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8))), torch.randn(2, 3, 8)
    nn.init.normal_(model[1].running_mean)
    fused = fuse(model)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="another axis"):
        fused(x[0])  # which BatchNorm1d would take for 8 rows of 8 channels
    for layer, norm in ((nn.Linear(8, 8), nn.BatchNorm2d(8)), (nn.Conv2d(8, 8, 1), nn.BatchNorm1d(8))):
        assert pairs_to_fuse(nn.Sequential(layer, norm).eval()) == []


def test_what_asks_for_a_weights_dtype_or_size_computes_nothing_with_it():
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, x):
            weight = self.linear.weight
            x = x.to(weight).type_as(weight) + torch.zeros_like(weight)[0] * weight.dim()
            return self.linear(x.reshape(-1, weight.size(1)))

    assert weights_read(Asks().eval()) == set()
    x = torch.randn(2, 8)
    assert qlab.quantize_model(Asks().eval(), qlab.Recipe("int8-channel"), show=False)(x).shape == (2, 8)


@pytest.mark.filterwarnings("error")
def test_tensors_as_defaults_are_traced_without_a_word():
    class Mode(Part):
        def forward(self, x, scale=torch.ones(())):  # noqa: B008
            return super().forward(x) * scale

    assert pairs_to_fuse(trained(Mode())) == [("conv", "bn")]


def test_two_threads_trace_one_after_the_other():
    before = nn.Module.__call__, nn.Module.__getattr__
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(pairs_to_fuse, [trained(nn.Sequential(*block())) for _ in range(12)]))
    assert found == [[("0", "1"), ("3", "4")]] * 12
    assert (nn.Module.__call__, nn.Module.__getattr__) == before

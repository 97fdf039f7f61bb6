"""Running a model to look at it leaves nothing behind, in what is given and in what comes back; copies of any model."""

import copy
import threading

import pytest
import torch
from networks import recipe, state_hash
from torch import nn

import qlab
from qlab.model.methods.smoothquant import smooth_model
from qlab.model.record import collect_inputs
from qlab.model.state import copied


class Keeps(nn.Module):
    """A forward that counts, grows a cache, keeps what it computed, draws numbers, and normalizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.norm, self.linear = nn.Conv1d(1, 1, 1), nn.BatchNorm1d(1), nn.LayerNorm(8), nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.cache, self.log = None, []

    def forward(self, x):
        self.calls += 1
        torch.rand(3)
        x = self.norm(self.bn(self.conv(x.unsqueeze(1))).squeeze(1))
        self.cache = x if self.cache is None else torch.cat([self.cache, x])
        self.last = self.linear(x)
        self.log.append(self.last)
        return self.last

    def kept(self):
        return int(self.calls), self.cache, self.log, hasattr(self, "last")


WORK = {
    "weights": lambda m, x: qlab.quantize_model(m, recipe("weight_only_int8"), show=False),
    "static": lambda m, x: qlab.quantize_model(m, recipe("tflite_full_integer"), [x, x], show=False),
    "gptq": lambda m, x: qlab.quantize_model(m, qlab.Recipe("int4-channel", method="gptq"), [x], show=False),
    "prepare": lambda m, x: qlab.prepare_qat(m, qlab.Recipe("int8-channel")),
    "smooth": lambda m, x: smooth_model(m, [x]),
    "inputs": lambda m, x: collect_inputs(m, [x]) and m,
    "sensitivity": lambda m, x: qlab.sensitivity(m, qlab.Recipe("int8-channel"), [x]) and m,
    "allocate": lambda m, x: qlab.allocate_bits(m, ["int8-channel"], [x], budget=99).apply(m),
    "autocast": lambda m, x: qlab.amp.autocast_report(m, x) and m,
}


@pytest.mark.parametrize("work", WORK.values(), ids=WORK.keys())
def test_what_a_forward_keeps_is_not_left_behind(work):
    torch.manual_seed(0)
    model, x = Keeps().eval(), torch.randn(5, 8)
    before, numbers = state_hash(model), torch.get_rng_state()
    result = work(model, x)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert state_hash(model) == before
    assert model.kept() == (0, None, [], False)
    assert result.kept() == (0, None, [], False)
    assert result(x).shape == (5, 4)


def test_sensitivity_runs_each_layer_from_the_same_state():
    torch.manual_seed(0)
    model, x = Keeps().eval(), torch.randn(5, 8)
    once, again = (qlab.sensitivity(model, qlab.Recipe("int8-channel"), [x]) for _ in range(2))
    assert repr(once) == repr(again)


def test_what_was_computed_is_copied_without_its_history():
    model = Keeps().eval()
    model(torch.randn(5, 8))
    assert model.last.grad_fn is not None
    quantized = qlab.quantize_model(model, recipe("weight_only_int8"), show=False)
    assert torch.equal(quantized.last, model.last)
    assert torch.equal(quantized.log[0], model.last)
    assert not quantized.last.requires_grad
    prepared = qlab.prepare_qat(model, qlab.Recipe("int8-channel")).train()
    prepared(torch.randn(5, 8)).sum().backward()
    assert qlab.convert(prepared, show=False)(torch.randn(5, 8)).shape == (5, 4)


@pytest.mark.parametrize("work", [WORK["weights"], WORK["prepare"], WORK["smooth"], lambda m, x: copied(m)])
def test_what_cannot_be_copied_is_named(work):
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)).eval()
    model[1].guard = threading.Lock()
    with pytest.raises(ValueError, match=r"cannot be copied.*'guard' of '1' is a lock.*take it out"):
        work(model, torch.randn(2, 8))


def test_weights_made_under_inference_mode():
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(16, 4)).eval()
    x = torch.randn(3, 16)
    assert qlab.quantize_model(model, recipe("weight_only_int8"), show=False)(x).shape == (3, 4)
    prepared = qlab.prepare_qat(model, qlab.Recipe("int8-channel")).train()
    prepared(x).sum().backward()
    assert prepared[0].weight.grad is not None


def test_what_is_made_under_inference_mode_can_be_loaded_into():
    model, x = nn.Sequential(nn.Linear(16, 4)).eval(), torch.randn(3, 16)
    with torch.inference_mode():
        quantized = qlab.quantize_model(model, recipe("weight_only_int8"), show=False)
        prepared = qlab.prepare_qat(model, qlab.Recipe("int8-channel")).train()
    other = qlab.quantize_model(nn.Sequential(nn.Linear(16, 4)).eval(), recipe("weight_only_int8"), show=False)
    quantized.load_state_dict(other.state_dict())
    assert torch.equal(quantized(x), other(x))
    prepared(x).sum().backward()


@pytest.mark.parametrize("make", [torch.fx.symbolic_trace, lambda model: torch.compile(model, backend="eager")])
def test_graphs_and_compiled_models_are_looked_at(make):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    x = torch.randn(5, 8)
    for each in (model, make(model)):
        assert qlab.sensitivity(each, qlab.Recipe("int8-channel"), [x]).worst.name.endswith(("0", "2"))
        assert qlab.quantize_model(each, recipe("tflite_full_integer"), [x], show=False)(x).shape == (5, 4)


class CopiesItself(nn.Sequential):
    def __deepcopy__(self, memo):
        return CopiesItself(*[copy.deepcopy(child) for child in self]).eval()


def test_models_that_copy_themselves():
    model, x = CopiesItself(nn.LayerNorm(8), nn.Linear(8, 4)).eval(), torch.randn(5, 8)
    assert qlab.quantize_model(model, recipe("tflite_full_integer"), [x], show=False)(x).shape == (5, 4)
    assert [row[0] for row in smooth_model(model, [x]).smoothing_map.rows] == ["0"]


def test_what_holds_itself():
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    model.notes = {"of": []}
    model.notes["me"] = model.notes
    quantized = qlab.quantize_model(model, qlab.Recipe("int8-channel"), show=False)
    assert quantized.notes["me"] is quantized.notes is not model.notes


def test_a_view_of_a_parameter_is_refused_since_it_would_part_from_it():
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    model[0].turned = [model[0].weight.t()]
    with pytest.raises(ValueError, match=r"'0\.turned' is a view of a parameter.*make it in forward"):
        qlab.prepare_qat(model, qlab.Recipe("int8-channel"))


def test_parameters_that_a_forward_rescales_stay():
    model = nn.Sequential(nn.Embedding(5, 8, max_norm=0.1), nn.Linear(8, 4)).eval()
    before = state_hash(model)
    collect_inputs(model, [torch.arange(5)])
    qlab.quantize_model(model, recipe("tflite_full_integer"), [torch.arange(5)], show=False)
    assert state_hash(model) == before


def test_calibration_data_drawn_on_the_way_are_new_numbers():
    model = nn.Sequential(nn.Linear(8, 4)).eval()
    torch.manual_seed(0)
    drawn = []

    def batches():
        for _ in range(3):
            drawn.append(torch.randn(4, 8))
            yield drawn[-1]

    qlab.quantize_model(model, recipe("tflite_full_integer"), batches(), show=False)
    after = torch.randn(4, 8)
    assert not any(torch.equal(after, each) for each in drawn)
    torch.manual_seed(0)
    assert torch.equal([torch.randn(4, 8) for _ in range(4)][3], after)


def test_hooks_do_not_stay_on_quantized_layers():
    plain = nn.Sequential(nn.Linear(8, 8)).eval()
    inner = qlab.quantize_model(plain, recipe("tflite_full_integer"), [torch.randn(2, 8)], show=False)
    model, x = nn.Sequential(inner, nn.Linear(8, 4)).eval(), torch.randn(5, 8)
    before = state_hash(model)
    qlab.amp.autocast_report(model, x)
    collect_inputs(model, [x], ["1"])
    with pytest.raises(ValueError, match="takes"):
        collect_inputs(model, [torch.randn(5, 9)])
    assert state_hash(model) == before


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed")
def test_process_groups_are_shared(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        group = torch.distributed.new_group([0])
        model = nn.Sequential(nn.SyncBatchNorm(3, process_group=group), nn.Flatten(), nn.Linear(12, 4)).eval()
        x = torch.randn(5, 3, 4)
        assert list(collect_inputs(model, [x])) == ["2"]
        assert qlab.quantize_model(model, recipe("tflite_full_integer"), [x], show=False)[0].process_group is group
    finally:
        torch.distributed.destroy_process_group()

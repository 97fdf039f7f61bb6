"""A loss scaler's state, saved and loaded: training goes on bit for bit, and torch's own GradScaler can take it over."""

from __future__ import annotations

import copy
import io
import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import qlab


def saved_and_loaded(state: object) -> object:
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


class Trained:
    """One weight, a scaler, and steps that overflow when told to."""

    def __init__(self, scaler) -> None:
        self.scaler, self.weight = scaler, nn.Parameter(torch.ones(1))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1)
        self.multiply = scaler.multiply if isinstance(scaler, qlab.amp.LossScaler) else scaler.scale

    def step(self, overflow: bool) -> None:
        self.optimizer.zero_grad()
        self.multiply((self.weight * (math.inf if overflow else 1.0)).sum()).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


@settings(max_examples=60, deadline=None)
@given(
    overflows=st.lists(st.booleans(), min_size=1, max_size=40), cut=st.integers(0, 40),
    initial=st.sampled_from([2.0**16, 3e38, 1e-44, 777.7]), backoff=st.sampled_from([0.5, 0.3]), interval=st.integers(1, 4),
)  # fmt: skip
def test_a_loaded_scaler_goes_on(overflows, cut, initial, backoff, interval):
    whole = Trained(qlab.amp.LossScaler(initial, 1.7, backoff, interval))
    for overflow in overflows[:cut]:
        whole.step(overflow)
    state = whole.scaler.state_dict()
    kept = copy.deepcopy(state)
    ours, theirs = qlab.amp.LossScaler(), torch.amp.GradScaler("cpu")
    ours.load_state_dict(saved_and_loaded(state))
    theirs.load_state_dict(state)
    others = [Trained(ours), Trained(theirs)]
    for overflow in overflows[cut:]:
        for each in (whole, *others):
            each.step(overflow)
        assert whole.scaler.scale == ours.scale == theirs.get_scale()
    assert ours.state_dict() == whole.scaler.state_dict()
    assert state == kept  # a state does not change with the scaler that it came from
    assert json.loads(json.dumps(state)) == state


def test_a_state_holds_what_gradscaler_keeps():
    options = {"growth_factor": 1.5, "backoff_factor": 0.25, "growth_interval": 7}
    theirs = Trained(torch.amp.GradScaler("cpu", init_scale=64.0, **options))
    ours = Trained(qlab.amp.LossScaler(64.0, 1.5, 0.25, 7))
    for overflow in (False, False, True, False):
        ours.step(overflow)
        theirs.step(overflow)
    state = ours.scaler.state_dict()
    assert {key: state.pop(key) for key in theirs.scaler.state_dict()} == theirs.scaler.state_dict()
    assert state == {"scales": [64.0, 64.0, 64.0, 16.0], "skipped": [2]}


def test_resumed_training_has_the_same_bits():
    x, y = (torch.from_numpy(part)[:256] for part in qlab.data.digits()[:2])

    def network() -> tuple:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        return model, torch.optim.Adam(model.parameters(), lr=0.01), qlab.amp.LossScaler(2.0**26, interval=3)

    def train(model, optimizer, scaler, steps: range) -> None:
        with qlab.amp.emulate("float16", "float16"):
            for step in steps:
                rows = slice(16 * (step % 16), 16 * (step % 16 + 1))
                optimizer.zero_grad()
                scaler.multiply(F.cross_entropy(model(x[rows]), y[rows])).backward()
                scaler.step(optimizer)
                scaler.update()

    never_stopped = network()
    train(*never_stopped, range(30))
    first = network()
    train(*first, range(13))
    second = network()
    for part, state in zip(second, saved_and_loaded([part.state_dict() for part in first]), strict=True):
        part.load_state_dict(state)
    train(*second, range(13, 30))
    assert second[2].state_dict() == never_stopped[2].state_dict()
    assert len(never_stopped[2].skipped) > 3
    assert never_stopped[2].skipped[-1] > 13
    weights = (part[0].state_dict() for part in (never_stopped, second))
    assert all(torch.equal(*pair) for pair in zip(*(w.values() for w in weights), strict=True))


def test_a_state_is_saved_between_steps():
    trained = Trained(qlab.amp.LossScaler(8.0))
    trained.scaler.multiply(trained.weight.sum()).backward()
    trained.scaler.step(trained.optimizer)
    with pytest.raises(ValueError, match=r"call update\(\), which ends this one"):
        trained.scaler.state_dict()
    trained.scaler.load_state_dict(qlab.amp.LossScaler(4.0).state_dict())
    trained.step(False)  # the step that was begun is forgotten
    assert trained.scaler.scales == [4.0]


STATE = {
    "scale": 4.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 5, "_growth_tracker": 2,
    "scales": [8.0, 4.0, 4.0], "skipped": [0],
}  # fmt: skip
MISSING = {key: value for key, value in STATE.items() if key not in ("scales", "skipped")}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (torch.amp.GradScaler("cpu", enabled=False).state_dict(), r"it lacks \['scale', 'growth_factor', 'backoff_factor'\]"),
        (MISSING, r"it lacks \['scales', 'skipped'\]; give what LossScaler.state_dict\(\) returned"),
        (nn.Linear(1, 1).state_dict() | STATE, r"it also holds \['weight', 'bias'\]"),
        (STATE | {"scale": math.inf}, "scale=inf is not allowed"),
        (STATE | {"scale": 0.1}, "scale=0.1 is not allowed; a scale is a finite float32 number"),
        (STATE | {"scale": torch.ones(1)}, "scale=tensor"),
        (STATE | {"growth_factor": 1}, "growth=1 is not allowed"),
        (STATE | {"backoff_factor": "half"}, "backoff='half' is not allowed"),
        (STATE | {"growth_interval": 2.5}, "interval=2.5 is not allowed"),
        (STATE | {"_growth_tracker": 5}, "_growth_tracker=5 is not allowed; give a number of steps below growth_interval=5"),
        (STATE | {"scales": [8.0, -4.0, 4.0]}, "scales is not a list of finite float32 numbers"),
        (STATE | {"scales": 8.0}, "scales is not a list"),
        (STATE | {"skipped": [3]}, r"skipped=\[3\] is not allowed; give rising numbers of steps below len\(scales\)=3"),
        (STATE | {"skipped": [1, 0]}, r"skipped=\[1, 0\]"),
        (STATE | {"skipped": [True]}, r"skipped=\[True\]"),
        (STATE | {"skipped": None}, "skipped=None"),
    ],
)
def test_states_of_something_else_are_refused(state, message):
    scaler = qlab.amp.LossScaler(2.0)
    before = scaler.state_dict()
    with pytest.raises(ValueError, match=message):
        scaler.load_state_dict(state)
    assert scaler.state_dict() == before


def test_what_may_be_loaded():
    scaler = qlab.amp.LossScaler()
    scaler.load_state_dict(OrderedDict(STATE | {"scale": np.float32(4), "scales": (8, 4, 4)}))
    assert scaler.state_dict() == STATE
    assert type(scaler.state_dict()["scale"]) is float
    with pytest.raises(TypeError, match=r"what LossScaler.state_dict\(\) returned, a dict, not LossScaler"):
        scaler.load_state_dict(scaler)

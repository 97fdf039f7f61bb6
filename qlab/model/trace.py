"""What a model's own code does with its layers, as far as `torch.fx` can follow it: what is called after what, and what is read.

A trace runs a forward with stand-ins for its inputs: of branches it sees one, and it gives up where numbers decide. So it is run
for arguments that are given and for those left at their defaults, and pairs of layers are found only where all runs agree. Parts
of a model that cannot be traced are traced on their own, if its code calls them and does nothing else with them. While a trace
runs, `torch.fx` changes `nn.Module` for the whole process: no other thread should run a model meanwhile.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from qlab.model.batches import things_in
from qlab.model.state import HOOKS, copied_to_run

__all__ = ["pairs_to_fuse", "weights_read"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_NORMS_OF: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm), nn.Conv1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
}  # fmt: skip
_ASKS = {
    "device", "dtype", "shape", "ndim", "size", "dim", "numel", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
    "randn_like",
}  # fmt: skip
"""What asks a tensor what it is, and not for its numbers; packed weights can answer."""

_one_at_a_time = threading.RLock()


def pairs_to_fuse(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of layers, and of the batch normalization that follows each, in all runs that a trace can see."""
    names = Counter(id(part) for _, part in model.named_modules(remove_duplicate=False))
    found = _search(model, "", called=True)
    return [pair for pair in found if all(names[id(model.get_submodule(each))] == 1 for each in pair)]


def weights_read(model: nn.Module) -> set[str]:
    """Return the names of the modules whose parameters or buffers the model's own code computes with, as far as a trace shows."""
    trace = _traced(model)
    nodes = [] if trace is None else [node for node in trace.graph.nodes if node.op == "get_attr"]
    read = {str(node.target).rpartition(".")[0] for node in nodes if any(not _asks_only(user, node) for user in node.users)}
    return read - {""}  # a model that is a single layer


def _asks_only(user: fx.Node, weight: fx.Node) -> bool:
    """Whether a step of the graph takes of a weight nothing but its dtype, device or size."""
    if user.op == "call_function" and user.target is getattr:
        return user.args[1] in _ASKS
    if user.op == "call_method" and user.target in ("to", "type_as"):
        return user.args[0] is not weight
    return (user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")) in _ASKS


# --- where pairs are looked for --------------------------------------------------------------------------------------
def _search(module: nn.Module, name: str, *, called: bool) -> Iterator[tuple[str, str]]:
    """Find the pairs within a module; `called` says whether it is known that the model calls it, and not the parts of it."""
    prefix = f"{name}." if name else ""
    traces = _traces(module) if called else None
    if traces is not None:
        yield from ((prefix + before, prefix + norm) for before, norm in _pairs(module, traces))
        return
    in_turn = called and type(module).forward is nn.Sequential.forward and "forward" not in vars(module)
    if in_turn:
        for (a, before), (b, norm) in itertools.pairwise(module.named_children()):
            if _can_take(before, norm):
                yield prefix + a, prefix + b
    for key, child in module.named_children():
        yield from _search(child, prefix + key, called=in_turn or (called and _only_called(module, key)))


def _only_called(module: nn.Module, key: str) -> bool:
    """Whether the code of a module's classes, but for constructors, calls a part of it and does nothing else with it."""
    kinds = type(module).__mro__
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(kind))) for kind in kinds[: kinds.index(nn.Module)]]
    except (OSError, TypeError, SyntaxError):
        return False
    bodies = [part for tree in trees for part in tree.body[0].body if getattr(part, "name", "") != "__init__"]  # type: ignore[attr-defined]
    nodes = [node for part in bodies for node in ast.walk(part)]
    mine = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"]
    held, calls = {id(n.value) for n in mine}, {id(n.func) for n in nodes if isinstance(n, ast.Call)}
    if any(isinstance(n, ast.Name) and (n.id == "super" or (n.id == "self" and id(n) not in held)) for n in nodes):
        return False
    if any(hasattr(nn.Module, n.attr) and n.attr not in ("training", "forward") for n in mine):
        return False  # such as self.children()
    uses = [id(n) in calls for n in mine if n.attr == key]
    return bool(uses) and all(uses)


# --- traces ----------------------------------------------------------------------------------------------------------
class _Trace(NamedTuple):
    """The graph of a module, and the steps of it whose results its forward keeps."""

    graph: fx.Graph
    kept: set[fx.Node]


class _Tracer(fx.Tracer):
    """One that sees where buffers are read, as it does for parameters."""

    proxy_buffer_attributes = True


def _traces(module: nn.Module) -> list[_Trace] | None:
    """Trace a module with its optional arguments given, left out, and each one given alone; None if it cannot be traced."""
    if not any(type(part) in NORMS for part in module.modules()):
        return []
    if any("isinstance" in _names_in(part) or "is_tensor" in _names_in(part) for part in module.modules()):
        return None  # a stand-in is no tensor
    parameters = inspect.signature(type(module).forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    runs: list[dict[str, Any]] = [{}, defaults] if defaults else [{}]
    for key, value in defaults.items():
        others = {other: default for other, default in defaults.items() if other != key}
        runs.append({**others, key: not value} if isinstance(value, bool) else others)
    traces = [_traced(module, run) for run in runs]
    return None if None in traces else traces  # type: ignore[return-value]


def _names_in(module: nn.Module) -> tuple[str, ...]:
    """The names that the code of a module's forward uses; none of torch's own."""
    code = getattr(type(module).forward, "__code__", None)
    return () if code is None or type(module).__module__.startswith("torch.") else code.co_names


def _traced(module: nn.Module, arguments: dict[str, Any] | None = None) -> _Trace | None:
    """Trace a module, a copy of it, since tracing runs its forward; None where that fails, or hooks might do more."""
    inner = [part for part in module.modules() if part is not module and not type(part).__module__.startswith("torch.nn")]
    if "forward" in vars(module) or any(_has_hooks(part) or "forward" in vars(part) for part in inner):
        return None
    try:
        run = copied_to_run(module)
        with _one_at_a_time, torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = _Tracer().trace(run, concrete_args=arguments or None)
    except Exception:  # the tracer refuses in many ways
        return None
    return _Trace(graph, {proxy.node for part in run.modules() for proxy in things_in(vars(part), fx.Proxy)})


def _has_hooks(module: nn.Module) -> bool:
    return any(getattr(module, kind) for kind in HOOKS)


def _pairs(module: nn.Module, traces: list[_Trace]) -> list[tuple[str, str]]:
    """The pairs that all traces of a module agree on."""
    modules = dict(module.named_modules())
    each = [_pairs_of(trace, modules) for trace in traces]
    return [pair for pair in each[0] if all(pair in others for others in each[1:])] if each else []


def _pairs_of(trace: _Trace, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    found = []
    calls = Counter(node.target for node in trace.graph.nodes if node.op == "call_module")
    read = {str(node.target).rpartition(".")[0] for node in trace.graph.nodes if node.op == "get_attr"}
    for node in trace.graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in NORMS:
            continue
        source = next(iter(node.all_input_nodes), None)
        if source is None or source.op != "call_module" or len(source.users) != 1 or source in trace.kept:
            continue
        pair = source.target, node.target
        if all(calls[each] == 1 and each not in read for each in pair) and _can_take(*(modules[each] for each in pair)):
            found.append(pair)
    return found


def _can_take(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether folding is right: classes derived from these, hooks and parametrizations may do more."""
    if type(norm) not in _NORMS_OF.get(type(layer), ()) or getattr(norm, "running_var", None) is None:
        return False
    plain = not any(_has_hooks(part) or "forward" in vars(part) for part in (layer, norm))
    return plain and norm.num_features == layer.weight.shape[0]  # type: ignore[index]

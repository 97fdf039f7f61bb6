"""What a model's own code does with its layers, as far as `torch.fx` can follow it: what is called after what, and what is read.

A trace runs a forward with stand-ins for its inputs: of branches it sees one, and it gives up where numbers decide. So it is run
for arguments that are given, None, or left at their defaults, and pairs of layers are found only where all runs agree. Parts of a
model that cannot be traced are traced on their own, if its code calls them and does nothing else with them. While a trace runs,
`torch.fx` changes `nn.Module` for the whole process: no other thread should run a model meanwhile.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from qlab.model.state import HOOKS, copied_to_run

__all__ = ["pairs_to_fuse", "weights_read"]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_NORMS_OF: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Linear: (nn.BatchNorm1d, nn.SyncBatchNorm), nn.Conv1d: (nn.BatchNorm1d, nn.SyncBatchNorm),
    nn.Conv2d: (nn.BatchNorm2d, nn.SyncBatchNorm),
}  # fmt: skip
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.DataParallel, nn.parallel.DistributedDataParallel)
"""What is not called by itself, or calls nothing but what it holds."""
_ASKS = {
    "device", "dtype", "shape", "ndim", "size", "dim", "numel", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
    "randn_like",
}  # fmt: skip
"""What asks a tensor what it is, and not for its numbers; packed weights can answer."""

_LEFT_OUT = 8
"""Of many optional arguments, in how many ways some are left out: the first ones, one by one and two by two."""

_one_at_a_time = threading.RLock()


def pairs_to_fuse(model: nn.Module, *, modes: tuple[bool, ...] = (False,)) -> list[tuple[str, str]]:
    """Return the names of layers, and of the batch normalization that follows each, in all runs that a trace can see.

    Parameters
    ----------
    model : nn.Module
    modes : tuple of bool
        Which modes it will be run in: whether in training.
    """
    names = Counter(id(part) for _, part in model.named_modules(remove_duplicate=False))
    found = _search(model, "", modes, called=True)
    return [pair for pair in found if all(names[id(model.get_submodule(each))] == 1 for each in pair)]


def weights_read(model: nn.Module) -> set[str]:
    """Return the names of the modules whose parameters or buffers the model's own code computes with, as far as a trace shows."""
    trace = _traced(model, _ways_to_call(model)[0][0])
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
def _search(module: nn.Module, name: str, modes: tuple[bool, ...], *, called: bool) -> Iterator[tuple[str, str]]:
    """Find the pairs within a module; `called` says whether it is known that the model calls it, and not the parts of it."""
    prefix = f"{name}." if name else ""
    traces = _traces(module, modes) if called else None
    if traces is not None:
        yield from ((prefix + before, prefix + norm) for before, norm in _pairs(module, traces))
        return
    in_turn = called and type(module).forward is nn.Sequential.forward and "forward" not in vars(module)
    if in_turn:
        for (a, before), (b, norm) in itertools.pairwise(module.named_children()):
            if _can_take(before, norm):
                yield prefix + a, prefix + b
    hands_on = in_turn or (called and (isinstance(module, _CONTAINERS) or hasattr(module, "_orig_mod")))
    for key, child in module.named_children():
        holds = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        yield from _search(child, prefix + key, modes, called=hands_on or (called and _only_called(module, key, holds=holds)))


def _only_called(module: nn.Module, key: str, *, holds: bool) -> bool:
    """Whether the code of a module's classes, but for constructors, calls a part of it and does nothing else with it.

    If the part only `holds` others, these are to be called: ``self.key[i](x)``, or ``for each in self.key: x = each(x)``.
    """
    kinds = type(module).__mro__
    kinds = kinds[: kinds.index(nn.Module)]
    try:
        trees = [ast.parse(textwrap.dedent(inspect.getsource(kind))) for kind in kinds]
        if not all(_is_of_the_source(kind) for kind in kinds):
            return False
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
    if holds:
        calls = {id(n.value) for n in nodes if isinstance(n, ast.Subscript) and id(n) in calls} | {
            id(part) for n in nodes if isinstance(n, ast.For) for part in _looped(n, calls)
        }
    uses = [id(n) in calls for n in mine if n.attr == key]
    return bool(uses) and all(uses)


def _is_of_the_source(kind: type) -> bool:
    """Whether the forward of a class, if it has one of its own, is the one that its source shows."""
    code = getattr(vars(kind).get("forward"), "__code__", None)
    lines, first = inspect.getsourcelines(kind)
    return code is None or (
        code.co_filename == inspect.getsourcefile(kind) and first <= code.co_firstlineno < first + len(lines)
    )


def _looped(loop: ast.For, calls: set[int]) -> list[ast.AST]:
    """What a loop goes through, if it does nothing with each thing of it but call it."""
    through, target = loop.iter, loop.target
    if isinstance(through, ast.Call) and isinstance(through.func, ast.Name) and through.func.id == "enumerate" and through.args:
        through, target = through.args[0], target.elts[-1] if isinstance(target, ast.Tuple) else target
    elif isinstance(through, ast.Call) and isinstance(through.func, ast.Attribute) and through.func.attr in ("values", "items"):
        if through.func.attr == "items":
            target = target.elts[-1] if isinstance(target, ast.Tuple) else target
        through = through.func.value
    names = [n for part in (*loop.body, *loop.orelse) for n in ast.walk(part) if isinstance(n, ast.Name)]
    uses = [id(n) in calls for n in names if isinstance(target, ast.Name) and n.id == target.id]
    return [through] if uses and all(uses) else []


# --- traces ----------------------------------------------------------------------------------------------------------
class _Trace(NamedTuple):
    """The graph of a module, and the steps of it whose results something keeps."""

    graph: fx.Graph
    kept: set[fx.Node]


class _StandIn(fx.Proxy):
    """A stand-in that says that it is a tensor."""

    __class__ = torch.Tensor  # type: ignore[assignment]


class _Tracer(fx.Tracer):
    """One that sees where buffers are read, as it does for parameters, and knows which stand-ins there are."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[weakref.ref[fx.Proxy], fx.Node]] = []

    def proxy(self, node: fx.Node) -> fx.Proxy:
        made = _StandIn(node, self)
        self.made.append((weakref.ref(made), node))
        return made

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is _StandIn else super().create_arg(a)  # it looks at the class


def _traces(module: nn.Module, modes: tuple[bool, ...]) -> list[_Trace] | None:
    """Trace a module in all the ways that its arguments may be given; None if it cannot be traced."""
    if not any(type(part) in NORMS for part in module.modules()):
        return []
    found = []
    needed, more = _ways_to_call(module)
    for mode in modes:
        traces = [_traced(module, way, mode) for way in needed]
        if None in traces:
            return None
        found += traces + [trace for trace in (_traced(module, way, mode) for way in more) if trace is not None]
    if any(node.op == "call_method" and node.target in ("get", "pop") for trace in found for node in trace.graph.nodes):  # type: ignore[union-attr]
        return None  # what comes out may be None, a stand-in never is
    return found  # type: ignore[return-value]


def _ways_to_call(module: nn.Module) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Which arguments to fix, to what: first the ways in which a module must be traced, then others that it may not take."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    flags = {p.name: p.default for p in named if isinstance(p.default, bool)}
    defaults = {p.name: p.default for p in named if p.default is not p.empty and p.name not in flags}
    needed = [flags, flags | defaults] if defaults else [flags]
    subsets = itertools.chain.from_iterable(itertools.combinations(defaults, n) for n in range(1, len(defaults)))
    but_one = (tuple(key for key in defaults if key != given) for given in defaults) if len(defaults) > 1 else ()
    left_out = dict.fromkeys([*itertools.islice(subsets, _LEFT_OUT), *but_one])  # each once
    more = [flags | {key: defaults[key] for key in some} for some in left_out]
    more += [each | {key: not value} for key, value in flags.items() for each in needed]
    required = [p.name for p in named if p.default is p.empty][1:]
    more += [flags | {key: None} for key in required]
    return needed, more


def _traced(module: nn.Module, arguments: dict[str, Any] | None = None, training: bool = False) -> _Trace | None:
    """Trace a module, a copy of it, since tracing runs its forward; None where that fails, or hooks might do more."""
    tracer = _Tracer()
    entered = [part for part in module.modules() if part is not module and not tracer.is_leaf_module(part, "")]
    if "forward" in vars(module) or any(_has_hooks(part) or "forward" in vars(part) for part in entered):
        return None
    try:
        run = copied_to_run(module).train(training)
        with _one_at_a_time, torch.random.fork_rng([]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = tracer.trace(run, concrete_args=arguments or None)
    except Exception:  # the tracer refuses in many ways
        return None
    return _Trace(graph, {node for made, node in tracer.made if made() is not None})


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

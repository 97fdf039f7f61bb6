"""What a model's own code does with its layers, as far as `torch.fx` can follow it: what is called after what, and what is read.

A trace runs a forward with stand-ins for its inputs: of branches it sees one, and it gives up where numbers decide. So pairs of
layers are found only where every trace agrees, and parts of a model that cannot be traced count only if its code calls them.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn

from qlab.model.state import copied_to_run

__all__ = ["HOOKS", "pairs_to_fuse", "weights_read"]

Pairs = Iterator[tuple[str, str]]

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)  # fmt: skip


def pairs_to_fuse(model: nn.Module) -> list[tuple[str, str]]:
    """Return the names of layers, and of the batch normalization that follows each, always and with nothing in between.

    What follows what is read from the graph that `torch.fx` traces. Of a model that it cannot trace, the parts are traced
    that it can; but not an `nn.Sequential` whose outputs in between such a model may take for itself.
    """
    names = Counter(id(part) for _, part in model.named_modules(remove_duplicate=False))

    def once(pair: tuple[str, str]) -> bool:  # else the rest of the model may use the same layers
        return all(names[id(model.get_submodule(each))] == 1 for each in pair)

    return list(_search(model, "", once))


def weights_read(model: nn.Module) -> set[str]:
    """Return the names of the modules whose parameters or buffers the model's own code computes with, as far as a trace shows."""
    graph = _traced(model)
    nodes = [] if graph is None else [node for node in graph.nodes if node.op == "get_attr"]
    read = {str(node.target).rpartition(".")[0] for node in nodes if any(not _asks_only(user) for user in node.users)}
    return read - {""}  # a model that is a single layer


def _asks_only(node: fx.Node) -> bool:
    """Whether a step of the graph asks a tensor for its dtype, device or size, and not for its numbers."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("device", "dtype", "shape", "ndim")
    return node.op == "call_method" and node.target in ("size", "dim", "numel")


class _Tracer(fx.Tracer):
    """One that sees where buffers are read, as it does for parameters."""

    proxy_buffer_attributes = True


def _search(module: nn.Module, name: str, once: Callable[[tuple[str, str]], bool], *, called: bool = True) -> Pairs:
    """Find the pairs within a module; `called` says whether it is known that the model calls it, and not the parts of it."""
    prefix = f"{name}." if name else ""
    graphs = _graphs(module) if called else None
    if graphs is not None:
        pairs = ((prefix + before, prefix + norm) for before, norm in _pairs(module, graphs))
        yield from (pair for pair in pairs if not name or once(pair))
        return
    in_turn = called and type(module).forward is nn.Sequential.forward and "forward" not in vars(module)
    if in_turn:
        for (a, before), (b, norm) in itertools.pairwise(module.named_children()):
            if type(norm) in NORMS and _can_take(before, norm) and once((prefix + a, prefix + b)):
                yield prefix + a, prefix + b
    for key, child in module.named_children():
        container = type(child).forward in (nn.Sequential.forward, nn.Module.forward)
        whole = in_turn or not container or (called and _only_called(module, key))
        yield from _search(child, prefix + key, once, called=whole)


def _only_called(module: nn.Module, key: str) -> bool:
    """Whether the code of a module, from its forward on, calls a part of it and does nothing else with it."""
    seen, ahead, calls = {"forward"}, ["forward"], 0
    while ahead:
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(getattr(type(module), ahead.pop()))))
        except (OSError, TypeError, SyntaxError):
            return False
        nodes = list(ast.walk(tree))
        called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
        attributes = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"]
        held = {id(attribute.value) for attribute in attributes}
        if any(isinstance(n, ast.Name) and (n.id == "super" or (n.id == "self" and id(n) not in held)) for n in nodes):
            return False
        for attribute in attributes:
            name = attribute.attr
            if (hasattr(nn.Module, name) and name != "training") or (name == key and id(attribute) not in called):
                return False  # such as self.children()
            calls += name == key
            if callable(getattr(type(module), name, None)) and name not in seen:
                seen.add(name)
                ahead.append(name)
    return calls > 0


def _graphs(module: nn.Module) -> list[fx.Graph] | None:
    """What `torch.fx` traces, for arguments that are given and for those left at their defaults; None if it cannot."""
    if not any(type(part) in NORMS for part in module.modules()):
        return []
    parameters = inspect.signature(type(module).forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    graphs = [_traced(module), *([_traced(module, defaults)] if defaults else [])]
    return None if None in graphs else graphs  # type: ignore[return-value]


def _traced(module: nn.Module, arguments: dict[str, Any] | None = None) -> fx.Graph | None:
    """The graph of a module; a copy is traced, since tracing runs its forward."""
    if "forward" in vars(module):
        return None
    try:
        run, _ = copied_to_run(module)
        with torch.random.fork_rng([]):
            return _Tracer().trace(run, concrete_args=arguments)
    except Exception:  # the tracer refuses in many ways
        return None


def _pairs(module: nn.Module, graphs: list[fx.Graph]) -> list[tuple[str, str]]:
    """The pairs that all graphs of a module agree on."""
    modules = dict(module.named_modules())
    each = [_pairs_of_graph(graph, modules) for graph in graphs]
    return [pair for pair in each[0] if all(pair in others for others in each[1:])] if each else []


def _pairs_of_graph(graph: fx.Graph, modules: dict[str, nn.Module]) -> list[tuple[str, str]]:
    found = []
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
    for node in graph.nodes:
        if node.op != "call_module" or type(modules[node.target]) not in NORMS:
            continue
        source = next(iter(node.all_input_nodes), None)
        if source is None or source.op != "call_module" or len(source.users) != 1:
            continue
        pair = source.target, node.target
        if all(calls.count(each) == 1 and each not in read for each in pair) and _can_take(*(modules[each] for each in pair)):
            found.append(pair)
    return found


def _can_take(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether folding is right: classes derived from these, hooks and parametrizations may do more."""
    known = type(layer) in (nn.Conv1d, nn.Conv2d, nn.Linear) and getattr(norm, "running_var", None) is not None
    plain = not any(getattr(part, kind) for part in (layer, norm) for kind in HOOKS) and "forward" not in vars(norm)
    return known and plain and "forward" not in vars(layer) and norm.num_features == layer.weight.shape[0]  # type: ignore[index]

"""What autocast does: the dtype in which each operation of a network runs, read off while it runs.

Autocast changes no weight and no layer. It casts what goes into an operation: to the short dtype for products, which are fast
in it and whose sums are long all the same, and to float32 for what needs its range or its digits, such as a loss, or on CUDA
a softmax. All others run in whatever comes. `autocast_report` shows it for one network and one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qlab._check import one_of
from qlab.model.batches import arguments_of, tensors_in
from qlab.model.state import QUANTIZED, copied_to_run
from qlab.show.table import Table

__all__ = ["autocast_report"]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_report(model: nn.Module, batch: Any, dtype: str = "bfloat16", *, device: str = "cpu") -> Table:
    """Report the dtype in which each operation of a network runs under autocast.

    Parameters
    ----------
    model : nn.Module
        In any mode; a copy is run, so that it is not changed.
    batch : tensor, tuple or dict
        Its inputs: one, positional or keyword arguments.
    dtype : {"bfloat16", "float16"}
        What autocast casts to.
    device : str
        Where the model is, as ``cpu`` or ``cuda``.

    Returns
    -------
    Table
        A row for each operation on floats, in order: the layer it belongs to, its name, the dtypes of what it was given
        (weights are float32 throughout: autocast casts them inside) and of what it gave.

    Raises
    ------
    TypeError
        If the model is none, or the batch none of the three.
    ValueError
        If the dtype is not one of the two, or the model cannot be copied.

    Notes
    -----
    Exact: what torch did. Modules that compute in one piece (nn.MultiheadAttention, nn.LSTM) are one operation.
    Micikevicius et al., "Mixed precision training", 2018. Book: chapter 07.

    Examples
    --------
    >>> import torch, qlab
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.LayerNorm(4))
    >>> qlab.amp.autocast_report(model, torch.ones(2, 4))
    layer  operation   input_dtypes       output_dtype
    0      linear      float32            bfloat16
    1      relu        bfloat16           bfloat16
    2      layer_norm  bfloat16, float32  bfloat16
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")
    one_of("dtype", dtype, tuple(_DTYPES))
    arguments, keywords = arguments_of(batch)
    if any(isinstance(module, QUANTIZED) for module in model.modules()):
        # their first call lays out weights, which is not to be seen
        with torch.no_grad(), torch.random.fork_rng([]):
            copied_to_run(model)(*arguments, **keywords)
    watch = _Watch()
    modules = dict(copied_to_run(model).named_modules())
    hooks = []
    try:
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(watch.entering(name)))
            hooks.append(module.register_forward_hook(watch.leave, always_call=True))
        with torch.no_grad(), torch.random.fork_rng([]), torch.autocast(device, _DTYPES[dtype]), watch:
            modules[""](*arguments, **keywords)
    finally:
        for hook in hooks:  # layers of qlab are the model's own
            hook.remove()
    return Table(("layer", "operation", "input_dtypes", "output_dtype"), watch.rows)


class _Watch(TorchFunctionMode):
    """Writes down what each operation is given and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.inside: list[str] = []
        self.rows: list[tuple[str, str, str, str]] = []

    def entering(self, name: str) -> Callable[..., None]:
        """Return a hook that notes that the module of that name begins."""
        return lambda *_: self.inside.append(name)

    def leave(self, *_: Any) -> None:
        """Note that the innermost module has ended."""
        self.inside.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [x.dtype for x in tensors_in((args, kwargs or {})) if x.is_floating_point()]
        first = next((x for x in tensors_in(output) if x.is_floating_point()), None)
        name = getattr(func, "__name__", str(func))
        if given and first is not None and name != "__get__":
            self.rows.append((self.inside[-1] if self.inside else "", name, _named(given), _named([first.dtype])))
        return output


def _named(dtypes: list[torch.dtype]) -> str:
    return ", ".join(dict.fromkeys(str(dtype).removeprefix("torch.") for dtype in dtypes))

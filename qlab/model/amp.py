"""Mixed precision on a CPU: training as hardware of any format would do it, with all that autocast and GradScaler hide.

    x, w -> forward -> product -> accumulate -> y          y's gradient -> backward -> products -> accumulate -> gradients

`emulate` rounds what goes into the products of linear layers and convolutions, on the way there and on the way back, and their
sums, at the end or on the way (`qlab.model.accumulate`); all else stays in float32. `round_weights` trains without master
weights, `underflow_report` says how much of each gradient a format loses, and `LossScaler` (`qlab.model.loss_scaler`) keeps
gradients from that. `autocast_report` (`qlab.model.autocast`) shows which operation torch's autocast runs in which dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.overrides import TorchFunctionMode

from qlab._check import one_of
from qlab.model.accumulate import REACHED, accumulated
from qlab.model.autocast import autocast_report
from qlab.model.batches import tensors_in
from qlab.model.loss_scaler import LossScaler, parameters_of
from qlab.number.codec import OVERFLOWS, cast
from qlab.number.formats import FORMATS, FloatFormat, Format, IntFormat, TableFormat, get_format
from qlab.number.measures import format_report
from qlab.number.rounding import ROUNDINGS
from qlab.show.table import Table
from qlab.tensor.quantize import fake_quantize
from qlab.tensor.scheme import Scheme, get_scheme

__all__ = ["LossScaler", "autocast_report", "emulate", "round_weights", "underflow_report"]

Rounder = Callable[[Tensor, int], Tensor]
"""Rounds a tensor; the second argument is the axis along which a scheme's blocks run."""

_PARTS = ("forward", "backward", "accumulate")

_PRODUCTS: dict[Any, tuple[int, int]] = {
    functional.linear: (-1, -1),
    functional.conv1d: (-2, -2), functional.conv2d: (-3, -3), functional.conv3d: (-4, -4),
    functional.conv_transpose1d: (-2, -3), functional.conv_transpose2d: (-3, -4), functional.conv_transpose3d: (-4, -5),
}  # fmt: skip
"""The axes of input channels: of the input (where the output has its own), and of the weight."""

_OUT_OF_REACH: dict[Any, str] = {
    functional.multi_head_attention_forward: "nn.MultiheadAttention",
    torch._native_multi_head_attention: "nn.MultiheadAttention",
    torch._transformer_encoder_layer_fwd: "nn.TransformerEncoderLayer",
    torch.lstm: "nn.LSTM", torch.gru: "nn.GRU", torch.rnn_tanh: "nn.RNN", torch.rnn_relu: "nn.RNN",
    torch.lstm_cell: "nn.LSTMCell", torch.gru_cell: "nn.GRUCell", torch.rnn_tanh_cell: "nn.RNNCell",
    torch.rnn_relu_cell: "nn.RNNCell",
    functional.bilinear: "nn.Bilinear",
}  # fmt: skip
"""What multiplies by weights where no rounding can be put in between."""

_BARE = (
    torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv,
    Tensor.mv, torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.einsum, torch.tensordot,
)  # fmt: skip
"""Products of anything; of which axes are channels they know nothing."""


@contextmanager
def emulate(
    forward: str | Format | Scheme = "float8_e4m3fn",
    backward: str | Format | Scheme = "float8_e5m2",
    accumulate: str | Format = "float32",
    master: bool = True,
    *,
    chunk: int | None = None,
    overflow: str = "ieee",
    stochastic: str | tuple[str, ...] = (),
    rng: int | np.random.Generator | None = None,
) -> Iterator[None]:
    """Within this context, the products of linear layers and convolutions are computed as in other formats.

    Parameters
    ----------
    forward : str, Format or Scheme
        What inputs and weights are rounded to before they are multiplied: a format of floating point, or a scheme, which
        scales, such as ``mxfp8_e4m3``. Weights themselves stay as they are.
    backward : str, Format or Scheme
        What the gradient of a product is rounded to before it is multiplied, both for the gradient of the input and for
        that of the weight.
    accumulate : str or Format
        Products are summed in float32, and sums rounded to this format: at the end, once, unless `chunk` is given.
    chunk : int, optional
        After how many products the running sum is rounded to `accumulate`, as in a narrow accumulator: 1 for one that takes
        products one by one, 16 or 32 for those of tensor cores. Slower by as many steps as there are chunks; linear layers
        and convolutions of one or two dimensions only.
    master : bool
        Whether parameters keep their float32. If not, every optimizer's step inside this context is followed by rounding
        all its parameters to `forward`, to nearest unless ``forward`` is among `stochastic`.
    overflow : {"ieee", "saturate"}
        Of plain formats, as in `qlab.cast`. Schemes always saturate.
    stochastic : str or tuple of str
        Which of ``forward``, ``backward``, ``accumulate`` round stochastically; plain formats only.
    rng : int or numpy.random.Generator, optional
        The seed of that; needed for it.

    Raises
    ------
    ValueError
        For unknown names, a chunk that is no positive integer, a format of integers or a table (name a scheme, which scales),
        stochastic rounding without a seed or of a scheme; when the model multiplies in nn.MultiheadAttention, nn.LSTM, nn.GRU
        or nn.RNN, which cannot be reached into, or multiplies a parameter by a bare matmul, addmm or einsum; NaN going to a
        format without NaN, infinities going to a scheme.

    Notes
    -----
    Exact: operands and results are those of `qlab.cast` and `qlab.fake_quantize`, the products those of torch in float32.
    The bias is added to the rounded product, and its gradient comes from the gradient before rounding. Blocks of schemes
    run along the channels of what they round (the input's for weights), in both directions: weights are not quantized a
    second time, along the other axis, for the way back. Products of activations with each other (attention) stay as they
    are. Only forward passes need to lie inside the context; the way back remembers. Activation checkpointing
    (`torch.utils.checkpoint`) computes forwards anew on the way back, where nothing is rounded: leave it out.

    Micikevicius et al., "FP8 formats for deep learning", 2022. Book: chapter 14.

    Examples
    --------
    A sum of ones in bfloat16 stops at 256, where its neighbours are 2 apart.

    >>> import torch, qlab
    >>> ones = torch.ones(1, 1000)
    >>> with qlab.amp.emulate("bfloat16", accumulate="bfloat16", chunk=1):
    ...     torch.nn.functional.linear(ones, ones)
    tensor([[256.]])

    The way back is rounded as well:

    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 1.06)
    >>> with qlab.amp.emulate("float8_e4m3fn", "float8_e5m2"):
    ...     y = layer(torch.tensor([[3.1]]))  # 1.06 -> 1.0, 3.1 -> 3.0
    >>> y.backward(torch.tensor([[1.1]]))  # 1.1 -> 1.0
    >>> y.item(), layer.weight.grad.item()
    (3.0, 3.0)
    """
    named = {"forward": _resolve("forward", forward), "backward": _resolve("backward", backward)}
    named["accumulate"] = get_format(accumulate)
    if not isinstance(named["accumulate"], FloatFormat):
        raise ValueError(f"accumulate={accumulate!r} has no scale; name a format of floating point, such as 'float16'")
    one_of("overflow", overflow, OVERFLOWS)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"chunk={chunk!r} is not allowed; give a number of products from 1, or None to round at the end")
    chosen = (stochastic,) if isinstance(stochastic, str) else tuple(stochastic)
    for part in chosen:
        one_of("stochastic", part, _PARTS)
        if isinstance(named[part], Scheme):
            raise ValueError(f"stochastic={part!r}: {part} is the scheme {named[part]}, which rounds to nearest; name a format")
    if chosen and rng is None:
        raise ValueError(f"stochastic={chosen} needs a seed: give rng=, an int or a numpy Generator")
    generator = None if rng is None else np.random.default_rng(rng)
    rounders = {
        part: _rounder(named[part], "stochastic" if part in chosen else "nearest_even", overflow, generator) for part in _PARTS
    }
    hook = None
    if not master:
        hook = register_optimizer_step_post_hook(lambda optimizer, *_: _round_all(parameters_of(optimizer), rounders["forward"]))
    try:
        with _Emulation(**rounders, chunk=chunk):
            yield
    finally:
        if hook is not None:
            hook.remove()


def round_weights(
    model: nn.Module, fmt: str | Format | Scheme, *, rounding: str = "nearest_even", rng: int | np.random.Generator | None = None
) -> None:
    """Round all floating-point parameters of a model in place, as a training without master weights does after each step.

    Parameters
    ----------
    model : nn.Module
        Its parameters are changed.
    fmt : str, Format or Scheme
        What they are rounded to. They saturate.
    rounding : str
        As in `qlab.cast`. Schemes round to nearest only.
    rng : int or numpy.random.Generator, optional
        For ``stochastic``. A generator goes on from step to step; an int starts the same stream each time.

    Raises
    ------
    ValueError
        For unknown names, stochastic rounding without `rng`, another rounding than to nearest for a scheme.

    Notes
    -----
    Exact. Book: chapter 14.

    Examples
    --------
    >>> import torch, qlab
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, 1.06)
    >>> qlab.amp.round_weights(layer, "bfloat16")
    >>> layer.weight.item()
    1.0625
    """
    _check_model(model)
    resolved = _resolve("fmt", fmt)
    one_of("rounding", rounding, ROUNDINGS)
    if isinstance(resolved, Scheme) and rounding != "nearest_even":
        raise ValueError(f"rounding={rounding!r}, but fmt is the scheme {resolved}; schemes round to nearest: name a format")
    if rounding == "stochastic" and rng is None:
        raise ValueError("rounding='stochastic' needs a seed: give rng=, an int or a numpy Generator")
    generator = None if rng is None else np.random.default_rng(rng)
    _round_all(list(model.parameters()), _rounder(resolved, rounding, "saturate", generator))


def underflow_report(model: nn.Module, fmt: str | Format, *, scale: float = 1.0) -> Table:
    """Report, for each parameter, what a format would make of its gradient.

    Parameters
    ----------
    model : nn.Module
        After a backward pass. Not changed.
    fmt : str or Format
        The format that gradients would be stored in.
    scale : float
        What they would be multiplied by first.

    Returns
    -------
    Table
        A row for each parameter that has a gradient: its elements, the largest magnitude (times the scale), and the shares
        in percent that become zero without being it, become subnormal, overflow, and that are zero anyway.

    Raises
    ------
    ValueError
        If no parameter has a gradient, or a name or the scale is not allowed.

    Notes
    -----
    Exact, as `qlab.format_report`. Book: chapter 14.

    Examples
    --------
    >>> import torch, qlab
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> layer(torch.tensor([[1e-9, 1.0]])).backward()
    >>> qlab.amp.underflow_report(layer, "float16")
    tensor  count  absmax  underflow  subnormal  overflow  zeros
    weight      2       1         50          0         0      0
    """
    _check_model(model)
    fmt = get_format(fmt)
    if not (0 < scale < math.inf):
        raise ValueError(f"scale={scale!r} is not allowed; give a positive, finite number")
    gradients = {name: p.grad.detach() * scale for name, p in model.named_parameters() if p.grad is not None and p.numel()}
    if not gradients:
        raise ValueError("no parameter of the model has a gradient; call loss.backward() first")
    rows = []
    for name, gradient in gradients.items():
        report = format_report(gradient.cpu(), fmt)
        shares = (100 * share for share in (report.underflow, report.subnormal, report.overflow, report.zeros))
        rows.append((name, gradient.numel(), float(gradient.abs().max()), *shares))
    return Table(("tensor", "count", "absmax", "underflow", "subnormal", "overflow", "zeros"), rows)


# --- inside ----------------------------------------------------------------------------------------------------------
class _Emulation(TorchFunctionMode):
    """Catches the products on their way into torch."""

    def __init__(self, forward: Rounder, backward: Rounder, accumulate: Rounder, chunk: int | None) -> None:
        super().__init__()
        self.forward, self.backward, self.accumulate, self.chunk = forward, backward, accumulate, chunk

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PRODUCTS:
            return self._product(func, *args, **(kwargs or {}))
        if func in _OUT_OF_REACH:
            where = _OUT_OF_REACH[func]
            raise ValueError(f"emulate cannot round inside of {where}; build it from Linear layers, or leave it outside")
        if func in _BARE and any(_is_weight(x) for x in tensors_in((args, kwargs or {}))):
            raise ValueError(
                f"emulate rounds products with weights in torch.nn.functional.linear and convolutions, not in {func.__name__}; "
                "write the product as functional.linear(x, weight)"
            )
        return func(*args, **(kwargs or {}))

    def _product(self, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None, *args: Any, **how: Any) -> Tensor:
        axis, weight_axis = _PRODUCTS[func]
        x = _rounded(input, self.forward, self.accumulate, axis)
        w = _rounded(weight, self.forward, self.accumulate, weight_axis)
        if self.chunk is None:
            product = func(x, w, None, *args, **how)
        elif func in REACHED:
            product = accumulated(func, x, w, self.accumulate, self.chunk, *args, **how)
        else:
            where = "linear layers, conv1d and conv2d"
            raise ValueError(f"emulate sums by chunks in {where}, not in {func.__name__}; leave out chunk")
        y = _rounded(product, self.accumulate, self.backward, axis)
        return y if bias is None else y + bias.reshape(-1, *[1] * (-1 - axis))


def _is_weight(x: Tensor) -> bool:
    """Whether a tensor is a parameter, or a view of one."""
    return isinstance(x, nn.Parameter) or isinstance(x._base, nn.Parameter)


class _Rounded(torch.autograd.Function):
    """Rounds values on the way there, and gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Rounder, back: Rounder, axis: int) -> Tensor:
        ctx.back, ctx.axis = back, axis
        return there(x, axis)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return ctx.back(gradient, ctx.axis), None, None, None


def _rounded(x: Tensor, there: Rounder, back: Rounder, axis: int) -> Tensor:
    values: Tensor = _Rounded.apply(x, there, back, axis)  # type: ignore[no-untyped-call]
    return values


def _resolve(argument: str, what: str | Format | Scheme) -> Format | Scheme:
    """A format of floating point, or else a scheme."""
    if isinstance(what, (FloatFormat, Scheme)):
        return what
    if isinstance(what, (IntFormat, TableFormat)):
        raise ValueError(f"{argument}={what.name} has no scale; name a scheme that scales, such as 'int8-channel' or 'nf4'")
    try:
        fmt: Any = get_format(what)
    except ValueError:
        fmt = None
    if isinstance(fmt, FloatFormat):
        return fmt
    try:
        return get_scheme(what)
    except ValueError as error:
        near = "" if fmt is None else f"; the format {fmt.name} alone has no scale"
        raise ValueError(f"{argument}={what!r} is neither a floating-point format nor a scheme ({error}){near}") from None


def _rounder(fmt: Format | Scheme, rounding: str, overflow: str, generator: np.random.Generator | None) -> Rounder:
    if isinstance(fmt, Scheme):
        return lambda x, axis: fake_quantize(x.detach().movedim(axis, -1), fmt).movedim(-1, axis)
    if fmt == FORMATS["float32"] and rounding == "nearest_even":
        return lambda x, axis: x.detach().to(torch.float32).to(x.dtype).view_as(x)
    options: dict[str, Any] = {"rng": generator} if rounding == "stochastic" else {}
    return lambda x, axis: cast(x.detach(), fmt, rounding=rounding, overflow=overflow, **options)


def _round_all(parameters: list[Any], rounder: Rounder) -> None:
    with torch.no_grad():
        rounded = [(p, rounder(p, -1)) for p in parameters if p.is_floating_point()]  # all, or an error before any is changed
        for p, values in rounded:
            p.copy_(values)


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a torch.nn.Module, not {type(model).__name__}")

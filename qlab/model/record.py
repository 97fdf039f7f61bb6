"""What a model's layers see: batches are run through it, and each layer's inputs are gathered as they pass by.

Methods of quantization want to know of a layer's inputs how large each channel is, which channels go together, and what a few
of them look like. `Inputs` holds just that, in memory that does not grow with the number of batches. A copy of the model is
watched through forward hooks, in eval mode; it shares the parameters, and what a forward keeps goes with it. Inputs of a
convolution are the patches that its kernel sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qlab._progress import progress
from qlab.model.batches import GIVE, arguments_of, refuse_single
from qlab.model.state import copied_to_run

__all__ = ["Inputs", "collect_inputs", "inputs_of", "patches", "run_batches"]

SAMPLE = 512
"""Rows of inputs that are kept, at most."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
"""Layers whose inputs are collected."""


class Watches(Protocol):
    """What is fed with a layer's inputs: an observer."""

    def update(self, x: Tensor) -> None:
        """Take in one batch of inputs."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is known of the inputs of a layer. Every token (or patch) is one row x of `in` channels.

    Attributes
    ----------
    hessian : float64 tensor of shape (in, in)
        ``2 / count * sum of x x^T``: the second derivatives of the mean squared error of an output, by its weights.
    count : int
        How many rows were seen.
    mean_abs, absmax, mean : float32 tensors of shape (in,)
        Of each channel, over all rows.
    sample : float32 tensor of shape (rows, in)
        Every 1st, 2nd, 4th, ... row, so that there are at most 512.
    """

    hessian: Tensor
    count: int
    mean_abs: Tensor
    absmax: Tensor
    mean: Tensor
    sample: Tensor

    def output_error(self, difference: Tensor) -> float:
        """Return the mean of ``|difference @ x|**2`` over all rows x: what an error of the weights does to the outputs.

        Parameters
        ----------
        difference : tensor of shape (out, in)
            The quantized weight less the weight.
        """
        wide = difference.detach().to("cpu", torch.float64)  # (out, in)
        return float(((wide @ self.hessian) * wide).sum()) / 2


class _Gathered:
    """Running sums over rows: the memory is that of one Hessian and 1024 rows."""

    def __init__(self, channels: int) -> None:
        self.products = torch.zeros(channels, channels, dtype=torch.float64)
        self.sums = torch.zeros(channels, dtype=torch.float64)
        self.magnitudes = torch.zeros(channels, dtype=torch.float64)
        self.absmax = torch.zeros(channels)
        self.sample = torch.zeros(0, channels)
        self.count, self.stride = 0, 1

    def add(self, rows: Tensor) -> None:
        """Take in rows of shape (n, channels), float32 and finite."""
        self.products += rows.T @ rows
        self.sums += rows.sum(0, dtype=torch.float64)
        magnitudes = rows.abs()
        self.magnitudes += magnitudes.sum(0, dtype=torch.float64)
        self.absmax = torch.maximum(self.absmax, magnitudes.amax(0))
        kept = rows[-self.count % self.stride :: self.stride]  # rows number 0, stride, 2 stride, ... of all
        self.count += len(rows)
        self.sample = torch.cat([self.sample, kept])
        while len(self.sample) > SAMPLE:
            self.sample = self.sample[::2].clone()
            self.stride *= 2

    def inputs(self) -> Inputs:
        n = self.count
        mean, mean_abs = (self.sums / n).float(), (self.magnitudes / n).float()
        return Inputs(self.products * (2 / n), n, mean_abs, self.absmax, mean, self.sample)


def inputs_of(rows: Tensor) -> Inputs:
    """Return the `Inputs` of rows that are all there.

    Parameters
    ----------
    rows : tensor of shape (*lead, in)
        Finite, at least one row.

    Raises
    ------
    ValueError
        If there is no row, or NaN or an infinity.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.record import inputs_of
    >>> inputs = inputs_of(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> inputs.hessian.tolist(), inputs.mean_abs.tolist()
    ([[10.0, -2.0], [-2.0, 4.0]], [2.0, 1.0])
    """
    flat = rows.detach().to("cpu", torch.float32).reshape(-1, rows.shape[-1])
    if len(flat) == 0:
        raise ValueError(f"rows of shape {tuple(rows.shape)} hold no row; at least one is needed")
    _refuse_not_finite(flat, "rows hold")
    gathered = _Gathered(flat.shape[1])
    gathered.add(flat)
    return gathered.inputs()


def patches(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the rows that a layer multiplies its flattened weight by.

    Parameters
    ----------
    layer : Linear, Conv1d or Conv2d
    x : tensor
        The layer's input.

    Returns
    -------
    rows : tensor of shape (n, in)
        For convolutions `in` is channels times the kernel's size. Groups of a grouped one are pooled: each row holds the
        channels of one group.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.record import patches
    >>> patches(torch.nn.Conv1d(1, 1, 2), torch.tensor([[1.0, 2.0, 3.0]])).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return x.reshape(-1, x.shape[-1])
    flat = isinstance(layer, nn.Conv1d)
    if x.ndim == (2 if flat else 3):
        x = x.unsqueeze(0)  # a single picture without a batch
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    sizes = [layer.kernel_size, layer.dilation, layer.stride]
    if flat:
        x, sizes = x.unsqueeze(-2), [(1, *size) for size in sizes]  # a picture of height 1
    kernel, dilation, stride = sizes
    columns = F.unfold(x, kernel, dilation=dilation, stride=stride)  # (n, channels * kernel, places)
    batch, rows, places = columns.shape
    grouped = columns.reshape(batch, layer.groups, rows // layer.groups, places)
    return grouped.transpose(2, 3).reshape(-1, rows // layer.groups)


def collect_inputs(
    model: nn.Module,
    batches: Iterable[Any],
    names: Iterable[str] | None = None,
    *,
    observers: Mapping[str, Watches] | None = None,
) -> dict[str, Inputs]:
    """Run batches through a model and return what its layers saw.

    Parameters
    ----------
    model : Module
        Run in eval mode, without gradients; not changed.
    batches : iterable
        Each a tensor, a tuple of positional arguments, or a dict of keyword arguments.
    names : iterable of str, optional
        Of the Linear, Conv1d and Conv2d layers to collect from; all of them unless given.
    observers : mapping of name to observer, optional
        `observer.update(x)` is called with the first input of the module of that name (any module), batch by batch.

    Returns
    -------
    inputs : dict of name to Inputs
        A layer that the model did not call is missing, unless it was asked for by name.

    Raises
    ------
    ValueError
        If there are no batches, a name is not a layer's, a layer that was asked for is never called, or inputs of a layer
        hold NaN or infinities.
    TypeError
        If a batch is none of the three.

    Notes
    -----
    Products of a batch are float32, their sums float64. Tolerance: 1e-6 of the largest entry.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.record import collect_inputs
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    >>> inputs = collect_inputs(model, [torch.ones(3, 2, 2)])
    >>> list(inputs), inputs["1"].count, inputs["1"].sample.shape
    (['1'], 3, torch.Size([3, 4]))
    """
    layers = _layers(model, names)
    watched = dict(observers or {})
    modules = dict(model.named_modules())
    if unknown := sorted(set(watched) - set(modules)):
        raise ValueError(f"observers name {unknown}, which the model does not have; its modules are {sorted(modules)}")
    gathered: dict[str, _Gathered] = {}

    def gather(name: str, layer: nn.Module, x: Tensor) -> None:
        rows = patches(layer, x.detach().float()).cpu()
        if len(rows) == 0:
            return
        _refuse_not_finite(rows, f"the inputs of layer {name!r} hold")
        if name not in gathered:
            gathered[name] = _Gathered(rows.shape[1])
        gathered[name].add(rows)

    watching: list[tuple[nn.Module, Callable[[Tensor], None]]] = []
    for name, layer in layers.items():
        watching.append((layer, lambda x, name=name, layer=layer: gather(name, layer, x)))  # type: ignore[misc]
    for name, observer in watched.items():
        watching.append((modules[name], lambda x, observer=observer: observer.update(x.detach())))  # type: ignore[misc]
    for _ in run_batches(model, batches, watching):
        pass
    if names is not None and (missing := [name for name in layers if name not in gathered]):
        raise ValueError(f"no batch reached the layers {missing}; leave them out, or give batches that use them")
    return {name: gathered[name].inputs() for name in layers if name in gathered}


def run_batches(
    model: nn.Module,
    batches: Iterable[Any],
    given: Iterable[tuple[nn.Module, Callable[[Tensor], None]]] = (),
    made: Iterable[tuple[nn.Module, Callable[[Any], None]]] = (),
) -> Iterator[Any]:
    """Run batches through a copy of a model in eval mode, and yield its outputs.

    What a forward keeps (a cache, a counter) goes with the copy, which shares the parameters and the layers of
    `qlab.model.layers`; torch's random numbers go on as if nothing had been run.

    Parameters
    ----------
    model : Module
    batches : iterable
    given : pairs of a module and a function
        Before the module runs, the function gets the first tensor that it is given.
    made : pairs of a module and a function
        After it has run, the function gets its output.

    Raises
    ------
    ValueError
        If there are no batches, or the model cannot be copied.
    TypeError
        If a batch is not a tensor, a tuple or a dict, or there is a single one.
    """
    refuse_single(batches, "batches")
    names = {module: name for name, module in model.named_modules()}
    run = copied_to_run(model)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    training = [(module, module.training) for module in run.modules()]
    hooks: list[Any] = []
    count = 0
    try:
        for module, function in given:
            hooks.append(run.get_submodule(names[module]).register_forward_pre_hook(_before(function), with_kwargs=True))
        for module, after in made:
            hooks.append(run.get_submodule(names[module]).register_forward_hook(_after(after)))
        run.eval()
        for batch in progress(batches, "calibration"):
            arguments, keywords = arguments_of(batch)
            # compiled code would skip new hooks
            with torch.no_grad(), torch.random.fork_rng(devices), torch.compiler.set_stance("force_eager"):
                try:
                    output = run(*arguments, **keywords)
                except Exception as error:
                    error.add_note(f"This was batch {count} of those that are run through the model.")
                    raise
            count += 1
            yield output
    finally:
        for hook in hooks:  # layers of qlab are the model's own
            hook.remove()
        for module, was in training:
            module.training = was
    if not count:
        raise ValueError(f"calibration is empty; {GIVE}")


# --- inside ----------------------------------------------------------------------------------------------------------
def _layers(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Module]:
    known: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, LAYERS)}
    if names is None:
        return known
    asked = list(names)
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"names {unknown} are no Linear, Conv1d or Conv2d of the model; there are {list(known)}")
    return {name: known[name] for name in asked}


def _before(function: Callable[[Tensor], None]) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        first = next((value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)), None)
        if first is not None:
            function(first)

    return hook


def _after(function: Callable[[Any], None]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    return lambda module, arguments, output: function(output)


def _refuse_not_finite(rows: Tensor, what: str) -> None:
    if wrong := int((~torch.isfinite(rows)).sum()):
        raise ValueError(f"{what} {wrong} infinities or NaN; clean the batches, as with torch.nan_to_num")

"""SmoothQuant: hand the difficulty of large input channels over to the weights.

Xiao, Lin, Seznec, Wu, Demouth and Han, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", 2022. A few channels of an input are a hundred times larger than the others, and a scale for the whole token wastes its
codes on them. Dividing channel j of the input by s_j and multiplying the weight's by it changes nothing before rounding:

    y = (x / s) (W s)^T            s_j = max|x_j|**alpha / max|W_j|**(1 - alpha)

The division is done once, in what comes before: a norm's weight and bias, or a linear layer's rows. alpha = 1/2 makes both sides
equally hard; `search_alpha` asks the quantized outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from qlab.model.record import Inputs
from qlab.tensor.quantize import fake_quantize
from qlab.tensor.scheme import Scheme, get_scheme

__all__ = ["ALPHAS", "search_alpha", "smooth", "smoothing_scales"]

ALPHAS = tuple(step / 20 for step in range(21))
"""What `search_alpha` tries: 0 to 1."""

NORMS = (nn.LayerNorm, nn.RMSNorm)


def smoothing_scales(inputs_absmax: Tensor, weights: Iterable[Tensor], alpha: float = 0.5) -> Tensor:
    """Return the factors that inputs are divided by and weights multiplied by.

    Parameters
    ----------
    inputs_absmax : tensor of shape (in,)
        The largest magnitude of each input channel.
    weights : tensors of shape (out, in)
        Of all layers that read these inputs.
    alpha : float
        How much of the difficulty the weights take: 0 to 1.

    Returns
    -------
    scales : float32 tensor of shape (in,)
        Positive; 1 for channels whose inputs or weights are all zero.

    Raises
    ------
    ValueError
        If `alpha` is not allowed or the shapes do not fit.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.smoothquant import smoothing_scales
    >>> smoothing_scales(torch.tensor([64.0, 1.0]), [torch.tensor([[0.25, -1.0]])])
    tensor([16.,  1.])
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r} is not allowed; give a number from 0 (inputs stay) to 1 (inputs are all alike)")
    tops = []
    for weight in weights:
        if weight.ndim != 2 or weight.shape[1:] != inputs_absmax.shape:
            raise ValueError(
                f"a weight has the shape {tuple(weight.shape)}, and inputs_absmax {tuple(inputs_absmax.shape)}; "
                "the weight's second number must be the inputs' channels"
            )
        tops.append(weight.detach().to("cpu", torch.float64).abs().amax(0))
    if not tops:
        raise ValueError("there are no weights; give those of the layers that read these inputs")
    x, w = inputs_absmax.detach().to("cpu", torch.float64), torch.stack(tops).amax(0)
    scales = (x**alpha / w ** (1 - alpha)).float()
    usable = (x > 0) & (w > 0) & torch.isfinite(scales) & (scales > 0)
    return torch.where(usable, scales, torch.ones(()))


def smooth(
    before: nn.Module, linears: Sequence[nn.Linear], inputs_absmax: Tensor, alpha: float = 0.5
) -> tuple[nn.Module, list[nn.Linear]]:
    """Return a norm (or linear layer) and the linear layers after it, smoothed: together they compute what they did.

    Parameters
    ----------
    before : LayerNorm, RMSNorm or Linear
        Whose output is what `linears` read, and nothing else reads. A norm needs a weight (``elementwise_affine``).
    linears : sequence of Linear
    inputs_absmax : tensor of shape (in,)
        Of the inputs of `linears`, see `record.Inputs`.
    alpha : float
        0 to 1; `search_alpha` finds one.

    Returns
    -------
    before, linears
        New modules; those given are not changed.

    Raises
    ------
    ValueError
        If shapes do not fit, `alpha` is not allowed, or a norm has no weight.
    TypeError
        If `before` or a layer is of another kind.

    Notes
    -----
    Tolerance: the function is the same up to 1e-5. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.smoothquant import smooth
    >>> norm, linear, x = torch.nn.LayerNorm(4), torch.nn.Linear(4, 3), torch.randn(5, 4)
    >>> new_norm, [new_linear] = smooth(norm, [linear], norm(x).abs().amax(0))
    >>> torch.allclose(new_linear(new_norm(x)), linear(norm(x)), atol=1e-5)
    True
    """
    for layer in linears:
        if not isinstance(layer, nn.Linear):
            raise TypeError(f"layers after are Linear, not {type(layer).__name__}")
    if not isinstance(before, (*NORMS, nn.Linear)):
        raise TypeError(f"what comes before is a LayerNorm, RMSNorm or Linear, not {type(before).__name__}")
    if before.weight is None:
        raise ValueError(f"{before} has no weight to take the scales; make it with elementwise_affine=True")
    if before.weight.shape[:1] != inputs_absmax.shape or before.weight.ndim > (1 + isinstance(before, nn.Linear)):
        raise ValueError(
            f"{before} gives {len(before.weight)} channels, and inputs_absmax has the shape "
            f"{tuple(inputs_absmax.shape)}; they must be as many"
        )
    scales = smoothing_scales(inputs_absmax, [layer.weight for layer in linears], alpha)
    first, after = deepcopy(before), [deepcopy(layer) for layer in linears]
    with torch.no_grad():
        factors = scales.to(first.weight.device)
        first.weight.copy_(first.weight / (factors[:, None] if isinstance(first, nn.Linear) else factors))
        bias = getattr(first, "bias", None)
        if bias is not None:
            bias.copy_(bias / factors)
        for layer in after:
            layer.weight.copy_(layer.weight * scales.to(layer.weight.device))
    return first, after


def search_alpha(
    linears: Sequence[nn.Linear],
    inputs: Inputs,
    *,
    weights: str | Scheme = "int8_channel",
    activations: str | Scheme = "int8",
    alphas: Sequence[float] = ALPHAS,
) -> float:
    """Return the alpha with the least error of the quantized layers' outputs on the sample.

    Parameters
    ----------
    linears : sequence of Linear
        That read the same inputs.
    inputs : Inputs
        Of which the largest magnitudes and the sample are used.
    weights, activations : str or Scheme
        How the weights and the inputs will be quantized.
    alphas : sequence of float
        Which to try, from 0 to 1; of equals the first wins.

    Returns
    -------
    alpha : float

    Raises
    ------
    ValueError
        If there is no alpha to try, or the shapes do not fit.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.smoothquant import search_alpha
    >>> from qlab.model.record import inputs_of
    >>> x = torch.tensor([[100.0, 0.2, 0.3], [-90.0, 0.1, -0.4]])
    >>> linear = torch.nn.Linear(3, 1)
    >>> _ = torch.nn.init.ones_(linear.weight)
    >>> search_alpha([linear], inputs_of(x), alphas=(0.0, 0.5, 1.0))
    0.5
    """
    if not alphas:
        raise ValueError("alphas is empty; give numbers from 0 to 1 to try")
    weight_scheme, input_scheme = get_scheme(weights), get_scheme(activations)
    matrices = [layer.weight.detach().to("cpu").float() for layer in linears]
    sample = inputs.sample
    errors = []
    for alpha in alphas:
        scales = smoothing_scales(inputs.absmax, matrices, alpha)
        x = torch.from_numpy(fake_quantize((sample / scales).numpy(), input_scheme))  # (rows, in)
        error = 0.0
        for matrix in matrices:
            rounded = torch.from_numpy(fake_quantize((matrix * scales).numpy(), weight_scheme))
            error += float((x @ rounded.T - sample @ matrix.T).double().square().sum())
        errors.append(error)
    return float(alphas[errors.index(min(errors))])

"""AWQ: the few weights that large inputs meet matter most; stretch them before rounding.

Lin, Tang, Tang, Yang, Dang, Gan and Han, "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", 2023.
Input channel j of the weight is multiplied by s_j, and the input divided by it, which changes nothing before rounding:

    y = (x / s) (W s)^T  ~  (x / s) Q(W s)^T            s_j = mean|x_j|**alpha

The rounding error of a channel is then s_j times smaller where it meets its input. alpha = 0 is rounding to nearest, alpha = 1
makes all channels of the input alike; between them lies the best, which is searched on a grid by the error of the outputs.
Nothing is trained. The layer multiplies its input by 1/s, or what comes before it takes 1/s over (see `smoothquant.smooth`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from qlab.model.methods.grid import checked_inputs, weight_array
from qlab.model.record import Inputs
from qlab.tensor.qtensor import QTensor
from qlab.tensor.quantize import fake_quantize, quantize
from qlab.tensor.scheme import Scheme, get_scheme

__all__ = ["quantize_weight", "search_scales"]


def quantize_weight(
    weight: Tensor, inputs: Inputs | None, scheme: str | Scheme, *, scales: Tensor | None = None, steps: int = 20
) -> QTensor:
    """Quantize a weight whose input channels are stretched: ``W * s``.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    inputs : Inputs
        Of which the mean magnitudes and the sample are used; not needed where `scales` are given.
    scheme : str or Scheme
    scales : tensor of shape (in,), optional
        The factors s; those of `search_scales` unless given. The layer must multiply its input by ``1 / s``.
    steps : int
        For the search.

    Returns
    -------
    QTensor
        Of NumPy arrays: of ``W * s``.

    Raises
    ------
    ValueError
        If there are neither inputs nor scales, or they do not fit the weight.

    Notes
    -----
    Tolerance: the error of the outputs on the sample is that of rounding to nearest, or less. Book: part IV.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods import awq
    >>> from qlab.model.record import inputs_of
    >>> weight, inputs = torch.tensor([[0.7, 0.14]]), inputs_of(torch.tensor([[0.1, 9.0], [0.1, -9.0]]))
    >>> s = awq.search_scales(weight, inputs, "int4")
    >>> qt = awq.quantize_weight(weight, inputs, "int4", scales=s)
    >>> [round(value, 3) for value in (torch.from_numpy(qt.dequantize()) / s)[0].tolist()]  # nearest gives 0.7 and 0.1
    [0.713, 0.14]
    """
    array = weight_array(weight)
    if scales is None:
        scales = search_scales(weight, inputs, scheme, steps=steps)
    factors = np.asarray(scales.detach().to("cpu").float())
    if factors.shape != array.shape[1:] or not (np.isfinite(factors).all() and (factors > 0).all()):
        raise ValueError(
            f"scales of shape {factors.shape} from {factors.min(initial=np.inf):g} are not allowed; "
            f"give {array.shape[1]} positive factors, one for each input channel"
        )
    return quantize(array * factors, scheme)


def search_scales(weight: Tensor, inputs: Inputs | None, scheme: str | Scheme, *, steps: int = 20) -> Tensor:
    """Return the factors s of the input channels with the least error of the outputs.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    inputs : Inputs
    scheme : str or Scheme
    steps : int
        How many alphas from 0 on, below 1, are tried; at least 1.

    Returns
    -------
    scales : float32 tensor of shape (in,)
        Positive, ``sqrt(max * min) = 1``; all 1 where no alpha is better than 0.

    Raises
    ------
    ValueError
        If there are no inputs, or they do not fit the weight, or `steps` is not allowed.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods import awq
    >>> from qlab.model.record import inputs_of
    >>> awq.search_scales(torch.tensor([[0.5, -1.0]]), inputs_of(torch.ones(3, 2)), "int4")
    tensor([1., 1.])
    """
    array, scheme = weight_array(weight), get_scheme(scheme)
    known = checked_inputs(inputs, array, "AWQ")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} is not allowed; give how many alphas to try, such as 20")
    products = (known.sample.T @ known.sample).double()  # (in, in), the sample's part of the Hessian
    magnitudes = known.mean_abs.numpy().astype(np.float64).clip(1e-4)  # as the original: a silent channel is not lost
    best, least = np.ones(array.shape[1], np.float32), float("inf")
    for step in range(steps):
        stretched = magnitudes ** (step / steps)
        factors = np.asarray(stretched / np.sqrt(stretched.max() * stretched.min()), np.float32)
        difference = torch.from_numpy(fake_quantize(array * factors, scheme) / factors - array).double()
        error = float(((difference @ products) * difference).sum())  # |X (Q(W s) / s - W)^T|^2
        if error < least:
            best, least = factors, error
    return torch.from_numpy(best)

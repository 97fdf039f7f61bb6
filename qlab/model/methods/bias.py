"""Bias correction: take the mean of the error out of the outputs.

Nagel, van Baalen, Blankevoort and Welling, "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
section 4.2. Rounding errors of a row of weights do not cancel where inputs are not zero on average (after a ReLU, say):

    E[Q x] - E[W x] = (Q - W) E[x]            so            bias <- bias + (W - Q) E[x]

Of the mean squared error of an output, this removes the square of the mean and leaves the variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qlab.model.methods.grid import checked_inputs, weight_array
from qlab.model.record import Inputs
from qlab.tensor.qtensor import QTensor

__all__ = ["correct_bias"]


def correct_bias(weight: Tensor, quantized: QTensor | Tensor, inputs: Inputs | None, bias: Tensor | None = None) -> Tensor:
    """Return the bias that keeps the mean outputs of a layer whose weight was quantized.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    quantized : QTensor or tensor of shape (out, in)
        What became of the weight. Of AWQ, divide the values by its scales first.
    inputs : Inputs
        Of which the mean is used. Of a grouped convolution that is the mean of all groups: then this is an approximation.
    bias : tensor of shape (out,), optional
        The bias so far; not changed.

    Returns
    -------
    bias : tensor of shape (out,)
        In the dtype of `bias`, else of `weight`; on the CPU.

    Raises
    ------
    ValueError
        If there are no inputs, or shapes do not fit.

    Notes
    -----
    Tolerance: means agree to 1e-6 of the outputs. Sums are float64.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods.bias import correct_bias
    >>> from qlab.model.record import inputs_of
    >>> weight, quantized = torch.tensor([[0.5, 0.25]]), torch.tensor([[0.5, 0.5]])
    >>> correct_bias(weight, quantized, inputs_of(torch.tensor([[1.0, 3.0], [1.0, 5.0]])))
    tensor([-1.])
    """
    array = weight_array(weight)
    known = checked_inputs(inputs, array, "bias correction")
    values = torch.as_tensor(quantized.dequantize() if isinstance(quantized, QTensor) else quantized.detach()).cpu()
    if values.shape != array.shape or (bias is not None and bias.shape != array.shape[:1]):
        raise ValueError(
            f"the weight has the shape {array.shape}, the quantized one {tuple(values.shape)}, the bias "
            f"{None if bias is None else tuple(bias.shape)}; they must be (out, in), (out, in) and (out,)"
        )
    shift = (torch.from_numpy(array).double() - values.double()) @ known.mean.double()  # (out,)
    if bias is None:
        return shift.to(weight.dtype)
    return (bias.detach().cpu().double() + shift).to(bias.dtype)

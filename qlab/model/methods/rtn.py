"""Round to nearest: the method that all others are measured by.

    code = nearest(W / scale)

Each weight becomes the nearest value of its block's grid; nothing is known of the inputs. It is best for each weight alone, and
at 8 bits good enough for most networks; what it cannot do is let the error of one weight make up for another's.
"""

from __future__ import annotations

from torch import Tensor

from qlab.model.methods.grid import weight_array
from qlab.model.record import Inputs
from qlab.tensor.qtensor import QTensor
from qlab.tensor.quantize import quantize
from qlab.tensor.scheme import Scheme

__all__ = ["quantize_weight"]


def quantize_weight(weight: Tensor, inputs: Inputs | None, scheme: str | Scheme) -> QTensor:
    """Quantize a weight by rounding to nearest.

    Parameters
    ----------
    weight : tensor of shape (out, in)
    inputs : Inputs or None
        Not looked at.
    scheme : str or Scheme

    Returns
    -------
    QTensor
        Of NumPy arrays: what ``qlab.quantize(weight.numpy(), scheme)`` returns. Exact.

    Raises
    ------
    ValueError, TypeError
        As in `qlab.quantize`, or if the weight is not two-dimensional.

    Examples
    --------
    >>> import torch
    >>> from qlab.model.methods import rtn
    >>> rtn.quantize_weight(torch.tensor([[-0.7, 0.22], [0.05, 0.3]]), None, "int4").dequantize()
    array([[-0.7,  0.2],
           [ 0. ,  0.3]], dtype=float32)
    """
    return quantize(weight_array(weight), scheme)

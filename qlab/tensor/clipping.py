"""Which values a scheme clips: those beyond the range of their block, whose error is more than that of rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab._pieces import Array, Scratch
from qlab.number.arrays import numbers
from qlab.number.formats import IntFormat
from qlab.tensor.affine import largest_of
from qlab.tensor.quantize import _fit, _run, _scaled, _values, fake_quantize
from qlab.tensor.scheme import Fitted, Scheme, get_scheme
from qlab.tensor.walk import Place, Walk

__all__ = ["SLACK", "clips_nothing", "fake_quantize_and_inside"]

SLACK = 4
"""How many units in the last place a scaled value may lie beyond the ends: its scale was rounded, and so was the quotient."""


def clips_nothing(scheme: Scheme) -> bool:
    """Whether the rule itself lets no value lie outside of its block's range."""
    fmt, scale = scheme.format, scheme.scale
    if isinstance(fmt, Fitted) or -fmt.min < fmt.max:
        return False  # beyond the last values, or negative
    return (scale.stored is None or scale.late) and scale.rule in ("absmax", "power_of_two")


def fake_quantize_and_inside(x: Any, scheme: str | Scheme) -> tuple[Array, Array]:
    """Return what `fake_quantize` returns, and where values lay inside of the range of their block.

    Parameters
    ----------
    x : array_like of real numbers
        Finite values.
    scheme : str or Scheme
        Any but a GGUF type.

    Returns
    -------
    values : array of the shape of x
    inside : bool array of the shape of x
        False where the scaled value was beyond the ends of the format; for integers, where its code was before it was
        clipped, as in PyTorch.

    Raises
    ------
    ValueError
        As `fake_quantize`, and for GGUF types.

    Notes
    -----
    Exact at the given scale. What is beyond the ends by no more than `SLACK` units in the last place counts as inside.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.clipping import fake_quantize_and_inside
    >>> values, inside = fake_quantize_and_inside(np.float32([0.5, -3, 0.2, 0.3]), "ternary-mean")
    >>> values.tolist(), inside.tolist()
    ([1.0, -1.0, 0.0, 0.0], [True, False, True, True])
    """
    scheme, array = get_scheme(scheme), numbers(x)
    if scheme.layout is not None:
        raise ValueError(f"{scheme}: which values a GGUF type clips is not known; use gradient='pass'")
    late = fake_quantize(array, scheme) if scheme.scale.late else None
    fmt, scheme = _fit(array, scheme)
    step = Walk(array, scheme, fmt)
    values, inside = np.empty(array.shape, step.kind), np.empty(array.shape, bool)
    parts = [(into.view, mask.view) for into, mask in zip(step.regions_of(values), step.regions_of(inside), strict=True)]
    slack = step.kind.type(1 + SLACK * float(np.finfo(step.kind.type).eps) / 2)
    limit = largest_of(np.dtype(array.dtype if array.dtype.kind in "fV" else step.kind))
    lowest, highest = step.kind.type(fmt.min) * slack, step.kind.type(fmt.max) * slack

    def finish(rows: Array, scale: Array, zero: Array | None, region: int, place: Place, scratch: Scratch) -> None:
        into, mask = (view[place] for view in parts[region])
        rounded = scratch("values out", step.kind, rows.size)
        _values(rows, scale, zero, rounded, limit, step, scratch)
        into[...] = rounded.reshape(into.shape)
        if scheme.zero == "min" and zero is not None:
            rows = rows - zero[:, None]
        scaled = _scaled(rows, scale, step, scratch).reshape(rows.shape)
        if isinstance(fmt, IntFormat):
            np.rint(scaled, out=scaled)
        if zero is not None:
            np.add(scaled, zero[:, None] if scheme.zero == "integer" else step.kind.type(fmt.min), out=scaled)
        mask[...] = ((scaled >= lowest) & (scaled <= highest)).reshape(mask.shape)

    _run(step, finish)
    if late is not None:
        return np.asarray(late), inside
    kind = array.dtype if array.dtype.kind == "f" else step.kind
    return values.astype(kind, copy=False), inside

"""What other libraries do where they disagree: named policies, each a rounding to nearest with its own edge cases.

``torch``
    As torch 2.13: float8_e4m3fn saturates (in 2.11 it gave NaN); the other formats overflow to infinity or NaN.
    float8_e8m0fnu ignores the sign.
``ml_dtypes``
    Overflow goes to infinity, NaN, or the largest value. In a format without NaN, NaN becomes a zero with the opposite
    sign. float8_e8m0fnu has NaN for zero and negative numbers.
``ocp``
    The saturating conversion of the OCP 8-bit and microscaling specifications.

torch and ml_dtypes bring float64 to float32 first, and so round twice; and to float8_e8m0fnu they round ties away from
zero, and everything between 2**-127 and 2**-126 up. A policy does as they do, tested against the library.
"""

from __future__ import annotations

import numpy as np

from qlab._check import one_of
from qlab._pieces import Array, Scratch
from qlab.number.formats import FloatFormat, Format

__all__ = ["POLICIES", "PeerExponentLane", "overflow_of", "rounds_twice"]

POLICIES = ("torch", "ml_dtypes", "ocp")


def overflow_of(policy: str, fmt: Format, rounding: str) -> str:
    """Return the overflow rule that a policy means for a format; refuse what the policy does not know."""
    one_of("policy", policy, POLICIES)
    if not isinstance(fmt, FloatFormat):
        raise ValueError(f"policy={policy!r} is about floating-point formats, not {fmt.name}; leave it out")
    if rounding != "nearest_even":
        raise ValueError(f"policy={policy!r} rounds to nearest even; leave rounding={rounding!r} out")
    finite_only = fmt.signed and not fmt.infinities and fmt.nans == "all_ones"
    return "saturate" if policy == "ocp" or (policy == "torch" and finite_only) else "ieee"


def rounds_twice(policy: str | None, fmt: Format) -> bool:
    """Whether the library takes float64 to the format by way of float32."""
    return policy == "torch" or (policy == "ml_dtypes" and fmt.name != "float16")


class PeerExponentLane:
    """float8_e8m0fnu as torch and ml_dtypes make it, from float32."""

    def __init__(self, policy: str) -> None:
        self.nan_unless_positive = policy == "ml_dtypes"

    def cast(self, x: Array, out: Array, scratch: Scratch, noise: Array | None = None) -> bool:
        """Leave it to `encode`."""
        return False

    def encode(self, x: Array, scratch: Scratch, noise: Array | None = None) -> Array:
        """Return the codes of a piece."""
        bits = x.view(np.int32)
        codes = (bits >> 23) & 0xFF
        half = (bits & 0x400000) > 0
        codes += half & (((bits & 0x3FFFFF) > 0) | (codes > 0)) & (codes < 255)
        if self.nan_unless_positive:
            codes[(bits <= 0)] = 255
        return codes

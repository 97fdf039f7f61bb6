"""Who answers what: the same hard numbers, rounded to the same formats by qlab and by every library that is installed.

    python -m benchmarks.differences

writes ``results/differences.json``, copies it into the package (`qlab.data.differences`), and prints the rows on which
not all agree. Only NumPy and qlab are needed; a library that is absent is named and skipped. Numbers are float64; a
library that takes only float32 gets the nearest.
"""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import qlab
from benchmarks.timing import store
from qlab.show.table import Table

Cast = Callable[[float, str], float]
"""Round a number to the named format, nearest even; KeyError for a format that the library has not."""

PACKAGED = Path(qlab.__file__).with_name("differences.json")
"""Where `qlab.data.differences` reads."""

FORMATS = ("float16", "bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e4m3", "float8_e8m0fnu", "float4_e2m1fn")


# --- the libraries ---------------------------------------------------------------------------------------------------
def _qlab() -> Cast:
    return lambda x, fmt: float(qlab.cast(x, fmt))


def _numpy() -> Cast:
    types = {"float16": np.float16}
    return lambda x, fmt: float(np.float64(x).astype(types[fmt]))


def _ml_dtypes() -> Cast:
    import ml_dtypes

    types = {name: getattr(ml_dtypes, name) for name in FORMATS if hasattr(ml_dtypes, name)}
    return lambda x, fmt: float(np.float64(x).astype(types[fmt]))


def _torch() -> Cast:
    import torch

    types = {name: getattr(torch, name) for name in FORMATS if hasattr(torch, name)}
    return lambda x, fmt: float(torch.tensor(x, dtype=torch.float64).to(types[fmt]).to(torch.float64))


def _gfloat() -> Cast:
    from gfloat import formats, round_float

    infos = {
        "float16": formats.format_info_binary16, "bfloat16": formats.format_info_bfloat16,
        "float8_e5m2": formats.format_info_ocp_e5m2, "float8_e4m3fn": formats.format_info_ocp_e4m3,
        "float8_e8m0fnu": formats.format_info_ocp_e8m0, "float4_e2m1fn": formats.format_info_ocp_e2m1,
    }  # fmt: skip
    return lambda x, fmt: float(round_float(infos[fmt], x, sat=fmt == "float4_e2m1fn"))


IEEE = {"float16": (5, 10), "bfloat16": (8, 7), "float8_e5m2": (5, 2), "float8_e4m3": (4, 3)}
"""Exponent and fraction bits of the formats laid out as in IEEE 754, for libraries that ask for these alone."""


def _pychop() -> Cast:
    from pychop import Chop

    chops = {fmt: Chop(*fields) for fmt, fields in IEEE.items()}
    return lambda x, fmt: float(chops[fmt](np.array([x]))[0])


def _apytypes() -> Cast:
    from apytypes import APyFloat

    return lambda x, fmt: float(APyFloat.from_float(x, *IEEE[fmt]))


def _apytypes_cast() -> Cast:
    from apytypes import APyFloat

    return lambda x, fmt: float(APyFloat.from_float(x, 11, 52).cast(*IEEE[fmt]))


def _qtorch() -> Cast:
    import torch
    from qtorch.quant import float_quantize

    float_quantize(torch.zeros(1), 5, 10, "nearest")  # it compiles itself here, or fails to
    return lambda x, fmt: float(float_quantize(torch.tensor([x], dtype=torch.float32), *IEEE[fmt], "nearest")[0])


def _bitstring() -> Cast:
    from bitstring import Bits

    names = {
        "float16": "float16", "bfloat16": "bfloat", "float8_e5m2": "e5m2mxfp_overflow",
        "float8_e4m3fn": "e4m3mxfp_overflow", "float8_e8m0fnu": "e8m0mxfp", "float4_e2m1fn": "e2m1mxfp",
    }  # fmt: skip
    return lambda x, fmt: float(getattr(Bits(f"{names[fmt]}={x!r}"), names[fmt]))


LIBRARIES: dict[str, Callable[[], Cast]] = {
    "qlab": _qlab, "numpy": _numpy, "ml_dtypes": _ml_dtypes, "torch": _torch, "gfloat": _gfloat, "pychop": _pychop,
    "apytypes": _apytypes, "apytypes.cast": _apytypes_cast, "qtorch": _qtorch, "bitstring": _bitstring,
}  # fmt: skip

NOTES = {
    "qtorch": "takes float32; its 'nearest'; e4m3 as 4 exponent and 3 fraction bits",
    "pychop": "Chop(exp_bits, sig_bits)",
    "bitstring": "the 8-bit formats in their 'overflow' variant",
    "gfloat": "round_float, saturating only to e2m1, which has no infinity and no NaN",
    "apytypes": "APyFloat.from_float",
    "apytypes.cast": "APyFloat.cast from float64",
}


def installed() -> dict[str, Cast]:
    """Return the libraries that are there, and name those that are not."""
    found = {}
    for name, make in LIBRARIES.items():
        try:
            found[name] = make()
        except (ImportError, OSError, RuntimeError) as error:  # qtorch compiles itself when first used
            print(f"absent: {name} ({type(error).__name__}: {str(error).splitlines()[0]})", file=sys.stderr)
    return found


# --- the numbers -----------------------------------------------------------------------------------------------------
EVERYWHERE = {
    "464": 464.0, "465": 465.0, "500": 500.0, "65520": 65520.0, "70000": 70000.0, "1e30": 1e30, "inf": math.inf,
    "-inf": -math.inf, "nan": math.nan, "0": 0.0, "-0": -0.0, "-1": -1.0, "3": 3.0, "0.1": 0.1,
}  # fmt: skip

SPECIAL = {
    "float16": {"65519.999": 65519.999, "1e-7": 1e-7},
    "bfloat16": {"1.0078124": 1.0078124},  # above the midpoint of 1 and its neighbour: cutting bits off gives 1
    "float8_e8m0fnu": {
        "1.5": 1.5, "6": 6.0, "2^-127": 2.0**-127, "1.016 * 2^-127": 1.016 * 2.0**-127, "1.5 * 2^-127": 1.5 * 2.0**-127,
        "2^-128": 2.0**-128, "2^-140": 2.0**-140, "1.5 * 2^127": 1.5 * 2.0**127,
    },
    "float4_e2m1fn": {
        "0.25": 0.25, "0.24999999": 0.24999999, "0.25000001": 0.25000001, "0.75": 0.75, "1.25": 1.25, "2.5": 2.5,
        "5": 5.0, "7": 7.0, "7.9999995": 7.9999995,
    },
}  # fmt: skip


def inputs(fmt: str) -> dict[str, float]:
    """Return the hard numbers of a format by what they are: ties, hairs beside ties, and the ends of the range."""
    info = qlab.get_format(fmt)
    found = EVERYWHERE | SPECIAL.get(fmt, {})
    if info.mantissa_bits:
        half, hair, low = info.epsilon / 2, 2.0**-40, info.smallest_subnormal
        power, lowest = info.mantissa_bits + 1, math.frexp(low)[1] - 2
        last = float(qlab.ulp(info.max, fmt))
        found |= {
            f"1 + 2^-{power}": 1 + half,  # a tie
            f"1 + 2^-{power} + 2^-40": 1 + half + hair,  # which float32 mistakes for a tie
            f"1 + 2^-{power} - 2^-40": 1 + half - hair,
            f"1 + 3*2^-{power}": 1 + 3 * half,
            f"2^{lowest}": low / 2,
            f"2^{lowest} + 2^{lowest - 40}": low / 2 * (1 + hair),
            f"3*2^{lowest}": low * 1.5,
            f"smallest normal - 2^{lowest - 1}": info.smallest_normal - low / 4,
            "max": info.max,
            "max + half a step": info.max + last / 2,
            "max + half a step - a hair": float(np.nextafter(info.max + last / 2, 0)),
            "max + a step": info.max + last,
        }
    return found


def answer(cast: Cast, x: float, fmt: str) -> str | None:
    """Return a library's answer as text that `float` reads back, or its error's name; None for an unknown format."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return repr(cast(x, fmt))
        except KeyError:
            return None
        except (ValueError, TypeError, RuntimeError, OverflowError, ArithmeticError, NotImplementedError) as error:
            return type(error).__name__


def run(libraries: dict[str, Cast]) -> list[dict[str, Any]]:
    """Return a row for each format and number: who answers what."""
    rows = []
    for fmt in FORMATS:
        for label, x in inputs(fmt).items():
            answers = {name: answer(cast, x, fmt) for name, cast in libraries.items()}
            told = {name: text for name, text in answers.items() if text is not None}
            rows.append({"format": fmt, "input": label, "value": repr(x), "answers": told})
    return rows


def _versions(libraries: dict[str, Cast]) -> dict[str, str]:
    return {name: qlab.__version__ if name == "qlab" else metadata.version(name.split(".")[0]) for name in libraries}


def main() -> None:
    """Ask all, store the answers, and print the rows on which not all agree."""
    libraries = installed()
    rows = run(libraries)
    path = store("differences", rows, libraries=_versions(libraries), notes=NOTES)
    shutil.copyfile(path, PACKAGED)
    disputed = [row for row in rows if len(set(row["answers"].values())) > 1]
    cells = [(row["format"], row["input"], *(row["answers"].get(name, "") for name in libraries)) for row in disputed]
    print(Table(("format", "input", *libraries), cells))
    print(f"\n{len(rows)} questions, {len(disputed)} on which not all agree; stored in {path}")


if __name__ == "__main__":
    main()

"""Policies against the libraries themselves: the same bits, for every kind of input, where they disagree with qlab too."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from oracles import bfloat16_inputs, float16_inputs, same

import qlab
from qlab.number.formats import FORMATS, FloatFormat


def hard_inputs() -> np.ndarray:
    """All float16, all bfloat16, and random float32 bits, as float32."""
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(invalid="ignore"):
        return np.concatenate([float16_inputs().astype(np.float32), bfloat16_inputs(), bits])


def double_rounding_traps(fmt) -> np.ndarray:
    values = np.unique(fmt.values()[np.isfinite(fmt.values())])
    middles = (values[1:] + values[:-1]) / 2
    return np.concatenate([middles * (1 + 2.0**-40), middles * (1 - 2.0**-40), middles])


ML_DTYPES = [n for n, f in FORMATS.items() if isinstance(f, FloatFormat) and f.bits <= 16 and hasattr(ml_dtypes, n)]


@pytest.mark.parametrize("name", [*ML_DTYPES, "float16"])
def test_ml_dtypes(name):
    fmt, dtype = qlab.get_format(name), np.dtype(getattr(ml_dtypes, name, None) or name)
    for x in (hard_inputs(), double_rounding_traps(fmt)):
        with np.errstate(all="ignore"):
            theirs = x.astype(dtype)
        assert same(qlab.cast(x, name, policy="ml_dtypes"), theirs.astype(np.float64)).all()
        codes = theirs.view(np.uint8 if fmt.bits <= 8 else np.uint16)
        known = ~np.isnan(theirs.astype(np.float32))
        assert np.array_equal(qlab.encode(x, name, policy="ml_dtypes")[known], codes[known])


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
                                  "float8_e5m2fnuz", "float8_e8m0fnu"])  # fmt: skip
def test_torch(name):
    torch = pytest.importorskip("torch")
    for x in (hard_inputs(), double_rounding_traps(qlab.get_format(name))):
        theirs = torch.from_numpy(x).to(getattr(torch, name)).to(torch.float64).numpy()
        if name == "float8_e4m3fn" and tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
            x, theirs = x[~np.isnan(theirs)], theirs[~np.isnan(theirs)]  # torch 2.11 gave NaN instead of saturating
        assert same(qlab.cast(x, name, policy="torch"), theirs).all()


def test_they_do_disagree():
    """The famous ones: what each answers, and that qlab's own rules answer something else."""
    x = np.float32(500)
    assert np.isnan(qlab.cast(x, "float8_e4m3fn"))
    assert np.isnan(qlab.cast(x, "float8_e4m3fn", policy="ml_dtypes"))
    assert qlab.cast(x, "float8_e4m3fn", policy="torch") == 448
    assert qlab.cast(x, "float8_e4m3fn", policy="ocp") == 448
    answers = {p: float(qlab.cast(np.float32(3), "float8_e8m0fnu", policy=p)) for p in ("torch", "ml_dtypes", "ocp")}
    assert answers == {"torch": 4.0, "ml_dtypes": 4.0, "ocp": 2.0}
    assert float(qlab.cast(np.float32(-1), "float8_e8m0fnu", policy="torch")) == 1.0


def test_ocp_saturates():
    """OCP OFP8 1.0, table 4: with saturation, what overflows and infinities become the largest value, NaN stays."""
    x = np.float32([np.inf, -np.inf, 1e9, np.nan])
    for name in ("float8_e4m3fn", "float8_e5m2"):
        top = qlab.get_format(name).max
        assert same(qlab.cast(x, name, policy="ocp"), [top, -top, top, np.nan]).all()

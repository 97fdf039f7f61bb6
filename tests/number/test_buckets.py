"""Rounding to tables by looking up, bit for bit as the law (searching) does it: at every bucket's ends, at every cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab._pieces import Scratch
from qlab.number.bits import FLOAT32, FLOAT64
from qlab.number.codec import holds
from qlab.number.lanes import LONG, TableLane
from qlab.number.rounding import ROUNDINGS

RNG = np.random.default_rng(0)
TWICE = np.repeat(np.geomspace(1e-3, 1, 60), 2) * RNG.choice([-1, 1], 120)
TABLES = {
    "nf4": qlab.get_format("nf4"),
    "posit8": qlab.get_format("posit8"),
    "takum8": qlab.get_format("takum8"),
    "posit16": qlab.get_format("posit16"),
    "takum16": qlab.get_format("takum16"),
    "neighbours": qlab.TableFormat("neighbours", np.float32([1, 1 + 2.0**-23, 1 + 2.0**-22, -2])),
    "neighbours_64": qlab.TableFormat("neighbours_64", [1, 1 + 2.0**-52, 1 + 2.0**-51, -2]),
    "ternary": qlab.TableFormat("ternary", [-1, 0, 1]),
    "binary": qlab.TableFormat("binary", [-1, 1]),
    "minus_zero_first": qlab.TableFormat("minus_zero_first", [-0.0, 0.0, 1, -1]),
    "dead_zone": qlab.TableFormat("dead_zone", [-1, 0, 1], boundaries=[-0.75, 0.75]),
    "ends": qlab.TableFormat("ends", [-1, 0, 1], boundaries=[-1, 1]),
    "all_to_zero": qlab.TableFormat("all_to_zero", [-1, 0, 1], boundaries=[0, 0]),
    "with_rests": qlab.TableFormat("with_rests", [-1, 0, 1], boundaries=[(-0.5, 1e-30), (0.5, -1e-30)]),
    "tiny": qlab.TableFormat("tiny", np.float32([0, 3e-45, 1e-40, -1.5e-45, -1e-38])),
    "huge": qlab.TableFormat("huge", np.float32([-3.4e38, 3.4e38, 1e38])),
    "with_nan": qlab.TableFormat("with_nan", [0.5, np.nan, -2, 3, 0.5]),
    "shuffled": qlab.TableFormat("shuffled", np.float32(RNG.permutation(TWICE))),
    "random_256": qlab.TableFormat("random_256", np.float32(np.append(RNG.standard_normal(200).repeat(2)[:255], np.nan))),
}  # fmt: skip
LAYOUTS = {"float32": FLOAT32, "float64": FLOAT64}
DETERMINISTIC = [rounding for rounding in ROUNDINGS if rounding != "stochastic"]
CROWDED = {("neighbours_64", "float64")}  # values too dense to split buckets by so many bits
SPLIT = {"posit16", "takum16", "random_256"}


def inputs(fmt, layout) -> np.ndarray:
    """Both ends of all buckets, what lies 3 ulp about boundaries and values, and random bits."""
    unsigned, kind, low = np.dtype(f"u{layout.width // 8}"), layout.float_type, layout.width - 16
    first = np.arange(65536, dtype=unsigned) << unsigned.type(low)
    with np.errstate(over="ignore"):
        points = np.concatenate([fmt.thresholds[:, 0], fmt.values()]).astype(kind).view(unsigned)
    random = RNG.integers(0, 1 << layout.width, 1 << 17, unsigned, endpoint=False)
    random_near = RNG.normal(0, 0.3, 1 << 17).astype(kind).view(unsigned)
    near = [points + unsigned.type(k % (1 << layout.width)) for k in range(-3, 4)]
    ends = [first, first + unsigned.type(1), first - unsigned.type(1), first - unsigned.type(2)]
    return np.concatenate([*ends, *near, points ^ unsigned.type(1 << (layout.width - 1)), random, random_near]).view(kind)


def both_ways(lane, x):
    """Codes and values, looked up and by the law."""
    looked = lane.encode(x, Scratch()).copy(), np.empty_like(x)
    lane.cast(x, looked[1], Scratch())
    ranks = lane.ranks(x)
    return looked, (lane.codes_by_rank[ranks], lane.values_by_rank[ranks])


def check(fmt, layout, x, rounding, overflow):
    lane = TableLane(fmt, layout, rounding, overflow)
    x = x if fmt.nan_code is not None else x[~np.isnan(x)]
    with np.errstate(invalid="ignore"):
        (codes, values), (law_codes, law_values) = both_ways(lane, x)
    assert lane._looks_up(x) == lane._buckets.fit
    bits = layout.int_type
    wrong = (codes != law_codes) | (values.view(bits) != law_values.view(bits))
    assert not wrong.any(), (x[wrong][:5], codes[wrong][:5], law_codes[wrong][:5])
    return lane


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TABLES)
def test_as_the_law(name, layout):
    fmt = TABLES[name]
    if layout == "float32" and not holds(np.dtype(np.float32), fmt):
        pytest.skip(f"{name} is worked on in float64")
    x = inputs(fmt, LAYOUTS[layout])
    for rounding in DETERMINISTIC:
        for overflow in ("ieee", "saturate"):
            lane = check(fmt, LAYOUTS[layout], x, rounding, overflow)
            if rounding.startswith("nearest") and name != "tiny":
                assert lane._buckets.fit == ((name, layout) not in CROWDED)
                assert lane._buckets.split or name not in SPLIT


@settings(max_examples=20, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_infinity=False), min_size=2, max_size=40),
    rounding=st.sampled_from(DETERMINISTIC),
    overflow=st.sampled_from(["ieee", "saturate"]),
)
def test_as_the_law_for_any_table(values, rounding, overflow):
    if len({v for v in values if v == v}) < 2:
        return
    fmt = qlab.TableFormat("any", values)
    check(fmt, FLOAT32, inputs(fmt, FLOAT32), rounding, overflow)


def test_the_law_itself_by_the_midpoints():
    """What is compared with above is right: nearest values by exact arithmetic on the differences, in float64."""
    fmt = TABLES["nf4"]
    x = RNG.uniform(-1.2, 1.2, 5000).astype(np.float32)
    nearest = np.abs(x.astype(np.float64)[:, None] - fmt.values()).argmin(axis=1)
    assert np.array_equal(qlab.encode(x, fmt), nearest)


def test_short_and_long_arrays_agree_and_may_be_rounded_in_place():
    x = RNG.standard_normal(4 * LONG).astype(np.float32)
    for name in ("nf4", "posit8", "takum8"):
        short = np.concatenate([qlab.cast(part, name) for part in np.split(x, 8)])
        assert np.array_equal(qlab.cast(x, name), short)
        assert np.array_equal(qlab.encode(x, name), np.concatenate([qlab.encode(part, name) for part in np.split(x, 8)]))
    own = x.copy()
    assert qlab.cast(own, "nf4", out=own) is own
    assert np.array_equal(own, qlab.cast(x, "nf4"))


@pytest.mark.parametrize("name", ["posit8", "takum8"])
def test_what_is_no_number_in_long_arrays(name):
    fmt = qlab.get_format(name)
    x = np.resize(np.float32([np.nan, np.inf, -np.inf, -np.nan, 1.0, -0.0]), 2 * LONG)
    assert np.array_equal(qlab.encode(x, name)[:6], [128, 128, 128, 128, 64, 0])
    assert np.array_equal(qlab.cast(x, name, overflow="saturate")[:3], [np.nan, fmt.max, fmt.min], equal_nan=True)


def test_nan_where_there_is_none():
    x = np.ones(2 * LONG, np.float32)
    x[7] = np.nan
    with pytest.raises(ValueError, match="1 NaN"):
        qlab.encode(x, "nf4")
    assert qlab.encode(x, "nf4", nan="zero")[7] == 7

"""Observers against plain definitions on the whole stream, and however the stream is cut."""

import copy
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
scipy_stats = pytest.importorskip("scipy.stats")

from qlab.model.histogram import Histogram  # noqa: E402
from qlab.model.observers import OBSERVERS, EntropyObserver, HistogramMSEObserver, PercentileObserver  # noqa: E402

WHOLE = [name for name in OBSERVERS if name != "moving_average"]


def streams():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal(20000)
    outliers = normal.copy()
    outliers[:7] = [40, -25, 90, 31, -60, 55, 80]
    return {
        "normal": normal, "outliers": outliers, "laplace": rng.laplace(size=20000), "relu": np.maximum(normal, 0),
        "one side": -np.abs(normal) * 1e-6, "skew": np.exp(normal) - 0.3, "steps": np.round(normal * 4) / 4, "wide": normal**9,
    }  # fmt: skip


STREAMS = {name: x.astype(np.float32) for name, x in streams().items()}


def watched(name, x, **options):
    observer = OBSERVERS[name](**options)
    observer.update(torch.from_numpy(x))
    return observer


@pytest.fixture(params=STREAMS)
def stream(request):
    return STREAMS[request.param]


def quantized(x, low, high, bits, symmetric):
    """What a plain quantizer makes of x, in float64."""
    if symmetric:
        steps = 2 ** (bits - 1) - 1
        return np.clip(np.rint(x / (high / steps)), -steps, steps) * (high / steps)
    scale = (high - low) / (2**bits - 1)
    zero = np.rint(-low / scale)
    return (np.clip(np.rint(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


# --- the histogram ---------------------------------------------------------------------------------------------------
def test_histogram_counts_each_value_in_the_bin_of_its_bits(stream):
    histogram = Histogram()
    histogram.add(torch.from_numpy(stream))
    bins = histogram.bins()
    counts = [np.count_nonzero((stream >= a) & (stream < b)) for a, b in zip(bins.lower[::97], bins.upper[::97], strict=True)]
    touched = [np.count_nonzero(stream == b) for b in bins.upper[::97]]  # the ends of negative bins belong to them
    assert all(abs(c - n) <= t for c, n, t in zip(counts, bins.counts[::97], touched, strict=True))
    assert bins.counts.sum() == stream.size
    assert np.all(bins.lower[1:] >= bins.upper[:-1])
    top = np.abs(stream).max()
    width, middle = bins.upper - bins.lower, np.maximum(np.abs(bins.lower), np.abs(bins.upper))
    assert np.all(width <= np.maximum(middle / 1024, 2.0**-22 * top))


def test_bins_of_one_width_are_numpys(stream):
    histogram = Histogram()
    histogram.add(torch.from_numpy(stream))
    counts, width = histogram.linear()
    magnitudes = np.abs(stream).astype(np.float64)
    assert math.frexp(width)[0] == 0.5
    assert 1025 <= len(counts) <= 2048
    assert np.array_equal(counts, np.bincount((magnitudes / width).astype(int)))
    assert np.array_equal(counts.sum(), histogram.magnitudes().counts.sum())


@pytest.mark.parametrize("scale", [2.0**-149, 2.0**-130, 1e-20, 1.0, 3e37])
def test_histogram_from_subnormals_to_the_largest(scale):
    x = (np.arange(-11, 12) * scale).astype(np.float32)
    histogram = Histogram()
    histogram.add(torch.from_numpy(x))
    bins = histogram.bins()
    assert np.isfinite(bins.lower).all()
    assert np.isfinite(bins.upper).all()
    assert (bins.lower[0], bins.upper[-1]) == (x.min(), x.max())
    assert histogram.linear()[0].sum() == 23


# --- each observer against its definition ------------------------------------------------------------------------------
@pytest.mark.parametrize("symmetric", [False, True])
def test_minmax(stream, symmetric):
    top = np.abs(stream).max()
    expected = (-top, top) if symmetric else (min(stream.min(), 0), max(stream.max(), 0))
    assert watched("minmax", stream, symmetric=symmetric).range() == expected


def test_moving_average_is_torchs():
    ao = pytest.importorskip("torch.ao.quantization")
    theirs = ao.MovingAverageMinMaxObserver(averaging_constant=0.1)
    ours = OBSERVERS["moving_average"](decay=0.9)
    for seed in range(8):
        x = torch.randn(100, generator=torch.Generator().manual_seed(seed))
        ours.update(x)
        theirs(x)
    assert ours.range() == pytest.approx((float(theirs.min_val), float(theirs.max_val)), rel=1e-6)


@pytest.mark.parametrize("percent", [60.0, 99.0, 99.9, 99.99, 100.0])
def test_percentile_is_numpys_within_a_bin(stream, percent):
    x = stream.astype(np.float64)
    tolerance = 2.0**-22 * np.abs(x).max()
    low, high = watched("percentile", stream, percent=percent)._limits()
    assert (low, high) == pytest.approx(tuple(np.percentile(x, [100 - percent, percent])), rel=2**-10, abs=tolerance)
    limit = watched("percentile", stream, percent=percent, symmetric=True).range()[1]
    assert limit == pytest.approx(np.percentile(np.abs(x), percent), rel=2**-10, abs=tolerance)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_the_least_that_a_search_by_force_finds(stream, bits, symmetric):
    def error(low, high):
        return np.mean((quantized(x, low, high, bits, symmetric) - x) ** 2)

    x = stream[:6000].astype(np.float64)
    low, high = watched("histogram_mse", stream[:6000], bits=bits, symmetric=symmetric).range()
    top, shares = np.abs(x).max(), 2.0 ** -np.arange(0, 14, 0.35 if not symmetric else 0.02)
    if symmetric:
        best = min(error(-top * s, top * s) for s in shares)
    else:
        lows = shares * x.min() if x.min() < 0 else [0.0]
        highs = shares * x.max() if x.max() > 0 else [0.0]
        best = min(error(a, b) for a in lows for b in highs)
    assert error(low, high) <= 1.02 * best
    if not symmetric:  # zero has a code
        assert quantized(np.zeros(1), low, high, bits, symmetric)[0] == 0
        assert low / ((high - low) / (2**bits - 1)) == pytest.approx(round(low / ((high - low) / (2**bits - 1))), abs=1e-9)


def entropy_by_hand(counts, levels):
    """NVIDIA's loop over limits, in its own words, with scipy's divergence."""
    bins = counts.astype(np.float64)
    bins[0] = bins[1]
    divergences = []
    for i in range(levels, len(bins) + 1):
        groups = np.digitize(np.arange(i), np.linspace(0, i, levels + 1)[:-1]) - 1
        new = np.zeros(i)
        for group in range(levels):
            members = (groups == group) & (bins[:i] > 0)
            if members.any():
                new[members] = bins[:i][members].mean()
        reference = bins[:i].copy()
        reference[-1] += bins[i:].sum()
        divergences.append(scipy_stats.entropy(reference, new) if new.any() else np.inf)
    last = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    return last + levels


@pytest.mark.parametrize("name", ["normal", "outliers", "relu"])
@pytest.mark.parametrize("bits", [3, 6])
def test_entropy_is_nvidias(name, bits):
    x = STREAMS[name]
    observer = watched("entropy", x, bits=bits, symmetric=True)
    counts, width = observer.histogram.linear()
    keep = entropy_by_hand(counts, 2 ** (bits - 1))
    assert observer.range()[1] == min(keep * width, np.abs(x).max())


def test_entropy_gives_all_codes_to_the_side_there_is():
    x = np.abs(STREAMS["laplace"])
    observer = watched("entropy", x, bits=4)
    counts, width = observer.histogram.linear()
    sixteen, eight = (entropy_by_hand(counts, levels) for levels in (16, 8))
    assert sixteen != eight
    assert observer.range() == (0.0, min(sixteen * width, x.max()))


def test_what_clips_lessens_the_error_of_a_long_tail():
    x = STREAMS["laplace"].astype(np.float64)
    errors = {}
    for name in OBSERVERS:
        low, high = watched(name, STREAMS["laplace"], bits=4).range()
        errors[name] = np.mean((quantized(x, low, high, 4, False) - x) ** 2)
    assert min(errors, key=errors.get) == "histogram_mse"
    assert errors["histogram_mse"] < 0.5 * errors["minmax"]


# --- streams ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("name", WHOLE)
@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
    order=st.randoms(use_true_random=False),
)
def test_the_same_however_the_stream_is_cut_and_ordered(name, symmetric, values, cuts, order):
    whole = watched(name, np.array(values, np.float32), bits=4, symmetric=symmetric)
    order.shuffle(values)
    parts = OBSERVERS[name](bits=4, symmetric=symmetric)
    for batch in np.split(np.array(values, np.float32), sorted(min(c, len(values)) for c in cuts)):
        parts.update(torch.from_numpy(batch))
    assert parts.range() == whole.range()
    low, high = whole.range()
    assert low <= 0 <= high
    assert parts.count == len(values)


@pytest.mark.parametrize("name", OBSERVERS)
def test_the_same_whatever_the_threads(name, stream):
    threads, ranges = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            ranges.append(watched(name, np.tile(stream, 4)).range())
    finally:
        torch.set_num_threads(threads)
    assert ranges[0] == ranges[1]


@pytest.mark.parametrize("name", OBSERVERS)
def test_memory_does_not_grow(name):
    def size(observer):
        arrays = {**vars(observer), **vars(getattr(observer, "histogram", observer))}.values()
        return sum(a.nbytes for a in arrays if isinstance(a, np.ndarray)), len(arrays)

    observer = OBSERVERS[name]()
    observer.update(torch.ones(3))
    before = size(observer)
    for power in range(20):
        observer.update(torch.full((50,), 4.0**power))
    assert size(observer) == before
    assert before[0] <= 400_000
    assert observer.count == 1003


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
@pytest.mark.parametrize("name", OBSERVERS)
def test_dtypes_shapes_and_the_input_kept(name, dtype):
    x = torch.arange(-8, 16).view(2, 3, 4).transpose(0, 2).to(dtype)
    kept, flat, shaped = x.clone(), OBSERVERS[name](), OBSERVERS[name]()
    shaped.update(x.requires_grad_(x.is_floating_point()))
    flat.update(x.detach().float().reshape(-1))
    assert shaped.range() == flat.range()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("name", OBSERVERS)
def test_zeros_one_value_and_a_copy(name):
    for value, expected in ((0.0, (0.0, 0.0)), (-0.0, (0.0, 0.0)), (3.0, (0.0, 3.0)), (-3.0, (-3.0, 0.0))):
        observer = watched(name, np.full(9, value, np.float32))
        assert observer.range() == pytest.approx(expected, rel=1e-3)
    other = copy.deepcopy(observer)
    other.update(torch.full((2000,), 50.0))
    assert other.range()[1] > 1
    assert observer.range()[1] == 0
    assert "bits=8" in repr(observer)


@pytest.mark.parametrize("name", OBSERVERS)
def test_refusals_leave_no_trace(name):
    observer = OBSERVERS[name]()
    assert "nothing seen" in repr(observer)
    with pytest.raises(ValueError, match="has seen no value"):
        observer.range()
    observer.update(torch.empty(0, 3))
    with pytest.raises(ValueError, match=r"update\(x\)"):
        observer.range()
    observer.update(torch.tensor([1.0, 2.0]))
    before = observer.range()
    with pytest.raises(ValueError, match=r"3 of 4 values are not finite \(1 NaN, 2 infinite\)"):
        observer.update(torch.tensor([math.nan, math.inf, -math.inf, 9.0]))
    with pytest.raises(ValueError, match="1 infinite"):
        observer.update(torch.tensor([1e300], dtype=torch.float64))
    for wrong in (np.ones(3), torch.ones(2, dtype=torch.complex64)):
        with pytest.raises(TypeError, match="real numbers"):
            observer.update(wrong)
    assert observer.range() == before
    assert observer.count == 2
    for bits in (1, 17, 8.0, True):
        with pytest.raises(ValueError, match="from 2 to 16"):
            OBSERVERS[name](bits=bits)


def test_options_that_are_refused():
    with pytest.raises(ValueError, match="decay=1"):
        OBSERVERS["moving_average"](decay=1)
    for percent in (50, 100.1, math.nan):
        with pytest.raises(ValueError, match="percent="):
            PercentileObserver(percent=percent)
    assert EntropyObserver(bits=16).bits == HistogramMSEObserver(bits=16).bits

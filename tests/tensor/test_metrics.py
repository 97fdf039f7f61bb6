"""Error reports against formulas by hand in float64: totals, parts, extremes, comparisons."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qlab
from qlab._progress import Progress

SCHEMES = [
    "int8", "uint8", "int4-b32", "int4-b32/f16", "int4-b7-signed/bf16", "uint4-b16-min/f16", "int4-b16-p90/f16", "nf4",
    "nf4_dq", "mxfp4", "nvfp4", "mxfp6_e3m2", "mxint8", "int8_channel", "binary", "ternary", "log4", "kmeans4",
    "int4-b2x3", "int3-axis1", "int4-flat5-center", "e4m3-tensor-mse", "fp4-b16/e4m3",
]  # fmt: skip


def total(x, scheme) -> float:
    return float(np.mean((x.astype(np.float64) - qlab.fake_quantize(x, scheme).astype(np.float64)) ** 2))


# Fitted codebooks need two distinct numbers; nested scales need room.
ARRAYS = hnp.arrays(np.float32, (6, 35), elements=st.floats(-100, 100, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3))


@settings(max_examples=40, deadline=None)
@given(x=ARRAYS, scheme=st.sampled_from([s for s in SCHEMES if s != "kmeans4"]))
def test_parts_add_up_to_the_error(x, scheme):
    report = qlab.error_report(x, scheme)
    values = qlab.fake_quantize(x, scheme).astype(np.float64)
    assert report.mse == pytest.approx(total(x, scheme), rel=1e-9, abs=1e-30)
    assert report.clipping + report.rounding + report.storage == pytest.approx(report.mse, rel=1e-12, abs=0)
    assert report.clipping >= 0
    assert report.rounding >= 0
    assert report.max_error == np.abs(x - values).max()
    energy = np.mean(x.astype(np.float64) ** 2)
    if report.mse:
        assert report.sqnr == pytest.approx(10 * math.log10(energy / report.mse))
        assert report.relative_rmse == pytest.approx(math.sqrt(report.mse / energy))
    else:
        assert report.sqnr == math.inf


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, np.int32])
def test_totals_in_all_dtypes(scheme, kind):
    x = (np.random.default_rng(5).standard_normal((6, 70)) * 30).astype(kind)
    report = qlab.error_report(x, scheme)
    qt = qlab.quantize(x, scheme)
    values = qt.dequantize(dtype=np.float32 if kind == np.float16 else None).astype(np.float64)
    assert report.mse == pytest.approx(float(np.mean((x.astype(np.float64) - values) ** 2)), rel=1e-9)
    assert report.bits_per_value == qt.bits_per_value
    if qlab.get_scheme(scheme).scale.stored is None or scheme.startswith("mx"):  # e8m0 holds every power of two
        assert report.storage == 0
    elif kind != np.int32:  # whose scales may be short fractions
        assert report.storage != 0


def by_hand(x, block, bits, percent):
    """Clipping and rounding of intN-bN-pP, block by block."""
    clipping, rounding, clipped = 0.0, 0.0, 0
    top = 2 ** (bits - 1) - 1
    for row in x.astype(np.float64).reshape(-1, block):
        scale = np.float64(np.float32(np.percentile(np.abs(row).astype(np.float32), percent)) / np.float32(top))
        for value in row:
            steps = value / scale
            code = min(max(round(steps), -top - 1), top)
            error = (value - code * scale) ** 2
            if steps > top + 0.5 or steps < -top - 1.5:
                clipping, clipped = clipping + error, clipped + 1
            else:
                rounding += error
    return clipping / x.size, rounding / x.size, clipped / x.size


def test_clipping_and_rounding_by_hand():
    x = np.random.default_rng(1).laplace(size=(8, 64)).astype(np.float32)
    report = qlab.error_report(x, "int4-b32-p90")
    clipping, rounding, clipped = by_hand(x, 32, 4, 90)
    assert clipped > 0.02
    assert report.clipped == clipped
    assert report.clipping == pytest.approx(clipping, rel=1e-5)
    assert report.rounding == pytest.approx(rounding, rel=1e-5)
    assert report.storage == 0
    with_storage = qlab.error_report(x, "int4-b32-p90/e4m3")
    assert (with_storage.clipping, with_storage.rounding) == (report.clipping, report.rounding)
    assert with_storage.storage == pytest.approx(total(x, "int4-b32-p90/e4m3") - clipping - rounding, rel=1e-4)


def test_only_clipping():
    x = np.float32([7] * 90 + [3, -5, 0, 1, 2, 4, 6, 20, -30, 9])  # the 90th percentile of the magnitudes is 7
    report = qlab.error_report(x, "int4-p90")
    assert (report.rounding, report.storage) == (0, 0)
    assert report.clipping == report.mse == pytest.approx((13**2 + 22**2 + 2**2) / 100)
    assert (report.clipped, report.max_error) == (0.03, 22)


def test_half_a_step_beyond_the_last_value_is_rounding():
    x = np.float32([7] * 97 + [7.5, 7.25, 7.75])
    report = qlab.error_report(x, "int4-p90")
    assert report.clipped == 0.01
    assert report.clipping == 0.75**2 / 100
    assert report.rounding == (0.5**2 + 0.25**2) / 100


def test_only_rounding():
    x = np.random.default_rng(2).standard_normal(999)
    for scheme in ("int4", "nf4", "uint4", "int4-b32", "fp4-b32-mx_up/e8m0", "int4-b9-min", "uint4-min", "int4-b32-center"):
        report = qlab.error_report(x + 50 * ("center" in scheme or "min" in scheme), scheme)
        assert (report.clipping, report.storage, report.clipped) == (0, 0, 0)
        assert report.rounding == report.mse > 0


def test_only_storage():
    scale = np.float32(1 + 2.0**-13)  # which float16 has not
    x = np.arange(-7, 8).astype(np.float32) * scale
    report = qlab.error_report(x, "int4-b15/f16")
    assert (report.clipping, report.rounding) == (0, 0)
    assert report.storage == report.mse == pytest.approx(np.mean(np.arange(-7, 8) ** 2) * 2.0**-26)
    assert qlab.error_report(x, "int4-b15").sqnr == math.inf
    assert qlab.error_report(x, "int4-b15/f32").storage == 0


def test_storage_may_help():
    x = np.float32([7.007, 1, 2, 3, 4, 5, 6, 0])  # a scale rounded down to 1
    report = qlab.error_report(x, "int4-b8/e4m3")
    assert report.storage < 0 < report.rounding
    assert report.mse == pytest.approx(0.007**2 / 8, rel=1e-3)


def test_figures_that_are_known():
    x = np.random.default_rng(0).standard_normal(2**22).astype(np.float32)
    for scheme, bits, sqnr in (("nf4", 4.5, 20.73), ("af4", 4.5, 20.38), ("nf4-b32", 5, 21.18)):
        report = qlab.error_report(x, scheme)
        assert report.bits_per_value == bits
        assert report.sqnr == pytest.approx(sqnr, abs=0.03)
        assert report.distribution == "normal"
        assert report.lloyd_max_sqnr == pytest.approx(-10 * math.log10(0.009501), abs=0.02)
        assert report.to_lloyd_max == report.lloyd_max_sqnr - report.sqnr
        assert report.to_bound == pytest.approx(20 * bits * math.log10(2) - report.sqnr, abs=0.02)


def test_six_decibels_a_bit():
    x = np.random.default_rng(0).random(2**18)
    reports = [qlab.error_report(x, f"uint{bits}") for bits in range(6, 15)]
    assert {r.distribution for r in reports} == {"uniform"}
    steps = np.diff([r.sqnr for r in reports])
    assert np.allclose(steps, 6.02, atol=0.15)
    assert all(abs(r.to_lloyd_max) < 0.2 for r in reports)
    assert all(1.3 < r.to_bound < 1.8 for r in reports)  # 1.53 dB: pi e / 6, what cells gain from being round


def test_worst_blocks():
    x = np.random.default_rng(4).standard_normal((5, 64)).astype(np.float32)
    x[3, 40] = 100
    report = qlab.error_report(x, "int4-b32")
    values = qlab.fake_quantize(x, "int4-b32").astype(np.float64)
    parts = [a.astype(np.float64).reshape(5, 2, 32) for a in (x - values, x)]
    relative = np.sqrt((parts[0] ** 2).sum(2) / (parts[1] ** 2).sum(2))
    order = np.argsort(-relative.reshape(-1))[:5]
    assert [b.index for b in report.worst_blocks] == [(int(i) // 2, int(i) % 2) for i in order]
    assert [b.relative_error for b in report.worst_blocks] == pytest.approx(relative.reshape(-1)[order])
    assert all(b.absmax == np.abs(x.reshape(5, 2, 32)[b.index]).max() for b in report.worst_blocks)


@pytest.mark.parametrize("scheme", ["int8", "int8_channel", "int8-b32-p99"])
def test_long_blocks_and_threads(scheme):
    x = np.random.default_rng(6).standard_normal((2, 600_000)).astype(np.float32)
    reports = []
    for threads in (1, 2):
        qlab.set_num_threads(threads)
        reports.append(qlab.error_report(x, scheme))
    qlab.set_num_threads(None)
    assert reports[0] == reports[1]
    assert reports[0].mse == pytest.approx(total(x, scheme), rel=1e-9)
    assert reports[0].max_error == np.abs(x.astype(np.float64) - qlab.fake_quantize(x, scheme)).max()
    assert all(b.absmax == np.abs(x[b.index] if scheme == "int8_channel" else x).max() for b in reports[0].worst_blocks[:1]
               if "b32" not in scheme)  # fmt: skip
    assert len(reports[0].worst_blocks) == {"int8": 1, "int8_channel": 2}.get(scheme, 5)


def test_zeros_constants_and_extremes():
    zeros = qlab.error_report(np.zeros(40, np.float32), "int4-b32")
    assert (zeros.mse, zeros.sqnr, zeros.to_bound, zeros.clipped) == (0, math.inf, 0, 0)
    assert qlab.error_report(np.full(40, 3.5), "uint4-b8-min").mse == 0
    assert qlab.error_report(2.0, "int8").worst_blocks[0].index == ()
    for scale in (1e-300, 1e300):
        x = np.random.default_rng(7).standard_normal(256) * scale
        assert qlab.error_report(x, "int4-b32").sqnr == pytest.approx(
            qlab.error_report(x / scale, "int4-b32").sqnr, rel=1e-6
        )
    tiny = qlab.error_report(np.array([5e-324, 1e-322, 0]), "int4")
    assert tiny.sqnr > 0


def test_input_is_not_changed_and_may_be_strided():
    x = np.random.default_rng(8).standard_normal((40, 64)).astype(np.float32)
    x.flags.writeable = False
    assert qlab.error_report(x.T[::2], "int4-b8/f16") == qlab.error_report(x.T[::2].copy(), "int4-b8/f16")


def test_tensors():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(9).standard_normal(128).astype(np.float32)
    assert qlab.error_report(torch.from_numpy(x), "nf4") == qlab.error_report(x, "nf4")
    narrow = torch.from_numpy(x).bfloat16().requires_grad_()
    assert qlab.error_report(narrow, "nf4") == qlab.error_report(narrow.detach().float().numpy(), "nf4")


# --- comparisons -------------------------------------------------------------------------------------------------------
def test_comparison_is_sorted_and_is_made_of_reports():
    x = np.random.default_rng(10).standard_normal((32, 64)).astype(np.float32)
    names = ["int8", "int4-b32/f16", "nf4", qlab.Scheme("int4", qlab.PerBlock(32), "mse"), "af4", "int2"]
    comparison = qlab.compare_schemes(x, iter(names))
    assert [r.scheme for r in comparison] != [qlab.get_scheme(n) for n in names]
    keys = [(r.bits_per_value, -r.sqnr) for r in comparison]
    assert keys == sorted(keys)
    assert set(comparison) == {qlab.error_report(x, name) for name in names}
    for report in comparison:
        beaten = any(r.sqnr >= report.sqnr and r.bits_per_value <= report.bits_per_value for r in comparison if r != report)
        assert (report in comparison.front()) is not beaten


def test_shown():
    x = np.random.default_rng(11).standard_normal(512)
    comparison = qlab.compare_schemes(x, ["int8", "nf4"])
    assert [row[0] for row in comparison.table().rows] == ["nf4", "int8"]
    assert repr(comparison).splitlines()[0].split() == [
        "scheme", "bits_per_value", "sqnr", "relative_rmse", "max_error", "clipped",
    ]  # fmt: skip
    report = qlab.error_report(x, "nf4_dq")
    parts = {row[0]: row[1:] for row in report.tables()[1].rows}
    assert parts["scale_storage"][0] == report.storage
    assert sum(share for _, share in (parts[k] for k in parts if k != "total_error")) == pytest.approx(100)
    assert repr(report).count("\n\n") == 3
    qlab.set_language("zh")
    try:
        assert "裁剪误差" in report._repr_html_()
        assert "每个值的比特数" in comparison._repr_html_()
    finally:
        qlab.set_language(None)


def test_figure_needs_an_error():
    with pytest.raises(ValueError, match="finite SQNR"):
        qlab.compare_schemes(np.arange(-7.0, 8), ["int4", "int8-b15"][:1]).figure()
    mixed = qlab.compare_schemes(np.arange(-7.0, 8), ["int4", "nf4"]).figure()
    assert mixed.data["front"] == "int4"
    mixed.svg()


def test_labels_of_the_figure_keep_their_distance():
    x = np.random.default_rng(12).standard_normal((8, 256))
    names = (
        [f"int4-b{n}" for n in (16, 32, 64, 128)] + [f"int4-b{n}/f16" for n in (16, 32, 64)] + ["nf4", "af4", "int8", "int2"]
    )
    axes = qlab.compare_schemes(x, names).figure().matplotlib().axes[0]
    heights = sorted(t.get_position()[1] for t in axes.texts if t.get_text() in names)
    low, high = axes.get_ylim()
    assert len(heights) == len(names)
    assert low <= heights[0]
    assert heights[-1] <= high
    inches = np.diff(heights) / (high - low) * axes.get_position().height * axes.figure.get_size_inches()[1]
    assert inches.min() > 8.5 / 72 * 1.2


class Terminal:
    def __init__(self, is_one: bool) -> None:
        self.text, self._is_one = "", is_one

    def isatty(self) -> bool:
        return self._is_one

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("terminal, patience, shown", [(True, 0.0, True), (False, 0.0, False), (True, 60.0, False)])
def test_progress(monkeypatch, terminal, patience, shown):
    stderr = Terminal(terminal)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setattr("qlab._progress.PATIENCE", patience)
    with Progress(2) as progress:
        progress.begin("first")
        if shown:
            progress._timer.join()
        progress.begin("second")
    assert ("2/2 second" in stderr.text) is shown
    assert stderr.text.endswith("\r\x1b[K") is shown


@pytest.mark.parametrize(
    "act, error, message",
    [
        (lambda: qlab.error_report([], "int8"), ValueError, "x is empty"),
        (lambda: qlab.error_report([1, np.nan], "int8"), ValueError, r"1 infinities or NaN \(the first at index \(1,\)\)"),
        (lambda: qlab.error_report([1j], "int8"), TypeError, "complex"),
        (lambda: qlab.error_report([1, 2], "int44"), ValueError, "did you mean 'int4'"),
        (lambda: qlab.error_report([1e9, 2], "int8-b2/f16"), ValueError, "does not fit float16"),
        (lambda: qlab.compare_schemes([1, 2], []), ValueError, "schemes is empty"),
        (lambda: qlab.compare_schemes([1, 2], "int8"), TypeError, "give a list"),
        (lambda: qlab.compare_schemes([1, 2], ["int8", "int99"]), ValueError, "unknown scheme 'int99'"),
        (lambda: qlab.compare_schemes([1, 2], ["int8", "int4-b2x2"]), ValueError, "scheme 'int4-b2x2': .* two dimensions"),
        (lambda: qlab.compare_schemes([1, 2], ["int8", "int4-axis1"]), ValueError, "scheme 'int4-axis1': .* axis 1"),
        (lambda: qlab.compare_schemes([1e9, 2], ["int8-b2/f16"]), ValueError, "scheme 'int8-b2/f16': .* does not fit"),
        (lambda: qlab.compare_schemes([1, np.inf], ["int8"]), ValueError, "^x holds 1 infinities"),
        (lambda: qlab.compare_schemes([], ["int8"]), ValueError, "^x is empty"),
    ],
)
def test_refusals(act, error, message):
    with pytest.raises(error, match=message):
        act()

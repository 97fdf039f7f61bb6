"""Figures and tables: the same bytes every time, one geometry in all languages, words in the reader's language."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch

import qlab
from qlab.show.figure import COLORS, superscript
from qlab.show.language import LANGUAGES, label


def two_layers():
    rng = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64)).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) / 8
    return model, [torch.randn(32, 64, generator=rng)]


def mix_of_schemes():
    model, batches = two_layers()
    return qlab.allocate_bits(model, ["int8-channel", "int4-b32/f16", "int2-b32/f16"], batches, budget=5)


def scaled_training():
    """Two steps of twelve overflow; half of the first layer's weights, of 6 of its parameters 2, get gradients that vanish."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    optimizer, scaler, reports = torch.optim.SGD(model.parameters(), lr=0.0), qlab.amp.LossScaler(2.0**20, interval=3), {}
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    for step in range(12):
        optimizer.zero_grad()
        x = torch.tensor([[1e-15, 1e34 if step in (4, 5) else 1.0]])
        scaler.multiply(model(x).sum()).backward()
        if step % 2 == 0:
            reports[step] = qlab.amp.underflow_report(model, "float16")
        scaler.step(optimizer)
        scaler.update()
    return scaler, reports


FIGURES = {
    "number_line": lambda: qlab.show.number_line("float6_e3m2fn"),
    "binades": lambda: qlab.show.binades("float16", "bfloat16"),
    "spacing": lambda: qlab.show.spacing("float16"),
    "bit_layouts": lambda: qlab.show.bit_layouts("bfloat16", "float8_e8m0fnu", "int8"),
    "format_map": lambda: qlab.show.format_map("float16", "bfloat16", "int8", "posit8"),
    "number_lines": lambda: qlab.show.number_lines("float4_e2m1fn", "int4", limits=(8, 1)),
    "density": lambda: qlab.show.density("float8_e4m3fn", "int8", "posit8", low=-12, high=10),
    "rounding_errors": qlab.show.rounding_errors,
    "stochastic_mean": lambda: qlab.show.stochastic_mean((1, 8)),
    "stalling_sums": lambda: qlab.show.stalling_sums(highest=9),
    "sum_errors": lambda: qlab.show.sum_errors(highest=6, rows=4),
    "lost_updates": lambda: qlab.show.lost_updates([1.0, 0.5, -0.25], [0.1, 1e-4, 0.0], "bfloat16"),
    "softmax_shift": lambda: qlab.show.softmax_shift([12.0, 3.0, -9.0, -20.0]),
    "gradient_windows": lambda: qlab.show.gradient_windows({"w1": 2.0 ** -np.arange(9, 40)}, scale=2.0**10),
    "observer_ranges": lambda: qlab.show.observer_ranges(np.random.default_rng(0).laplace(size=(16, 50)), 4),
    "roofline": lambda: qlab.show.roofline([(1, 16, 1.0), (64, 4, 256.0)], flops=790e12, bandwidth=4.3e12),
    "energy": qlab.show.energy,
    "digit_with_fewer_words": lambda: qlab.show.digit_with_fewer_words(np.arange(64).reshape(8, 8) / 63, 5),
    "accuracy_and_size": lambda: qlab.show.accuracy_and_size([32, 4, 2], [97.5, 96.0, 20.0], [19.0, 2.4, 1.2]),
    "scale_history": lambda: qlab.show.scale_history(*scaled_training()),
    "sensitivity_bars": lambda: qlab.sensitivity(two_layers()[0], "weight_only_int8", two_layers()[1]).figure(),
    "pareto_front": lambda: mix_of_schemes().figure(),
    "rate_distortion": lambda: qlab.compare_schemes(np.arange(256.0) % 19, ["nf4", "int8", "int2", "int8-b32"]).figure(),
}


@pytest.fixture(autouse=True)
def _language_back():
    yield
    qlab.set_language(None)


@pytest.mark.parametrize("name", FIGURES)
def test_same_bytes_every_time(name):
    assert FIGURES[name]()._repr_html_() == FIGURES[name]()._repr_html_()


@pytest.mark.parametrize("name", FIGURES)
def test_words_change_with_the_language_and_nothing_else(name):
    shapes, printed, texts = set(), set(), {}
    for language in LANGUAGES:
        qlab.set_language(language)
        html = FIGURES[name]()._repr_html_()
        svg = html[html.index("<svg") : html.index("</svg>") + 6]
        root = ET.fromstring(svg)  # well-formed
        texts[language] = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
        shapes.add(re.sub(r'aria-label="[^"]*"|<text.*?</text>', "", svg))
        assert root.get("aria-label") == FIGURES[name]().word("alt")
        assert label(f"figure.{name}.caption", language, **FIGURES[name]().data)[:20] in html.replace("&#x27;", "'")
        printed.add(repr(FIGURES[name]()))
    assert len(shapes) == len(printed) == 1


@pytest.mark.parametrize("name", FIGURES)
def test_a_page_decides_colours_and_fonts(name):
    svg = FIGURES[name]().svg()
    assert "DejaVu" not in svg
    assert "<style" not in svg
    assert "<metadata" not in svg
    for key, color in COLORS.items():
        bare = re.sub(rf"var\(--qlab-{key}, {color}\)", "", svg)
        assert color not in bare
    if name != "digit_with_fewer_words":  # whose greys are data
        assert not re.search(r"(fill|stroke): #0{6}", svg)
    assert re.search(r'viewBox="0 0 [\d.]+ [\d.]+"', svg)


@pytest.mark.parametrize("name", FIGURES)
def test_outside_a_notebook_it_is_a_matplotlib_figure(name, tmp_path):
    figure = FIGURES[name]()
    assert type(figure.matplotlib()).__name__ == "Figure"
    figure.save(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"


def test_unknown_formats_and_formats_without_exponent():
    with pytest.raises(ValueError, match="float16"):
        qlab.show.number_line("flot16")
    with pytest.raises(TypeError, match="no exponent"):
        qlab.show.binades("int8")


def test_formats_that_a_figure_cannot_draw():
    with pytest.raises(TypeError, match="posit8 has no fields"):
        qlab.show.bit_layouts("float16", "posit8")
    with pytest.raises(ValueError, match="float32 has 32 bits"):
        qlab.show.density("float32")
    with pytest.raises(ValueError, match="low below high"):
        qlab.show.density("int8", low=3, high=3)
    with pytest.raises(ValueError, match="positive numbers"):
        qlab.show.number_lines("int8", limits=(8, 0))
    with pytest.raises(ValueError, match="no format"):
        qlab.show.format_map()


def test_roundings_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="stochastic"):
        qlab.show.rounding_errors("stochastic")
    with pytest.raises(ValueError, match="limit=0"):
        qlab.show.rounding_errors(limit=0)
    with pytest.raises(ValueError, match="copies"):
        qlab.show.stochastic_mean((1, 0))
    with pytest.raises(ValueError, match="steps=9"):
        qlab.show.stochastic_mean(steps=9)


def test_ranges_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="one row of 2 to 16"):
        qlab.show.softmax_shift([1.0, np.inf])
    with pytest.raises(TypeError, match="int8 has no exponent"):
        qlab.show.softmax_shift([1.0, 2.0], "int8")
    with pytest.raises(ValueError, match="scale=3"):
        qlab.show.gradient_windows({"w1": np.ones(2)}, scale=3.0)
    with pytest.raises(ValueError, match="'w1' has no element"):
        qlab.show.gradient_windows({"w1": np.zeros(2)})
    with pytest.raises(ValueError, match="0 gradients"):
        qlab.show.gradient_windows({})
    with pytest.raises(ValueError, match="low below high"):
        qlab.show.gradient_windows({"w1": np.ones(2)}, low=3, high=3)


def test_activations_that_cannot_be_drawn():
    pytest.importorskip("torch")
    with pytest.raises(ValueError, match="has no range to draw"):
        qlab.show.observer_ranges(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="1 of 3 values are not finite"):
        qlab.show.observer_ranges(np.array([[1.0, 2.0, np.nan]]))


def test_the_observer_with_the_least_error_has_the_best_ratio():
    pytest.importorskip("torch")
    figure = qlab.show.observer_ranges(np.random.default_rng(0).laplace(size=(16, 500)), 4)
    ratios = dict(part.split() for part in figure.data["sqnr"].split(" / "))
    assert max(ratios, key=lambda name: float(ratios[name])) == "histogram_mse"


def test_a_history_is_drawn_as_it_was():
    pytest.importorskip("torch")
    scaler, reports = scaled_training()
    assert scaler.skipped == [4, 5]
    figure = scaler.figure(reports)
    drawn = figure.matplotlib()
    staircase, edges, _ = drawn.axes[0].patches[0].get_data()
    assert np.repeat(2.0**staircase, np.diff(edges).astype(int)).tolist() == scaler.scales
    assert (edges[0], edges[-1]) == (-0.5, len(scaler.scales) - 0.5)
    assert [(x, 2.0**y) for x, y in drawn.axes[0].lines[0].get_xydata()] == [(4, scaler.scales[4]), (5, scaler.scales[5])]
    assert figure.data["largest"] == f"{200 / 6:.3g}"
    assert qlab.show.scale_history(scaler).data["layers"] == 0
    before = figure.svg()
    scaler.scales.append(2.0**19)
    scaler.skipped.append(12)
    assert figure.svg() == before  # though training went on
    scaler.load_state_dict(scaler.state_dict() | {"scales": [1.0, 0.0], "skipped": []})
    assert scaler.figure().matplotlib().axes[0].patches[0].get_data().values.tolist() == [0.0, -149.0]


def test_underflow_of_layers_is_drawn_as_reported():
    pytest.importorskip("torch")
    scaler, columns = qlab.amp.LossScaler(), ("tensor", "count", "underflow")
    scaler.load_state_dict(scaler.state_dict() | {"scales": [2.0] * 10})
    reports = {
        2: qlab.show.Table(columns, [("a.weight", 90, 10.0), ("a.bias", 10, 100.0), ("b", 4, 0.0)]),
        7: qlab.show.Table(columns, [("a.weight", 90, 0.0), ("a.bias", 10, 95.0), ("b", 4, 38.0)]),
    }
    figure = scaler.figure(dict(reversed(reports.items())))
    assert (figure.data["layers"], figure.data["largest"]) == (2, "38")
    axes = figure.matplotlib().axes[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    cells = [
        (path.vertices[:, 0].min(), path.vertices[:, 0].max(), round(path.vertices[:, 1].mean()), color[3])
        for strip in axes.collections for path, color in zip(strip.get_paths(), strip.get_facecolors(), strict=True)
    ]  # fmt: skip
    assert cells == [(1.5, 6.5, 0, 0.5), (6.5, 9.5, 0, 0.25), (6.5, 9.5, 1, 1.0)]  # 19 %, 9.5 % and 38 % of at most 38 %
    scaler.load_state_dict(scaler.state_dict() | {"scales": [2.0] * 500})
    axes = scaler.figure({step: reports[7 if step % 2 else 2] for step in range(500)}).matplotlib().axes[1]
    assert 100 < sum(len(strip.get_paths()) for strip in axes.collections) <= 2 * 200  # of 500 reports, 200


def test_histories_that_cannot_be_drawn():
    pytest.importorskip("torch")
    scaler, reports = scaled_training()
    with pytest.raises(TypeError, match="not GradScaler"):
        qlab.show.scale_history(torch.amp.GradScaler("cpu"))
    with pytest.raises(ValueError, match="no step to draw; train one step at least"):
        qlab.amp.LossScaler().figure()
    with pytest.raises(TypeError, match="dict of step to the table"):
        scaler.figure(list(reports.values()))
    with pytest.raises(ValueError, match=r"reports\[12\] is of no step of this scaler's; it has steps 0 to 11"):
        scaler.figure({12: reports[0]})
    with pytest.raises(TypeError, match=r"reports\[0\] is not a table of qlab.amp.underflow_report"):
        scaler.figure({0: qlab.show.Table(("tensor",), [("a",)])})


def test_arithmetic_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="highest=3"):
        qlab.show.stalling_sums(highest=3)
    with pytest.raises(TypeError, match="no exponent"):
        qlab.show.sum_errors("int8")
    with pytest.raises(ValueError, match="rows=0"):
        qlab.show.sum_errors(rows=0)
    with pytest.raises(ValueError, match="do not match"):
        qlab.show.lost_updates([1.0], [0.1, 0.2])
    for figure in (qlab.show.stalling_sums, lambda *formats: qlab.show.lost_updates([1.0], [0.1], *formats)):
        with pytest.raises(ValueError, match="got 5 formats"):
            figure(*["bfloat16"] * 5)


def test_superscript():
    assert superscript(-14) == "2⁻¹⁴"


def test_table_in_a_notebook_and_in_a_terminal():
    table = qlab.show.Table(("format", "max"), [("a<b", 448.0), ("zero", 0.1234567)])
    qlab.set_language("vi")
    html = table._repr_html_()
    assert "a&lt;b" in html
    assert label("column.max", "vi") in html
    assert label("cell.zero", "vi") in html
    assert "zero" not in html
    assert repr(table) == "format     max\na<b        448\nzero    0.1235"

"""The float explorer in a real browser: its arithmetic against qlab's, its bits and keys, its words, its width."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Context, Decimal
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_browser import FLAGS, SIDEWAYS, find_chromium

import qlab
from qlab.number.formats import FORMATS, FloatFormat
from qlab.number.rounding import ROUNDINGS

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

SCRIPT = Path(__file__).resolve().parents[2] / "book" / "_static" / "float-explorer.js"
FLOATS = {name: fmt for name, fmt in FORMATS.items() if isinstance(fmt, FloatFormat)}
DETERMINISTIC = [rounding for rounding in ROUNDINGS if rounding != "stochastic"]
LANGUAGES = {"en": "en", "zh": "zh-Hans", "vi": "vi", "fa": "fa"}
PAGE = """<!doctype html><html lang="{language}" dir="{direction}"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><script src="{script}" defer></script>
<body style="margin: 10px"><qlab-float-explorer format="{format}" value="{value}"></qlab-float-explorer></html>"""

EXPLORER = "document.querySelector('qlab-float-explorer').shadowRoot"
BITS = f"[...{EXPLORER}.querySelectorAll('[aria-pressed]')]"
PATTERN = f"{BITS}.map(bit => bit.textContent).join('')"
ENCODE = "cases => cases.map(([text, format, rounding]) => QlabFloatExplorer.encode(text, format, rounding))"


class Tab:
    """A page of a browser that runs in a thread of its own: in one thread playwright can be started only once."""

    def __init__(self, pool: ThreadPoolExecutor, page: Any) -> None:
        self.pool, self.page = pool, page

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *args, **options: self.pool.submit(getattr(self.page, name), *args, **options).result()


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    chromium = find_chromium()
    if chromium is None or find_spec("playwright") is None:
        (pytest.fail if os.environ.get("QLAB_REQUIRE_BROWSER") == "1" else pytest.skip)("needs Chromium and playwright")
    from playwright.sync_api import sync_playwright

    with ThreadPoolExecutor(1) as pool:
        playwright = pool.submit(sync_playwright().start).result()
        browser = pool.submit(playwright.chromium.launch, executable_path=chromium, args=FLAGS).result()
        page = pool.submit(browser.new_page, viewport={"width": 900, "height": 900}).result()
        page.folder, page.complaints = tmp_path_factory.mktemp("explorer"), []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        yield Tab(pool, page)
        pool.submit(browser.close).result()
        pool.submit(playwright.stop).result()
    assert page.complaints == []


def show(tab: Tab, fmt: str = "float16", value: str = "0.1", language: str = "en") -> None:
    """Opens a page with one explorer."""
    direction = "rtl" if language == "fa" else "ltr"
    html = PAGE.format(script=SCRIPT.as_uri(), language=language, direction=direction, format=fmt, value=value)
    page = tab.page.folder / "page.html"
    page.write_text(html, "utf8")
    tab.goto(page.as_uri())
    tab.wait_for_function(EXPLORER)


def digits(x: Fraction) -> str:
    """A dyadic fraction as a decimal, exactly."""
    context = Context(prec=1200, Emin=-9999, Emax=9999)
    return str(context.divide(Decimal(x.numerator), Decimal(x.denominator)))


def bits_of(x: float, fmt: str) -> str:
    return f"{int(qlab.encode(x, fmt)) & ((1 << FLOATS[fmt].bits) - 1):0{FLOATS[fmt].bits}b}"


# --- arithmetic ------------------------------------------------------------------------------------------------------
def magnitude_codes(fmt: FloatFormat) -> list[int]:
    """Codes of finite magnitudes: all of them, or the ends of the range, of some binades, and a few at random."""
    if fmt.bits <= 6:
        return list(range(fmt.max_code + 1))
    step, rng = 1 << fmt.mantissa_bits, random.Random(fmt.name)
    ends = [0, 1, 2, 3, step - 1, step, step + 1, fmt.max_code - 1, fmt.max_code, fmt.bias * step, fmt.max_code - step + 1]
    codes = {*ends, *(rng.randrange(fmt.max_code) for _ in range(14))}
    return sorted(code for code in codes if 0 <= code <= fmt.max_code)


def is_float64(x: Fraction) -> bool:
    return abs(x) <= Fraction(FLOATS["float64"].max) and Fraction(float(x)) == x


def hard_values(fmt: FloatFormat) -> list[Fraction]:
    """Values, midpoints and what lies just beside them, both signs; the last step leads beyond the largest value."""
    points = [Fraction(fmt.max) * 3, Fraction(fmt.max) * 2**40]
    for code in magnitude_codes(fmt):
        value = Fraction(fmt.magnitude(code))
        exponent = max(value.numerator.bit_length() - value.denominator.bit_length(), fmt.emin)  # value is dyadic
        step = Fraction(2) ** (exponent - fmt.mantissa_bits)
        points += [value, value + step / 2, value + step]
    beside = [x * (1 + sign * Fraction(1, 2**70)) for x in points for sign in (1, -1)]
    near = [Fraction(math.nextafter(float(x), end)) for x in points for end in (1e308, 0.0) if is_float64(x)]
    return [sign * x for x in sorted({*points, *beside, *near}) for sign in (1, -1)]


def expected_codes(texts: list[str], exact: list[Fraction], fmt: FloatFormat, rounding: str) -> list[int]:
    """`qlab.encode` where float64 holds the value, else `qlab.explain`."""
    held = [is_float64(x) for x in exact]
    floats = np.array([float(text) if ok else 0.0 for text, ok in zip(texts, held, strict=True)])
    codes = qlab.encode(floats, fmt, rounding=rounding)
    mask = (1 << fmt.bits) - 1
    return [
        int(code) & mask if ok else qlab.explain(text, fmt, rounding=rounding).code
        for text, code, ok in zip(texts, codes, held, strict=True)
    ]


def check_codes(tab: Tab, texts: list[str], fmt: FloatFormat, rounding: str, expected: list[int]) -> None:
    answers = tab.evaluate(ENCODE, [[text, fmt.name, rounding] for text in texts])
    codes = [int(answer["code"], 16) for answer in answers]
    wrong = [(t[:60], hex(a), hex(b)) for t, a, b in zip(texts, codes, expected, strict=True) if a != b]
    assert not wrong, (fmt.name, rounding, len(wrong), wrong[:5])
    values = [float(answer["value"]) for answer in answers]
    decoded = qlab.decode(np.array(expected, np.uint64).astype(np.int64), fmt)
    assert np.array_equal(np.array(values), decoded, equal_nan=True)
    numbers = ~np.isnan(decoded)
    assert np.array_equal(np.signbit(values)[numbers], np.signbit(decoded)[numbers])


@pytest.fixture(scope="module")
def shown(tab: Tab) -> Tab:
    show(tab)
    return tab


def test_formats_and_roundings_are_those_of_qlab(shown: Tab) -> None:
    data = shown.evaluate("QlabFloatExplorer.data")
    mine = {
        name: [fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.infinities, fmt.nans, fmt.subnormals, fmt.signed]
        for name, fmt in FLOATS.items()
    }
    assert list(data["FORMATS"].items()) == list(mine.items())
    assert data["ROUNDINGS"] == DETERMINISTIC
    odd = [name for name, fmt in FLOATS.items() if not fmt.subnormals and fmt.mantissa_bits]
    assert not odd, "the explorer knows no format with fraction bits but without subnormals; teach it in `cut`"


@pytest.mark.parametrize("name", FLOATS)
def test_hard_values(shown: Tab, name: str) -> None:
    fmt = FLOATS[name]
    exact = hard_values(fmt)
    if not fmt.signed:  # explain and encode differ in tiny negative values, see test_special_values
        exact = [x for x in exact if x > 0]
    if fmt.bits == 64:  # hardly any of these is a float64, and explain takes its time
        exact = random.Random(1).sample([x for x in exact if abs(x) <= Fraction(fmt.max)], 60)
    else:
        exact = [x for x in exact if is_float64(x)] + random.Random(1).sample(exact, 30)
    texts = [digits(x) for x in exact]
    for rounding in DETERMINISTIC:
        check_codes(shown, texts, fmt, rounding, expected_codes(texts, exact, fmt, rounding))


@pytest.mark.parametrize("name", FLOATS)
def test_special_values(shown: Tab, name: str) -> None:
    fmt = FLOATS[name]
    ends = [digits(Fraction(x)) for x in (5e-324, -5e-324, 1e-300, -1e-300, 1e300, -1e300, -1.0)]
    texts = ["0", "-0", "-0.0", "+.0e5", "inf", "-inf", "Infinity", "+inf", "nan", "-nan", *ends]
    texts = [text for text in texts if fmt.nan_code is not None or "nan" not in text]
    for rounding in DETERMINISTIC:
        codes = qlab.encode(np.array([float(text) for text in texts]), fmt, rounding=rounding)
        check_codes(shown, texts, fmt, rounding, [int(code) & ((1 << fmt.bits) - 1) for code in codes])


@pytest.mark.parametrize("name", FLOATS)
def test_decimals_are_taken_exactly(shown: Tab, name: str) -> None:
    fmt = FLOATS[name]
    largest = digits(Fraction(fmt.max))
    texts = ["0.1", ".3", "7.", "1e-7", "+2.5E+1", "0.1" + "0" * 200 + "1", "3.14159265358979323846", "1e-400", largest]
    if fmt.bits < 64:
        texts += ["9" * 50, largest + (".1" if "." not in largest else "1")]
    for rounding in DETERMINISTIC:
        check_codes(shown, texts, fmt, rounding, [qlab.explain(text, fmt, rounding=rounding).code for text in texts])


def test_beyond_float64(shown: Tab) -> None:
    """The threshold, a little less, a little more, and far beyond: here qlab has no number to compare with."""
    threshold = 2**1024 - 2**970
    cases = {str(threshold - 1): "7fe", str(threshold): "7ff", str(threshold + 1): "7ff", "1e400": "7ff", "1e9999": "7ff"}
    for text, top in cases.items():
        answers = shown.evaluate(ENCODE, [[text, "float64", rounding] for rounding in DETERMINISTIC])
        assert [answer["code"][2:5] for answer in answers] == [top, top, "7fe", "7ff", "7fe", "7fe"]


def test_every_code_of_small_formats_is_read_back(shown: Tab) -> None:
    for fmt in FLOATS.values():
        if fmt.bits <= 8:
            codes = list(range(1 << fmt.bits))
            texts = [f"0x{code:x}" for code in codes]
            check_codes(shown, texts, fmt, "nearest_even", codes)


def test_other_ways_to_write_a_number(shown: Tab) -> None:
    texts = {"−0.5": 0.5, "۰٫۵": 0.5, "０．５": 0.5, " 0.5 ": 0.5, "INF": math.inf}
    answers = shown.evaluate(ENCODE, [[text, "float16", "nearest_even"] for text in texts])
    assert [abs(float(answer["value"])) for answer in answers] == list(texts.values())


def test_what_is_no_number(shown: Tab) -> None:
    bad = ["", ".", "1,5", "abc", "1e", "0x", "0xg", "--1", "1 2", "<b>", "in", "nanity?", "1e5.5"]
    cases = [(text, "float16", "bad") for text in bad]
    cases += [("0x10000", "float16", "wide"), ("0x40", "float6_e2m3fn", "wide"), ("nan", "float4_e2m1fn", "no_nan")]
    cases += [("1e10000", "float16", "long"), ("1e-10000", "float16", "long"), ("1" * 2001, "float16", "long")]
    answers = shown.evaluate(ENCODE, [[text, fmt, "nearest_even"] for text, fmt, _ in cases])
    assert answers == [{"error": error} for _, _, error in cases]


EXPLAIN = """cases => cases.map(([text, format]) => { const e = QlabFloatExplorer.explain(text, format);
  return [e.below?.name ?? null, e.above?.name ?? null, e.step ?? null, e.stored.kind, e.verdict ?? null]; })"""


@pytest.mark.parametrize("name", [name for name in FLOATS if name != "float8_e8m0fnu"])
def test_neighbours_step_and_verdict(shown: Tab, name: str) -> None:
    fmt = FLOATS[name]
    exact = [x for x in hard_values(fmt) if abs(x) <= Fraction(fmt.max)]
    texts = [digits(x) for x in random.Random(2).sample(exact, 60)]
    answers = shown.evaluate(EXPLAIN, [[text, name] for text in texts])
    for text, (below, above, step, _, verdict) in zip(texts, answers, strict=True):
        ours = qlab.explain(text, fmt)
        found = [None if side is None else float(side) for side in (below, above)]
        assert found == [ours.below, ours.above], text
        assert 2.0**step == ours.ulp, text
        assert ours.error is not None
        nearer = "to_above" if ours.error > 0 else "to_below"
        assert verdict == {"exact": "exact", "tie_even": "tie"}.get(ours.why, nearer), text


def test_kinds(shown: Tab) -> None:
    cases = {"0": "zero", "-0": "zero", "1e-7": "subnormal", "1": "normal", "-inf": "inf", "nan": "nan", "65520": "inf"}
    answers = shown.evaluate(EXPLAIN, [[text, "float16"] for text in cases])
    assert [answer[3] for answer in answers] == list(cases.values())


def test_outside_the_range(shown: Tab) -> None:
    cases = [["464", "float8_e4m3fn"], ["1e9", "float4_e2m1fn"], ["-2", "float8_e8m0fnu"], ["0", "float8_e8m0fnu"]]
    smallest = str(2.0**-127)
    answers = shown.evaluate(EXPLAIN, cases)
    assert [answer[4] for answer in answers] == ["over", "over", "negative", "under"]
    assert [[answer[0], answer[1]] for answer in answers] == [["448", None], ["6", None], [None, None], [None, smallest]]


# --- the element -----------------------------------------------------------------------------------------------------
def test_parts(tab: Tab) -> None:
    show(tab, "bfloat16", "6.75")
    assert tab.evaluate(f"{EXPLORER}.querySelector('input[type=text]').value") == "6.75"
    assert tab.evaluate(f"[...{EXPLORER}.querySelector('select').options].map(o => o.value)") == list(FLOATS)
    assert tab.evaluate(f"{EXPLORER}.querySelector('select').value") == "bfloat16"
    assert tab.evaluate(PATTERN) == bits_of(6.75, "bfloat16")
    assert tab.evaluate(f"{BITS}.every(bit => bit.localName === 'button' && bit.ariaLabel && bit.ariaPressed)")
    assert tab.evaluate(f"{EXPLORER}.querySelectorAll('table tr').length") == len(DETERMINISTIC)


@pytest.mark.parametrize("name", FLOATS)
def test_a_click_turns_a_bit(tab: Tab, name: str) -> None:
    show(tab, name, "1.5")
    bits = FLOATS[name].bits
    for i in {0, 1, bits // 2, bits - 1}:
        before = tab.evaluate(PATTERN)
        tab.click(f"#bit{i}")
        after = before[:i] + "10"[int(before[i])] + before[i + 1 :]
        assert tab.evaluate(PATTERN) == after
        assert tab.evaluate(f"{BITS}[{i}].ariaPressed") == ("true" if after[i] == "1" else "false")
        value = float(qlab.decode(np.array(int(after, 2), np.uint64).astype(np.int64), name))
        typed = tab.input_value("#text")
        assert float(typed) == value or math.isnan(value), typed
        assert math.isnan(float(typed)) == math.isnan(value)


def test_keys(tab: Tab) -> None:
    show(tab, "float16", "0")
    tab.focus("#format")
    tab.press("#format", "Tab")
    active = f"{EXPLORER}.activeElement.id"
    assert tab.evaluate(active) == "bit0"
    for key, place in [("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1)]:
        tab.press(f"#{tab.evaluate(active)}", key)
        assert tab.evaluate(active) == f"bit{place}"
    tab.press("#bit1", "Space")
    assert tab.evaluate(PATTERN) == "01" + "0" * 14
    assert tab.evaluate(active) == "bit1", "the focus is lost"
    assert tab.evaluate(f"{BITS}.filter(bit => bit.tabIndex === 0).map(bit => bit.id)") == ["bit1"]
    tab.press("#bit1", "Tab")
    assert tab.evaluate(active) == "below"


def test_going_to_a_neighbour(tab: Tab) -> None:
    show(tab, "float8_e4m3fn", "0.1")
    for end, value in [("above", 0.1015625), ("above", 0.109375), ("below", 0.1015625), ("below", 0.09375)]:
        tab.click(f"#{end}")
        assert tab.evaluate(PATTERN) == bits_of(value, "float8_e4m3fn")
        assert tab.evaluate(f"{EXPLORER}.activeElement.id") == end


def test_another_format_rounds_the_same_number(tab: Tab) -> None:
    show(tab, "float32", "0.1")
    tab.click("#bit31")  # no digit of the value may be lost in the text field
    value = Fraction(tab.input_value("#text"))
    assert value == Fraction(float(qlab.decode(qlab.encode(0.1, "float32") ^ 1, "float32")))
    tab.select_option("#format", "bfloat16")
    assert tab.evaluate(PATTERN) == bits_of(float(value), "bfloat16")


@pytest.mark.parametrize("text", ["0.1", "-0.1", "65510", "-65519", "1e-8", "0.5"])
def test_line_is_to_scale(tab: Tab, text: str) -> None:
    show(tab, "float16", text)
    ours = qlab.explain(text, "float16")
    lefts = tab.evaluate(
        f"Object.fromEntries([...{EXPLORER}.querySelectorAll('.line i')].map(i => [i.className, i.style.left]))"
    )
    if ours.midpoint is None:
        assert lefts == {}
        return
    # From the midpoint and the step, as beyond the largest value the upper end is no value of the format.
    share = (Fraction(text) - ours.midpoint) / Fraction(ours.ulp) + Fraction(1, 2)
    assert float(lefts.pop("typed")[:-1]) == pytest.approx(float(share) * 100, abs=0.01)
    assert lefts == {"below": "0%", "middle": "50%", "above": "100%"}


@pytest.mark.parametrize(
    "fmt, text", [("float16", "-0.1"), ("float8_e4m3fn", "464"), ("float8_e8m0fnu", "3"), ("float32", "2")]
)
def test_table_of_roundings(tab: Tab, fmt: str, text: str) -> None:
    show(tab, fmt, text)
    rows = tab.evaluate(
        f"[...{EXPLORER}.querySelectorAll('td:last-child')].map(cell => cell.innerText.trim().split(/\\s+/))"
    )
    for rounding, (*arrow, name, code) in zip(DETERMINISTIC, rows, strict=True):
        ours = qlab.explain(text, fmt, rounding=rounding)
        assert int(code, 16) == ours.code
        assert str(float(name)) == str(ours.value)
        side = {ours.below: ["↓"], ours.above: ["↑"]}.get(ours.value, [])
        assert arrow == (side if ours.why != "exact" else [])


def test_messages_stand_beside_the_field(tab: Tab) -> None:
    show(tab, "float16", "nan")
    message = f"{EXPLORER}.getElementById('message').textContent"
    assert tab.evaluate(message) == ""
    tab.select_option("#format", "float4_e2m1fn")
    assert tab.evaluate(message) == "\u2066float4_e2m1fn\u2069 has no NaN."
    assert tab.evaluate(PATTERN) == "0000"
    tab.fill("#text", "many")
    assert "0x2e66" in tab.evaluate(message)
    assert tab.get_attribute("#text", "aria-invalid") == "true"
    tab.fill("#text", "6")
    assert tab.evaluate(message) == ""
    assert tab.evaluate(PATTERN) == "0111"


# --- words and looks -------------------------------------------------------------------------------------------------
def test_words_are_complete(shown: Tab) -> None:
    words = shown.evaluate("QlabFloatExplorer.data.WORDS")
    assert set(DETERMINISTIC) <= set(words)
    for key, texts in words.items():
        assert len(texts) == len(LANGUAGES), key
        assert all(text.strip() for text in texts), key
        assert len({frozenset(part.split("}")[0] for part in text.split("{")[1:]) for text in texts}) == 1, key
        assert len(set(texts)) == len(texts), f"{key}: two languages say the same"


@pytest.mark.parametrize("code", LANGUAGES)
def test_language_of_the_page(tab: Tab, code: str) -> None:
    show(tab, "float16", "0.1", LANGUAGES[code])
    words = tab.evaluate("QlabFloatExplorer.data.WORDS")
    text = tab.evaluate(f"{EXPLORER}.querySelector('.box').innerText")
    place = list(LANGUAGES).index(code)
    for key in ("number", "stored", "normal", "to_below", "nearest_even"):
        assert words[key][place] in text
    direction = tab.evaluate(f"getComputedStyle({EXPLORER}.querySelector('.box')).direction")
    assert direction == ("rtl" if code == "fa" else "ltr")
    assert tab.evaluate(f"getComputedStyle({EXPLORER}.querySelector('sup').parentElement).direction") == "ltr"
    lefts = tab.evaluate(f"{BITS}.map(bit => bit.getBoundingClientRect().left)")
    assert lefts == sorted(lefts)


@pytest.mark.parametrize("code", LANGUAGES)
def test_fits_a_phone(tab: Tab, code: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    cases = {"float16": "0.1", "float32": "1e-45", "float64": "-2.2250738585072011e-308", "float8_e4m3b11fnuz": "9" * 300}
    for fmt, value in cases.items():
        show(tab, fmt, value, LANGUAGES[code])
        for text in (value, "abc", "0"):
            tab.fill("#text", text)
            assert tab.evaluate(SIDEWAYS) <= 0, (fmt, text)
            assert "undefined" not in tab.evaluate(f"{EXPLORER}.querySelector('.box').innerText"), (fmt, text)
    tab.set_viewport_size({"width": 900, "height": 900})


@pytest.mark.parametrize("width", [390, 900])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float16", "float32"])
def test_nothing_jumps_when_bits_change(tab: Tab, name: str, width: int) -> None:
    tab.set_viewport_size({"width": width, "height": 844})
    show(tab, name, "0.1")
    codes = [random.Random(3).randrange(1 << FLOATS[name].bits) for _ in range(5)] + [0, 1, (1 << FLOATS[name].bits - 1) - 1]
    heights = set()
    for code in codes:
        tab.fill("#text", hex(code))
        heights.add(tab.evaluate(f"{EXPLORER}.host.getBoundingClientRect().height"))
    tab.set_viewport_size({"width": 900, "height": 900})
    assert max(heights) - min(heights) < 1, heights  # of a pixel


def test_the_script_is_small() -> None:
    assert SCRIPT.stat().st_size < 25_000

"""Every page, opened in a real browser: direction, formulas, layout, colours, words, switcher and search.

Needs Chromium (the variable CHROMIUM names it, else it is looked for on the PATH). Without one the tests are skipped;
with QLAB_REQUIRE_BROWSER=1 they fail instead.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")
from book_languages import LANGUAGES
from book_toc import language_pages, read_toc

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("browser")]

PAGES = language_pages(read_toc())
ALL = [f"{code}/{page}" for code in LANGUAGES for page in (*PAGES[code], "search")]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WORDS = {"en": "memory", "zh": "量化", "vi": "lượng", "fa": "کوانتش"}
SAME_IN_ALL = {
    "qlab", "Ctrl", "K", "+", "Ctrl+K", ".ipynb", ".pdf", ".md", "English", "中文", "Tiếng Việt", "فارسی", "#.#. Softmax",
}  # fmt: skip

READY = "window.MathJax?.startup?.promise?.then(() => true) ?? true"
SIDEWAYS = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth) - innerWidth"
FORMULAS = """() => ({
  raw: [...document.querySelectorAll('.math')].filter(m => !m.querySelector('mjx-container')).map(m => m.textContent),
  wrong: [...document.querySelectorAll('[data-mml-node=merror], mjx-merror')].map(m => m.textContent)})"""
# Texts of the article whose contrast with what lies behind them is under 4.5 : 1.
FAINT = """() => {
  const parse = c => { const m = c.match(/[\\d.]+/g); if (!m) return null; const v = m.map(Number);
    return c.startsWith('color(') ? [v[0] * 255, v[1] * 255, v[2] * 255, v[3] ?? 1] : [v[0], v[1], v[2], v[3] ?? 1]; };
  const luminance = c => { const [r, g, b] = c.map(x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor); if (c && c[3] > .5) return c; } return [255, 255, 255]; };
  const faint = new Set(), walker = document.createTreeWalker(document.querySelector('article'), NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    if (!text || e.closest('mjx-container, .headerlink, script, style') || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), colour = parse(e.closest('svg') ? style.fill : style.color);
    if (style.visibility === 'hidden' || !colour) continue;
    const [a, b] = [luminance(colour.slice(0, 3)), luminance(behind(e).slice(0, 3))];
    if ((Math.max(a, b) + .05) / (Math.min(a, b) + .05) < 4.5) faint.add(`${text.slice(0, 40)} ${colour}`);
  }
  return [...faint]; }"""
# What the theme says, as opposed to the author: all that is not the article, and the labels everywhere.
CHROME = """() => {
  const said = new Set(), add = t => { t = (t ?? '').trim().replace(/\\d+/g, '#'); if (/\\p{L}/u.test(t)) said.add(t); };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!e.closest('script, style, noscript, mjx-container, article > *, .toctree-l1, .bd-toc nav'))
      add(walker.currentNode.textContent);
  }
  for (const e of document.querySelectorAll('.admonition-title, .caption-number, summary')) add(e.firstChild?.textContent);
  for (const e of document.querySelectorAll('*'))
    if (!e.closest('article figure, .qlab-figure, .bibtex-citation, mjx-container, qlab-float-explorer'))
      for (const name of ['title', 'aria-label', 'placeholder', 'alt', 'data-bs-title', 'data-tooltip', 'data-toggle-hint'])
        add(e.getAttribute(name));
  return [...said]; }"""


def find_chromium() -> str | None:
    """The browser to use."""
    names = (os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests of a worker."""
    chromium, missing = find_chromium(), ""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "playwright is not installed"
    if chromium is None:
        missing = "no Chromium found; set CHROMIUM to its path"
    if missing and os.environ.get("QLAB_REQUIRE_BROWSER") == "1":
        pytest.fail(missing)
    if missing:
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def said() -> dict[str, set[str]]:
    """What the theme says on each page that has been seen."""
    return {}


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A fresh tab; what went wrong in it is in `tab.complaints`."""
    context = browser.new_context(viewport={"width": 1400, "height": 900}, color_scheme="light")
    tab = context.new_page()
    tab.set_default_timeout(10_000)
    tab.complaints = []
    tab.on("console", lambda message: message.type == "error" and tab.complaints.append(message.text))
    tab.on("pageerror", lambda error: tab.complaints.append(str(error)))
    tab.on("request", lambda request: _own(request.url) or tab.complaints.append(f"asked for {request.url}"))
    yield tab
    context.close()


def _own(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:"))


def show(tab: Any, site: Path, page: str, query: str = "") -> None:
    """Opens a page from its file and waits for its formulas."""
    tab.goto((site / f"{page}.html").as_uri() + query)
    tab.evaluate(READY)


@pytest.mark.parametrize("page", [*ALL, "index", "404"])
def test_page(site: Path, tab: Any, said: dict[str, set[str]], page: str) -> None:
    show(tab, site, page)
    code, name = page.split("/") if "/" in page else ("en", "")
    language = LANGUAGES[code]
    root = tab.evaluate("[document.documentElement.lang, document.documentElement.dir]")
    assert root == [language.tag, language.direction]
    assert tab.evaluate(FORMULAS) == {"raw": [], "wrong": []}
    assert tab.evaluate(SIDEWAYS) <= 0, "scrolls sideways at 1400 px"
    if name:
        said[page] = set(tab.evaluate(CHROME))
        check_switcher(tab, site, name)
    if name not in ("", "search"):
        check_colours(tab)
    tab.set_viewport_size({"width": 390, "height": 844})
    assert tab.evaluate(SIDEWAYS) <= 0, "scrolls sideways at 390 px"
    assert not tab.complaints


def check_switcher(tab: Any, site: Path, name: str) -> None:
    """The switcher links to the same page in every language, or to that language's start page."""
    links = tab.evaluate("[...document.querySelectorAll('.bd-header-article .qlab-switcher a')].map(a => [a.lang, a.href])")
    for language, (tag, link) in zip(LANGUAGES.values(), links, strict=True):
        target = name if name in (*PAGES[language.code], "search") else "index"
        wanted = (site / language.code / f"{target}.html").as_uri()
        assert (tag, link.split("#")[0]) == (language.tag, wanted)


def check_colours(tab: Any) -> None:
    """All text can be read in light; the button leads to dark, and there too."""
    assert tab.evaluate(FAINT) == [], "too faint in light mode"
    light = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    tab.add_style_tag(content="* { transition: none !important; animation: none !important }")
    for _ in range(3):
        if tab.evaluate("document.documentElement.dataset.theme") == "dark":
            break
        tab.evaluate("document.querySelector('.article-header-buttons .theme-switch-button').click()")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") != light
    assert tab.evaluate(FAINT) == [], "too faint in dark mode"


@pytest.mark.parametrize("code", [code for code in LANGUAGES if code != "en"])
def test_no_word_of_the_theme_is_english(site: Path, tab: Any, said: dict[str, set[str]], code: str) -> None:
    left = {}
    for name in [name for name in PAGES[code] if name in PAGES["en"]]:
        for page in (f"en/{name}", f"{code}/{name}"):
            if page not in said:  # test_page has not been here
                show(tab, site, page)
                said[page] = set(tab.evaluate(CHROME))
        if english := (said[f"en/{name}"] & said[f"{code}/{name}"]) - SAME_IN_ALL:
            left[name] = english
    assert not left


def test_no_word_of_the_search_page_is_english(site: Path, tab: Any) -> None:
    found = {}
    for code in LANGUAGES:
        for query in (WORDS[code], "xyzzy"):
            show(tab, site, f"{code}/search", f"?q={query}")
            tab.wait_for_function("document.querySelector('#search-results p')?.textContent")
            tab.wait_for_timeout(100)
            found.setdefault(code, set()).update(tab.evaluate(CHROME))
    for code in ("zh", "vi", "fa"):
        assert found["en"] & found[code] <= SAME_IN_ALL


@pytest.mark.parametrize("code", LANGUAGES)
def test_switcher_can_be_clicked(site: Path, tab: Any, code: str) -> None:
    other = LANGUAGES["fa" if code != "fa" else "vi"]
    show(tab, site, f"{code}/{PAGES[code][1]}")
    tab.locator(f".bd-header-article .qlab-switcher a[hreflang={other.tag}]").click()
    tab.wait_for_url(f"**/{other.code}/{PAGES[code][1]}.html")
    assert tab.evaluate("document.documentElement.lang") == other.tag


@pytest.mark.parametrize("code", LANGUAGES)
def test_switcher_is_in_the_sidebar_on_a_phone(site: Path, tab: Any, code: str) -> None:
    tab.set_viewport_size({"width": 390, "height": 844})
    show(tab, site, f"{code}/index")
    tab.locator(".bd-header-article .primary-toggle").click()
    switcher = tab.locator("dialog .qlab-switcher")
    switcher.wait_for(state="visible")
    assert switcher.locator("a").count() == len(LANGUAGES)


@pytest.mark.parametrize("code", LANGUAGES)
def test_search_from_a_file(site: Path, tab: Any, code: str) -> None:
    show(tab, site, f"{code}/search", f"?q={WORDS[code]}")
    tab.locator("#search-results li a").first.wait_for()
    assert not tab.complaints


@pytest.mark.parametrize("code", LANGUAGES)
def test_live_search_by_http(site: Path, address: str, tab: Any, code: str) -> None:
    pytest.importorskip("pagefind", reason="pagefind is not installed; Sphinx's search is tested")
    tab.goto(f"{address}/{code}/index.html")
    tab.wait_for_function("document.documentElement.dataset.qlabSearch === 'live'")
    tab.keyboard.press("Control+k")
    tab.locator("dialog input[name=q]").fill(WORDS[code])
    found = tab.locator("dialog .qlab-results a")
    found.first.wait_for()
    behind = tab.evaluate("getComputedStyle(document.getElementById('pst-search-dialog')).backgroundColor")
    assert behind == tab.evaluate("getComputedStyle(document.body).backgroundColor"), "the results lie over the page's text"
    link = found.first.get_attribute("href")
    assert link
    assert f"/{code}/" in link, "a result in another language"
    found.first.click()
    tab.wait_for_load_state()
    assert tab.evaluate("document.documentElement.lang") == LANGUAGES[code].tag
    assert not tab.complaints


def test_sphinx_search_stays_where_there_is_no_pagefind(site: Path, address: str, tab: Any) -> None:
    tab.route("**/pagefind/**", lambda route: route.fulfill(status=404, body=""))
    tab.goto(f"{address}/en/search.html?q={WORDS['en']}")
    tab.locator("#search-results li a").first.wait_for()


def test_start_page_offers_the_languages(site: Path, tab: Any) -> None:
    show(tab, site, "index")
    for language in LANGUAGES.values():
        assert tab.locator(f"a[lang={language.tag}]").get_attribute("href") == f"{language.code}/index.html"


def test_wrong_address_leads_back(site: Path, address: str, tab: Any) -> None:
    wrong = f"{address}/fa/no/such/page.html"
    page = (site / "404.html").read_text("utf8")
    tab.route(wrong, lambda route: route.fulfill(status=404, body=page, content_type="text/html"))
    tab.goto(wrong)
    assert tab.evaluate("document.querySelector('a[lang=vi]').href") == f"{address}/vi/index.html"

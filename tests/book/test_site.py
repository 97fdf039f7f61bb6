"""The machinery of the book: what is derived from `_toc.yml` and `_config.yml`, and what a built site holds."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sphinx")
from book_catalogs import read_catalogs, script_catalog, translator
from book_finish import add_copy_messages, set_direction
from book_languages import BOOK, LANGUAGES, ROOT, page_language
from book_toc import language_pages, language_toc, read_toc
from qlab_book import _siblings
from rtl_css import logical

TOC = read_toc()
PAGES = language_pages(TOC)
FOREIGN = [code for code in LANGUAGES if code != "en"]
ENGLISH_ONLY = {"a3_api"}


# ---- the table of contents ----


@pytest.mark.parametrize("code", FOREIGN)
def test_every_language_has_the_same_pages_in_the_same_order(code: str) -> None:
    assert PAGES[code] == [page for page in PAGES["en"] if page not in ENGLISH_ONLY]


@pytest.mark.parametrize("code", FOREIGN)
def test_every_language_has_the_same_parts(code: str) -> None:
    shape = [[len(part["chapters"]), part.get("numbered")] for part in language_toc(TOC, code)["parts"]]
    assert shape == [
        [len([chapter for chapter in part["chapters"] if chapter["file"] not in ENGLISH_ONLY]), part.get("numbered")]
        for part in language_toc(TOC, "en")["parts"]
    ]


@pytest.mark.parametrize("code", LANGUAGES)
def test_every_page_has_a_source_and_every_source_is_listed(code: str) -> None:
    sources = {path.stem for path in (BOOK / code).iterdir() if path.suffix in (".md", ".ipynb")}
    assert sources == set(PAGES[code])


def test_toc_of_one_language() -> None:
    chapters = [{"file": "book/en/index"}, {"file": "book/en/a", "sections": [{"file": "book/en/b"}]}]
    parts = [{"caption": "I", "chapters": chapters}, {"caption": "IV", "chapters": [{"file": "book/fa/a"}]}]
    toc = {"format": "jb-book", "root": "index", "parts": parts}
    assert language_toc(toc, "en")["parts"] == [{"caption": "I", "chapters": [{"file": "a", "sections": [{"file": "b"}]}]}]
    assert language_pages(toc)["en"] == ["index", "a", "b"]
    assert language_pages(toc)["fa"] == ["index", "a"]


def test_language_of_a_page() -> None:
    assert page_language("vi", "index").code == "vi"
    assert page_language("", "book/fa/index").code == "fa"
    assert page_language("", "search").code == "en"


def test_switcher_without_a_sibling_leads_to_the_start_page() -> None:
    config = SimpleNamespace(
        qlab_language="en", qlab_pages={**{code: ["index"] for code in LANGUAGES}, "en": ["index", "a3_api"]}
    )
    links = _siblings(SimpleNamespace(config=config), "a3_api", lambda target, resource: target)
    assert [(link["url"], link["same"]) for link in links] == [
        ("#", True),
        *((f"../{code}/index.html", False) for code in LANGUAGES if code != "en"),
    ]


# ---- stylesheets for both directions ----


@pytest.mark.parametrize(
    ("physical", "expected"),
    [
        ("a{margin-left:1px}", "a{margin-inline-start:1px}"),
        ("a{left:0}", "a{inset-inline-start:0}"),
        ("a{padding:1px 2px 3px 4px}", "a{padding-block:1px 3px;padding-inline:4px 2px}"),
        (
            "a{margin:0 calc(1px + 2px) 0 3px !important}",
            "a{margin-block:0 0 !important;margin-inline:3px calc(1px + 2px) !important}",
        ),
        ("a{margin:1px 2px 3px}", "a{margin:1px 2px 3px}"),
        ("a{border-left:1px solid}", "a{border-inline-start:1px solid}"),
        ("a{border-right-color:red}", "a{border-inline-end-color:red}"),
        ("a{border-top-left-radius:2px}", "a{border-start-start-radius:2px}"),
        ("a{text-align:left;float:right}", "a{text-align:start;float:inline-end}"),
        ("a{--my-left:1px}", "a{--my-left:1px}"),
        (".left{color:red}", ".left{color:red}"),
        ("a{background-position:left top}", "a{background-position:left top}"),
    ],
)
def test_logical_css(physical: str, expected: str) -> None:
    assert logical(physical) == expected
    assert logical(expected) == expected


# ---- words ----


def test_catalogs_say_the_same_things_in_every_language() -> None:
    for name, english in read_catalogs("fa").items():
        for code in FOREIGN:
            ids = {message.id for message in read_catalogs(code)[name]}
            assert ids == {message.id for message in english}, (code, name)


@pytest.mark.parametrize("code", FOREIGN)
def test_catalogs_are_complete(code: str) -> None:
    for name, catalog in read_catalogs(code).items():
        for message in catalog:
            if not message.id:
                continue
            assert message.string, (name, message.id)
            assert message.string != message.id, (name, message.id)
            placeholders = re.findall(r"%s|\$?\{\w+\}", message.id)
            assert re.findall(r"%s|\$?\{\w+\}", message.string) == placeholders, (name, message.id)


def test_words_of_our_templates_are_in_the_catalogs() -> None:
    sources = [
        *(BOOK / "_ext").rglob("*.html"),
        BOOK / "_ext" / "qlab_book.py",
        BOOK / "_ext" / "site.py",
        BOOK / "_ext" / "book_finish.py",
    ]
    words = {
        word for path in sources for _, word in re.findall(r"""\b(?:qlab)?_\((["'])(.+?)\1\)""", path.read_text("utf8"))
    }
    assert len(words) > 15
    assert words <= {message.id for message in read_catalogs("fa")["qlab"]}


def test_script_catalog_and_copy_button() -> None:
    assert "جست‌وجو" in script_catalog("fa")
    once = add_copy_messages("const messages = {}\nlet locale = 'en'\n")
    assert translator("fa").gettext("Copied") in once
    assert add_copy_messages(once) == once


def test_direction_is_set_once() -> None:
    page = set_direction('<html lang="fa" data-x="1"><body></body></html>')
    assert page.startswith('<html lang="fa" dir="rtl" data-x="1">')
    assert set_direction(page) == page


# ---- the site ----


def test_site_has_every_page_and_nothing_else(site: Path) -> None:
    for code in LANGUAGES:
        assert {path.stem for path in (site / code).glob("*.html")} == {*PAGES[code], "search"}
    assert {path.name for path in site.iterdir()} - {"pagefind"} == {
        *LANGUAGES,
        "index.html",
        "404.html",
        ".nojekyll",
        "favicon.svg",
    }


@pytest.mark.parametrize("code", LANGUAGES)
def test_pages_name_their_language_and_siblings(site: Path, code: str) -> None:
    language = LANGUAGES[code]
    for page in PAGES[code]:
        text = (site / code / f"{page}.html").read_text("utf8")
        assert f'<html lang="{language.tag}" dir="{language.direction}"' in text
        alternates = set(re.findall(r'rel="alternate" hreflang="([^"]+)"', text))
        assert alternates == {other.tag for other in LANGUAGES.values() if page in PAGES[other.code]}
        assert language.title in re.search("<title>(.*?)</title>", text, re.DOTALL)[1].replace("&#34;", '"')


@pytest.mark.parametrize("code", LANGUAGES)
def test_numbering_starts_anew_in_every_language(site: Path, code: str) -> None:
    first = next(page for page in PAGES[code] if page.startswith("01_"))
    text = (site / code / f"{first}.html").read_text("utf8")
    assert re.search(r'<h1><span class="section-number">1\. </span>', text)


@pytest.mark.parametrize("code", LANGUAGES)
def test_previous_and_next_stay_in_the_language(site: Path, code: str) -> None:
    text = (site / code / f"{PAGES[code][1]}.html").read_text("utf8")
    assert re.findall(r'<a class="(?:left-prev|right-next)"\s+href="([^"]+)"', text) == [
        "index.html",
        f"{PAGES[code][2]}.html",
    ]


def test_no_advertisement_and_no_live_code(site: Path, pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text("utf8")
        assert "thebe" not in text.lower(), page
        assert "executablebooks" not in text, page
        assert "Powered by" not in text, page


def test_digest_tells_whether_a_language_must_be_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = runpy.run_path(str(ROOT / "book" / "_ext" / "site.py"))
    source_digest = builder["source_digest"]
    glossary = tmp_path / "book" / "glossary.csv"
    for path in (*(tmp_path / name for name in ("_config.yml", "_toc.yml", "book/references.bib")), glossary):
        path.parent.mkdir(exist_ok=True)
        path.write_text("", "utf8")
    (tmp_path / "book" / "fa").mkdir()
    page = tmp_path / "book" / "fa" / "page.md"
    monkeypatch.setitem(source_digest.__globals__, "ROOT", tmp_path)
    monkeypatch.setitem(source_digest.__globals__, "BOOK", tmp_path / "book")
    seen = [source_digest("fa")]
    for path, text in ((page, "one"), (page, "two"), (glossary, "key")):
        path.write_text(text, "utf8")
        seen.append(source_digest("fa"))
    english = source_digest("en")
    page.unlink()
    assert len({*seen, source_digest("fa")}) == 5
    assert source_digest("en") == english, "a Persian page is no business of the English site"


@pytest.mark.xdist_group("top_level_book")
def test_top_level_book_builds_with_all_languages(tmp_path: Path) -> None:
    """`jupyter-book build .`, warnings as errors: one book with the four languages in it."""
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", ".", "-W", "-n", "--keep-going", "-q"]
    run = subprocess.run([*command, "--path-output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    for code in ("en", "zh", "vi", "fa"):
        assert (tmp_path / "_build" / "html" / "book" / code / "02_float_anatomy.html").exists()

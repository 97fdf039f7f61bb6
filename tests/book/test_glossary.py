"""The glossary: complete in every language, typed as each language is typed, and shown on every glossary page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from book_languages import LANGUAGES

pytest.importorskip("sphinx")
from book_glossary import glossary_html, read_glossary

ROWS = read_glossary()


def test_every_term_has_every_language() -> None:
    gaps = [(row["key"], code) for row in ROWS for code in LANGUAGES if not row[code].strip()]
    assert len(ROWS) >= 80
    assert not gaps


def test_no_key_and_no_term_comes_twice() -> None:
    for column in ("key", *LANGUAGES):
        terms = [row[column] for row in ROWS]
        assert sorted(terms) == sorted(set(terms)), column


@pytest.mark.parametrize("row", ROWS, ids=[row["key"] for row in ROWS])
def test_spelling(row: dict[str, str]) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", row["key"])
    assert all(text == text.strip() and "  " not in text for text in row.values())
    assert "(" not in row["zh"], "Chinese takes full-width brackets"
    assert not re.search("[يكة٠-٩]", row["fa"]), "Arabic letters where Persian has its own"
    assert not re.search(r"(^|\s)(می|نمی) ", row["fa"]), "a verb's prefix is joined by ZWNJ"


def test_page_language_comes_first() -> None:
    html = glossary_html(ROWS[:1], "fa")
    assert re.findall(r'<th scope="col" lang="([^"]+)"', html) == ["fa", "en", "zh-Hans", "vi"]


@pytest.mark.parametrize("code", LANGUAGES)
def test_page_shows_all_terms(site: Path, code: str) -> None:
    page = (site / code / "a2_glossary.html").read_text("utf8")
    missing = [row["key"] for row in ROWS if f'id="term-{row["key"]}"' not in page]
    assert not missing

"""Chapters are equal in all languages, cell for cell, and every code cell is a call to qlab that a reader can follow."""

from __future__ import annotations

import re
import sys
import unicodedata
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parents[2] / "book"
sys.path.insert(0, str(BOOK / "_ext"))
from notebooks import MEASURED, source_hash, stale  # noqa: E402

LANGUAGES = ("en", "zh", "vi", "fa")
CHAPTERS = sorted(path.name for path in (BOOK / "en").glob("*.ipynb"))
TRANSLATED = [(name, language) for name in CHAPTERS for language in LANGUAGES[1:]]
ALL = [(name, language) for name in CHAPTERS for language in LANGUAGES]

MATH = re.compile(r"(?<![\\$])\$\$.+?\$\$|(?<![\\$])\$(?!\$)[^$\n]+\$|```\{math\}.*?```", re.DOTALL)
LABEL = re.compile(
    r"\((\S+)\)=|^:label: (\S+)|\{(?:ref|numref|eq|cite)\}`(?:[^`<]*<)?([^`>]+)>?`|\{solution-start\} (\S+)", re.M
)
DIRECTIVE = re.compile(r"^(?:```|:::)\{([\w-]+)\}", re.MULTILINE)


def cells(name: str, language: str):
    return nbformat.read(BOOK / language / name, as_version=4).cells


def texts(cell) -> list[str]:
    """What a code cell prints: streams, plain text, and errors; not figures and tables, whose words are translated."""
    return [o.get("text") or o.get("evalue") or o["data"].get("text/plain", "") for o in cell.outputs]


def formulas(source: str, language: str) -> list[str]:
    found = [re.sub(r"\\text\{[^{}]*\}", r"\\text{}", m) for m in MATH.findall(re.sub(r"(?<!`)`[^`\n]+`(?!`)", "", source))]
    return sorted(m.replace(f"{language}-", "@-") for m in found)


def labels(source: str, language: str) -> list[str]:
    return sorted(part.replace(f"{language}-", "@-", 1) for found in LABEL.findall(source) for part in found if part)


def headings(source: str) -> list[int]:
    without_code = re.sub(r"```.*?```", "", source, flags=re.DOTALL)
    return [len(marks) for marks in re.findall(r"^(#+) ", without_code, re.MULTILINE)]


def test_every_language_has_every_chapter():
    for language in LANGUAGES:
        assert sorted(path.name for path in (BOOK / language).glob("*.ipynb")) == CHAPTERS


@pytest.mark.parametrize("name, language", TRANSLATED)
def test_equal_cell_for_cell(name, language):
    english, other = cells(name, "en"), cells(name, language)
    assert [(c.cell_type, c.id) for c in english] == [(c.cell_type, c.id) for c in other]
    for a, b in zip(english, other, strict=True):
        assert a.metadata.get("tags", []) == b.metadata.get("tags", []), a.id
        if a.cell_type == "code":
            assert a.source == b.source, a.id
            assert texts(a) == texts(b), a.id
        else:
            assert formulas(a.source, "en") == formulas(b.source, language), a.id
            assert labels(a.source, "en") == labels(b.source, language), a.id
            assert headings(a.source) == headings(b.source), a.id
            assert DIRECTIVE.findall(a.source) == DIRECTIVE.findall(b.source), a.id
            assert a.source.count("\n|") == b.source.count("\n|"), a.id
            assert a.source != b.source or not re.search("[a-z]{4} [a-z]{3}", a.source), f"{a.id} is not translated"


@pytest.mark.parametrize("name, language", TRANSLATED)
def test_no_translation_is_older_than_its_english(name, language):
    model = {c.id: source_hash(c) for c in cells(name, "en")}
    assert {c.id: c.metadata["qlab"]["source_hash"] for c in cells(name, language)} == model
    assert not stale([BOOK / language / name])


@pytest.mark.parametrize("name, language", ALL)
def test_stored_clean(name, language):
    raw = (BOOK / language / name).read_text(encoding="utf-8")
    notebook = nbformat.reads(raw, as_version=4)
    nbformat.validate(notebook)
    assert "iopub" not in raw
    assert unicodedata.is_normalized("NFC", raw)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.execution_count is None, cell.id
            assert cell.outputs, f"{cell.id} shows nothing, or was not executed"
            assert all(o.output_type != "error" for o in cell.outputs) or "raises-exception" in cell.metadata.get("tags", [])


@pytest.mark.parametrize("name", CHAPTERS)
def test_shape_of_a_chapter(name):
    chapter = cells(name, "en")
    code = [c for c in chapter if c.cell_type == "code"]
    words = "\n".join(c.source for c in chapter if c.cell_type == "markdown")
    assert 15 <= len(chapter) <= 34
    assert chapter[1].cell_type == "code"  # an experiment at once
    assert len(re.findall(r"^```\{exercise\}", words, re.M)) in (3, 4, 5)
    assert len(re.findall(r"^```\{solution-start\}", words, re.M)) == len(re.findall(r"^```\{exercise\}", words, re.M))
    assert words.count(":class: dropdown") == words.count("{solution-start}") == words.count("{solution-end}")
    assert "{cite}`" in words
    assert "## Summary" in words
    assert "## In real systems" in words
    assert "qlab.show." in "".join(c.source for c in code)
    imported = "import qlab" in code[0].source
    assert imported
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= 12, cell.id
        assert max(map(len, lines)) <= 82, cell.id  # what the column shows without scrolling
        assert re.search(r"\bqlab\.|\barithmetic\.|time_products\(|\bfields\(", cell.source), f"{cell.id} does not call qlab"


@pytest.mark.parametrize("name, language", TRANSLATED)
def test_measured_cells_show_the_same_numbers(name, language):
    for a, b in zip(cells(name, "en"), cells(name, language), strict=True):
        if MEASURED in a.metadata.get("tags", []):
            assert texts(a) == texts(b)


CHINESE = "[\u4e00-\u9fff]"
TYPOGRAPHY = {
    "zh": [(rf"{CHINESE}[,;:?!]", "half-width punctuation"), (rf"{CHINESE}\.(\s|$)", "half-width full stop"),
           (rf"{CHINESE} +{CHINESE}", "a space between two Chinese characters"),
           (r" [，。；：？！]|[，。；：？！] ", "a space at punctuation"),
           (rf"{CHINESE}\n{CHINESE}", "a line break inside a paragraph")],
    "fa": [("[يك\u0640]", "an Arabic letter or a kashida"), (r"(?<![\w`$])(می|نمی) [\u0600-\u06ff]", "no ZWNJ after می"),
           (r"[\u0600-\u06ff] ها[\s،.؛)]", "no ZWNJ before ها"), (r" [،؛؟]", "a space before punctuation"),
           (r"[\u0600-\u06ff][,;?](?!\w)", "Latin punctuation"), ("\"", "straight quotes")],
    "vi": [(r" [,.;:?!](\s|$)", "a space before punctuation")],
}  # fmt: skip


@pytest.mark.parametrize("name, language", TRANSLATED)
def test_typography(name, language):
    for cell in cells(name, language):
        if cell.cell_type != "markdown":
            continue
        prose = re.sub(r"```\{(?:raw|math)\}.*?```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`\n]*`|^[:|`(].*$|\{[\w-]+\}", "·", cell.source,
                       flags=re.DOTALL | re.MULTILINE)  # fmt: skip
        for pattern, what in TYPOGRAPHY[language]:
            found = re.search(pattern, prose)
            assert not found, f"{cell.id}: {what}: …{prose[max(0, found.start() - 20) : found.end() + 20]!r}…"

"""The directive `{qlab-glossary}`: the terms of `glossary.csv` as a table, in the page's language first.

Each row can be linked to: `a2_glossary.html#term-zero_point`.
"""

from __future__ import annotations

import csv
from html import escape
from pathlib import Path

from book_languages import BOOK, LANGUAGES, page_language
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

GLOSSARY = BOOK / "glossary.csv"


def read_glossary(path: Path = GLOSSARY) -> list[dict[str, str]]:
    """The rows of the glossary: `{"key": "scale", "en": ..., "zh": ..., "vi": ..., "fa": ...}`."""
    with path.open(encoding="utf8", newline="") as file:
        return list(csv.DictReader(file))


def glossary_html(rows: list[dict[str, str]], code: str) -> str:
    """The table: the language `code` in the first column, the others beside it."""
    order = [LANGUAGES[code], *(language for language in LANGUAGES.values() if language.code != code)]
    attributes = [f'lang="{language.tag}" dir="{language.direction}"' for language in order]
    head = "".join(f'<th scope="col" {a}>{language.name}</th>' for language, a in zip(order, attributes, strict=True))
    body = []
    for row in rows:
        first, *others = (escape(row[language.code]) for language in order)
        cells = f'<th scope="row" {attributes[0]}>{first}</th>'
        cells += "".join(f"<td {a}>{term}</td>" for term, a in zip(others, attributes[1:], strict=True))
        body.append(f'<tr id="term-{escape(row["key"])}">{cells}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(body) + "\n</tbody></table>"
    return f'<div class="qlab-glossary" tabindex="0" role="region" aria-label="{LANGUAGES[code].name}">{table}</div>'


class GlossaryDirective(SphinxDirective):
    """`{qlab-glossary}`, with the language of the page that it stands on."""

    def run(self) -> list[nodes.Node]:
        """The table as one HTML node."""
        self.env.note_dependency(str(GLOSSARY))
        language = page_language(self.config.qlab_language, self.env.docname)
        return [nodes.raw("", glossary_html(read_glossary(), language.code), format="html")]

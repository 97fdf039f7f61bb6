"""The words of the theme in the book's languages: reads `locale/<language>/LC_MESSAGES/*.po` and puts them before
the translations that Sphinx and the theme bring.

Nothing is compiled to a file: the catalogues live in memory, so a build leaves the working tree as it was.
`qlab.po` holds the words of our own templates; the other files are named after the catalogue they add to.
"""

from __future__ import annotations

import json
from functools import cache
from gettext import GNUTranslations, NullTranslations
from io import BytesIO
from pathlib import Path

from babel.messages.catalog import Catalog
from babel.messages.mofile import write_mo
from babel.messages.pofile import read_po
from book_languages import BOOK
from sphinx import locale
from sphinx.application import Sphinx

SCRIPT_WORDS = {  # the words that Sphinx's scripts say
    "Search",
    "Searching",
    "Search Results",
    "Preparing search...",
    "Hide Search Matches",
    ", in ",
    "Search finished, found ${resultCount} page(s) matching the search query.",
    "Your search did not match any documents. Please make sure that all words are spelled correctly and that you've "
    "selected enough categories.",
}


@cache
def read_catalogs(code: str) -> dict[str, Catalog]:
    """The catalogues of one language by name: `sphinx`, `booktheme`, `qlab`, ... None for English."""
    folder = BOOK / "locale" / code / "LC_MESSAGES"
    return {path.stem: _read(path) for path in sorted(folder.glob("*.po"))}


@cache
def translator(code: str, name: str = "qlab") -> NullTranslations:
    """gettext's object for one catalogue of one language."""
    catalog = read_catalogs(code).get(name)
    if catalog is None:
        return NullTranslations()
    compiled = BytesIO()
    write_mo(compiled, catalog)
    compiled.seek(0)
    return GNUTranslations(compiled)


def install_catalogs(app: Sphinx, code: str) -> None:
    """Puts our catalogues in front of those that Sphinx has loaded."""
    for name in read_catalogs(code):
        ours = translator(code, name)
        theirs = locale.translators.get(("general", name))
        if theirs is not None and theirs is not ours:
            ours.add_fallback(theirs)
        locale.translators["general", name] = ours
        if name == "sphinx":
            app.translator = ours  # what the templates ask


def script_catalog(code: str) -> str:
    """The file `translations.js`, with which Sphinx's own search page speaks the language."""
    words = translator(code, "sphinx")
    messages = {word: words.gettext(word) for word in sorted(SCRIPT_WORDS)}
    content = {"locale": code, "messages": messages, "plural_expr": "0"}
    return f"Documentation.addTranslations({json.dumps(content, ensure_ascii=False, indent=1)});\n"


def _read(path: Path) -> Catalog:
    with path.open("rb") as file:
        return read_po(file)

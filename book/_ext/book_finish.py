"""The last touch on a built site: what neither the theme's options nor its templates let us say.

Direction of right-to-left pages, stylesheets for both directions, the words of the copy button and of the search page.
Each step may run again on its own result, since an incremental build rewrites only some files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from book_catalogs import script_catalog, translator
from book_languages import LANGUAGES
from rtl_css import logical
from sphinx.application import Sphinx

MIRRORED = ("styles/*.css", "basic.css", "togglebutton.css", "copybutton.css", "exercise.css", "mystnb.*.css")
_OWN_MESSAGES = "/* the book's languages */"


def finish_build(app: Sphinx, exception: Exception | None) -> None:
    """Called by Sphinx when all pages are written."""
    if exception is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    _ = translator(app.config.qlab_language or "en").gettext
    page_label = f'aria-label="{_("On this page")}"'  # the theme says aria-label="Page"
    for page in site.rglob("*.html"):
        if "_static" not in page.relative_to(site).parts:
            _rewrite(page, lambda text: keep_together(set_direction(text)).replace('aria-label="Page"', page_label))
    for pattern in MIRRORED:
        for stylesheet in (site / "_static").glob(pattern):
            _rewrite(stylesheet, logical)
    _rewrite(site / "_static" / "copybutton.js", add_copy_messages)
    toggle = site / "_static" / "togglebutton.js"
    _rewrite(toggle, lambda script: script.replace("Toggle hidden content", _("Show or hide")))
    if app.config.qlab_language:
        words = script_catalog(app.config.qlab_language)
        (site / "_static" / "translations.js").write_text(words, "utf8")


def set_direction(page: str) -> str:
    """Says `dir="rtl"` in the <html> of a right-to-left page (the theme leaves templates no place for it)."""
    match = re.search(r'<html[^>]* lang="([^"]*)"', page)
    directions = {language.tag: language.direction for language in LANGUAGES.values()}
    if match is None or " dir=" in page[match.start() : page.index(">", match.start())]:
        return page
    return page[: match.end()] + f' dir="{directions.get(match[1], "ltr")}"' + page[match.end() :]


def keep_together(page: str) -> str:
    """Lets no line break between an inline formula and the punctuation that touches it."""
    formula = r'<span class="math[^"]*">\\\(.*?\\\)</span>'
    touching = rf"([(\[（「《«“]*){formula}([)\],.;:!?，。；：！？）、»”،؛؟]*)"

    def joined(match: re.Match[str]) -> str:
        return f'<span class="qlab-joined">{match[0]}</span>' if match[1] or match[2] else match[0]

    return page if "qlab-joined" in page else re.sub(touching, joined, page)


def add_copy_messages(script: str) -> str:
    """Teaches the copy button our languages (it carries its own list of a few)."""
    if _OWN_MESSAGES in script:
        return script
    messages = {}
    for language in LANGUAGES.values():
        _ = translator(language.code).gettext
        messages[language.tag] = {
            "copy": _("Copy"),
            "copy_to_clipboard": _("Copy to clipboard"),
            "copy_success": _("Copied"),
            "copy_failure": _("Could not copy"),
        }
    own = f"Object.assign(messages, {json.dumps(messages, ensure_ascii=False)}); {_OWN_MESSAGES}\n"
    return script.replace("let locale = 'en'", own + "let locale = 'en'", 1)


def _rewrite(path: Path, change: Callable[[str], str]) -> None:
    if not path.exists():
        return
    before = path.read_text("utf8")
    after = change(before)
    if after != before:
        path.write_text(after, "utf8")

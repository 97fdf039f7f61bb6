"""The Sphinx extension behind the book: language, direction, switcher, the theme's words, the glossary.

It works in two settings. `site.py` builds one site per language and sets `qlab_language`; `jupyter-book build .` builds
all four in one, with English words around them, and leaves `qlab_language` empty: then a page's folder says its language.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from book_catalogs import install_catalogs, translator
from book_finish import finish_build
from book_glossary import GlossaryDirective
from book_languages import BOOK, LANGUAGES, page_language
from book_toc import language_pages, read_toc
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

HERE = Path(__file__).resolve().parent
STATIC = BOOK / "_static"


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx when it loads the extension."""
    app.add_config_value("qlab_language", "", "env", str)
    app.add_config_value("qlab_pages", {}, "html", dict)
    app.add_config_value("qlab_machinery", "", "env", str)
    app.add_config_value("qlab_static", "", "html", str)
    app.add_directive("qlab-glossary", GlossaryDirective)
    app.connect("config-inited", configure, priority=1)
    app.connect("doctree-resolved", drop_live_code, priority=600)
    # Before the theme's handlers (500), which drop the components that would come out empty.
    app.connect("html-page-context", add_page_context, priority=100)
    app.connect("build-finished", finish_build)
    if app.config.qlab_language:
        install_catalogs(app, app.config.qlab_language)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def configure(app: Sphinx, config: Config) -> None:
    """Sets what depends on the language, and the places of our files."""
    config.qlab_pages = language_pages(read_toc())
    # What an older extension has read is read again; what was written with other static files is written again.
    config.qlab_machinery = _digest([*HERE.glob("*.py"), *HERE.rglob("*.html"), *(BOOK / "locale").rglob("*.po")])
    config.qlab_static = _digest([path for path in STATIC.rglob("*") if path.is_file()])
    config.templates_path = [str(HERE / "templates"), *config.templates_path]  # before the theme's
    config.html_static_path = [*config.html_static_path, str(STATIC)]
    config.html_css_files = [*config.html_css_files, "book.css"]
    # Before MathJax (500), which book.js prepares.
    scripts = [(path.name, {"defer": "defer", "priority": 400}) for path in sorted(STATIC.glob("*.js"))]
    config.html_js_files = [*config.html_js_files, *scripts]
    config.html_favicon = str(STATIC / "favicon.svg")
    config.bibtex_bibfiles = [os.path.relpath(BOOK / "references.bib", app.srcdir)]
    language = LANGUAGES[config.qlab_language or "en"]
    _ = translator(language.code).gettext
    config.html_title = config.project = language.title
    config.numfig_format = {
        "figure": _("Figure %s"),
        "table": _("Table %s"),
        "code-block": _("Listing %s"),
        "section": _("Section %s"),
        **config.numfig_format,
    }
    config.togglebutton_hint = _("Show")
    config.togglebutton_hint_hide = _("Hide")
    config.nb_code_prompt_show = _("Show code")
    config.nb_code_prompt_hide = _("Hide code")
    config.html_theme_options = {
        **config.html_theme_options,
        "search_bar_text": _("Search this book"),
        "toc_title": _("On this page"),
    }


def add_page_context(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Gives the templates a page's language, its siblings in the other languages, and our translations."""
    language = page_language(app.config.qlab_language, pagename)
    context["language"] = language.tag
    context["qlab_language"] = language
    context["qlab_siblings"] = _siblings(app, pagename, context["pathto"])
    context["qlab_home"] = context["pathto"]("index" if app.config.qlab_language else f"book/{language.code}/index")
    context["qlab_title"] = language.title
    context["qlab_"] = translator(app.config.qlab_language or "en").gettext
    # The live-code button would fetch its script from the network. In place: MathJax is added to this very list.
    for files in (context["script_files"], context["css_files"]):
        files[:] = [file for file in files if not _is_thebe(file)]


def drop_live_code(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Takes out what Jupyter Book appends to each notebook for its live-code button, which this book does not have."""
    for node in list(doctree.findall(nodes.raw)):
        if "thebe" in node.astext() or node.astext().startswith("<script>kernelName"):
            node.parent.remove(node)


def _siblings(app: Sphinx, pagename: str, pathto: Any) -> list[dict[str, Any]]:
    """The switcher's links: the same page in each language, or that language's start page where it has none."""
    separate = bool(app.config.qlab_language)
    here = page_language(app.config.qlab_language, pagename)
    page = pagename if separate else pagename.removeprefix(f"book/{here.code}/")
    links = []
    for language in LANGUAGES.values():
        # Each site of its own has a search page; the one with all four has only one, in which nothing need be switched.
        same = page in app.config.qlab_pages[language.code] or (separate and page == "search")
        target = page if same else "index"
        there = (f"../{language.code}/{target}.html", 1) if separate else (f"book/{language.code}/{target}",)
        current = language is here
        url = "#" if current else pathto(*there)
        links.append({"language": language, "url": url, "current": current, "same": same})
    return links


def _is_thebe(file: Any) -> bool:
    attributes = getattr(file, "attributes", {})
    return "thebe" in f"{getattr(file, 'filename', file)} {attributes.get('body', '')}".lower()


def _digest(files: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]

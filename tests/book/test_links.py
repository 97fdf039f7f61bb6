"""Every link on every page leads somewhere, and no page needs the network or a fixed place to be shown."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

RESOURCES = {("script", "src"), ("img", "src"), ("link", "href"), ("source", "src"), ("iframe", "src"), ("video", "src")}
NOT_LOADED = {"alternate", "canonical", "next", "prev", "search", "index", "author"}  # <link>s that are only references


class Page(HTMLParser):
    """Collects a page's ids and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.references: list[str] = []
        self.resources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        for name in ("href", "src"):
            if name in values:
                self.references.append(values[name])
                loaded = (tag, name) in RESOURCES and not set(values.get("rel", "").split()) & NOT_LOADED
                self.resources += [values[name]] if loaded else []


@pytest.fixture(scope="module")
def parsed(pages: list[Path]) -> dict[Path, Page]:
    return {path: Page(path.read_text("utf8")) for path in pages}


def test_links_lead_somewhere(site: Path, parsed: dict[Path, Page]) -> None:
    broken = []
    for path, page in parsed.items():
        for reference in page.references:
            if re.match(r"[a-z]+:|//", reference):
                continue
            name, _, fragment = reference.partition("#")
            target = (path.parent / unquote(name.split("?")[0])).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            found = target.is_relative_to(site.resolve()) and target.exists()
            if not found or (fragment and target in parsed and unquote(fragment) not in parsed[target].ids):
                broken.append(f"{path.relative_to(site)}: {reference}")
    assert len(parsed) > 20
    assert not broken


def test_no_absolute_paths(site: Path, parsed: dict[Path, Page]) -> None:
    wrong = [
        f"{path.relative_to(site)}: {reference}"
        for path, page in parsed.items()
        for reference in page.references
        if reference.startswith(("/", "file:")) or "127.0.0.1" in reference or "localhost" in reference
    ]
    assert not wrong


def test_nothing_is_loaded_from_the_network(site: Path, parsed: dict[Path, Page]) -> None:
    wrong = [
        f"{path.relative_to(site)}: {resource}"
        for path, page in parsed.items()
        for resource in page.resources
        if re.match(r"(https?:)?//", resource)
    ]
    assert not wrong


def test_stylesheets_load_nothing_from_the_network(site: Path) -> None:
    stylesheets = [path for path in site.rglob("*.css") if "pagefind" not in path.parts]
    wrong = [path for path in stylesheets if re.search(r"""(url\(|@import)\s*["']?(https?:)?//""", path.read_text("utf8"))]
    assert stylesheets
    assert not wrong

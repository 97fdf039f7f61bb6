"""Reads the one `_toc.yml` and cuts it into a table of contents for each language.

A part of `_toc.yml` belongs to the language whose folder its chapters lie in. The language's `index` is the root of its
own book. To add a chapter, add one line per language to `_toc.yml`; nothing else needs to know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from book_languages import LANGUAGES, ROOT


def read_toc(path: Path = ROOT / "_toc.yml") -> dict[str, Any]:
    """The whole table of contents, as a dict."""
    toc: dict[str, Any] = yaml.safe_load(path.read_text("utf8"))
    return toc


def language_toc(toc: dict[str, Any], code: str) -> dict[str, Any]:
    """The table of contents of one language, with file names relative to `book/<code>/`."""
    prefix = f"book/{code}/"
    parts = []
    for part in toc["parts"]:
        names = [_relative(chapter, prefix) for chapter in part["chapters"] if chapter["file"].startswith(prefix)]
        chapters = [chapter for chapter in names if chapter["file"] != "index"]
        if chapters:
            parts.append({**part, "chapters": chapters})
    return {"format": toc["format"], "root": "index", "parts": parts}


def language_pages(toc: dict[str, Any]) -> dict[str, list[str]]:
    """For each language the names of its pages: `{"en": ["index", "01_why_quantize", ...], ...}`."""
    return {code: ["index", *_files(language_toc(toc, code)["parts"])] for code in LANGUAGES}


def _relative(chapter: dict[str, Any], prefix: str) -> dict[str, Any]:
    out = {**chapter, "file": chapter["file"].removeprefix(prefix)}
    if "sections" in chapter:
        out["sections"] = [_relative(section, prefix) for section in chapter["sections"]]
    return out


def _files(items: list[dict[str, Any]]) -> list[str]:
    files: list[str] = []
    for item in items:
        files += [item["file"]] if "file" in item else []
        files += _files(item.get("chapters", []) + item.get("sections", []))
    return files

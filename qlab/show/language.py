"""The language of figures, tables and explanations, and the catalogue of their words.

A catalogue is ``labels/<language>.toml``: tables of messages with ``{placeholders}``. English is the model; a test holds
that no other catalogue lacks a message or a placeholder.
"""

from __future__ import annotations

import os
import tomllib
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from qlab._check import one_of

__all__ = ["LANGUAGES", "catalogue", "get_language", "label", "set_language"]

LANGUAGES = {"en": "English", "zh": "简体中文", "vi": "Tiếng Việt", "fa": "فارسی"}

_chosen: str | None = None


def set_language(language: str | None) -> None:
    """Choose the language of figures, tables and explanations.

    Parameters
    ----------
    language : {"en", "zh", "vi", "fa"} or None
        None returns to the default: the environment variable ``QLAB_LANGUAGE``, else the folder of the book that the
        notebook lies in, else English.

    Raises
    ------
    ValueError
        If there is no such language.

    Examples
    --------
    >>> import qlab
    >>> qlab.set_language("vi")
    >>> qlab.get_language()
    'vi'
    >>> qlab.set_language(None)
    """
    global _chosen
    _chosen = None if language is None else one_of("language", language, LANGUAGES)


def get_language() -> str:
    """Return the language that figures, tables and explanations are in."""
    if _chosen is not None:
        return _chosen
    if asked := os.environ.get("QLAB_LANGUAGE"):
        return one_of("QLAB_LANGUAGE", asked, LANGUAGES)
    here = Path.cwd()
    return here.name if here.parent.name == "book" and here.name in LANGUAGES else "en"


@lru_cache
def catalogue(language: str) -> dict[str, str]:
    """Return all messages of a language, by ``table.key``."""
    text = resources.files("qlab.show").joinpath("labels", f"{language}.toml").read_text(encoding="utf-8")

    def flat(prefix: str, table: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, value in table.items():
            found |= flat(f"{prefix}{key}.", value) if isinstance(value, dict) else {prefix + key: value}
        return found

    return flat("", tomllib.loads(text))


def label(key: str, /, language: str | None = None, **values: Any) -> str:
    """Return a message of the catalogue in a language, with its placeholders filled in."""
    return catalogue(language or get_language())[key].format(**values)

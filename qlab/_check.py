"""Errors that name the value, what is allowed, and the remedy. Every public verb checks its arguments with these."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import NoReturn

__all__ = ["one_of", "unknown_name"]


def one_of(argument: str, value: object, allowed: Iterable[str]) -> str:
    """Return `value` if it is one of the `allowed` words, else raise a ValueError that lists them."""
    words = tuple(allowed)
    if isinstance(value, str) and value in words:
        return value
    raise ValueError(f"{argument}={value!r} is not known; allowed are {', '.join(map(repr, words))}")


def unknown_name(kind: str, name: object, known: Iterable[str], remedy: str) -> NoReturn:
    """Raise a ValueError for a name that is in no table, offering the nearest ones."""
    words = sorted(known)
    text = str(name).lower()
    near = [word for word in words if text and word.startswith(text)][:3]
    near = near or difflib.get_close_matches(text, words, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(f"unknown {kind} {name!r}: {hint}{remedy}")

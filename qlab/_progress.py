"""How far long work is: a line on stderr, from two seconds on, where stderr is a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from operator import length_hint
from types import TracebackType
from typing import TypeVar

__all__ = ["PATIENCE", "Progress", "progress"]

PATIENCE = 2.0
"""Seconds of silence."""


Item = TypeVar("Item")


class Progress:
    """A line such as ``3/9 nf4``, which goes away with the work.

    Parameters
    ----------
    count : int or None
        How many steps there are, if that is known.
    """

    def __init__(self, count: int | None) -> None:
        self._count, self._done, self._name = count, 0, ""
        self._late, self._lock = False, threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Progress:
        if sys.stderr is not None and sys.stderr.isatty():
            self._timer.start()
        return self

    def begin(self, name: str) -> None:
        """Say which step begins."""
        with self._lock:
            self._done, self._name = self._done + 1, name
            self._write()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._timer.cancel()
        with self._lock:
            if self._late and self._name:
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            self._name = ""  # a timer that was about to write does not

    def _show(self) -> None:
        with self._lock:
            self._late = True
            self._write()

    def _write(self) -> None:
        if self._late and self._name:
            of = "" if self._count is None else f"/{self._count}"
            sys.stderr.write(f"\r\x1b[K{self._done}{of} {self._name}")
            sys.stderr.flush()


def progress(items: Iterable[Item], what: str) -> Iterator[Item]:
    """Go through items, and say which of them it is."""
    with Progress(length_hint(items, 0) or None) as line:
        for item in items:
            line.begin(what)
            yield item

"""Walk a large array in pieces that stay in the cache, in threads, with scratch memory that is reused.

A whole-array NumPy expression sends every intermediate result through main memory. The same operations on pieces of
some 2**18 elements stay in the cache and run about ten times faster. NumPy releases the interpreter's
lock inside its loops, so that pieces also run in parallel threads.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

__all__ = ["PIECE", "SHORT", "Array", "Scratch", "blas_on_one_thread", "get_num_threads", "parts_of", "set_num_threads", "walk"]

Array = np.ndarray[Any, np.dtype[Any]]

PIECE = 1 << 18
"""Elements in a piece: a few arrays of that many float32 fit in the cache, and the time that NumPy's calls take by
themselves, some 20 microseconds a piece, is small beside the work."""

SHORT = 1 << 13
"""Elements in a part of a piece that was not ordinary as a whole: only the parts that are not either go the slow way."""

_local = threading.local()
_pools: dict[int, ThreadPoolExecutor] = {}
_num_threads: int | None = None


def _default_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


def get_num_threads() -> int:
    """Return how many threads large arrays are walked in (`OMP_NUM_THREADS`, else the cores this process may use)."""
    return _num_threads or _default_threads()


def set_num_threads(n: int | None) -> None:
    """Set how many threads large arrays are walked in; `None` returns to the default.

    Raises
    ------
    ValueError
        If `n` is not a positive integer or None.

    Examples
    --------
    >>> import qlab
    >>> qlab.set_num_threads(1)
    >>> qlab.get_num_threads()
    1
    >>> qlab.set_num_threads(None)
    """
    global _num_threads
    if n is not None and (isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1):
        raise ValueError(f"num_threads={n!r} is not allowed; give a positive integer, or None for the default")
    _num_threads = None if n is None else int(n)


class Scratch:
    """Named arrays that a thread keeps from piece to piece, so that no piece allocates."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Array] = {}

    def __call__(self, name: str, dtype: Any, n: int) -> Array:
        """Return the array called `name`, of shape (n,) and undefined content."""
        dtype = np.dtype(dtype)
        key = (name, dtype.str)
        held = self._held.get(key)
        if held is None or held.size < n:
            held = self._held[key] = np.empty(max(n, 1), dtype)
        return held[:n]


def _scratch() -> Scratch:
    if not hasattr(_local, "scratch"):
        _local.scratch = Scratch()
    scratch: Scratch = _local.scratch
    return scratch


def walk(n: int, work: Callable[[slice, Scratch], None], *, piece: int | None = None) -> None:
    """Call `work(slice, scratch)` for consecutive slices that cover `range(n)`, in threads if there are many.

    `work` must touch only its own slice of any output. The first exception that a piece raises is raised here. A walk
    inside of `work` keeps to the thread it is called from: others would be too many, and wait for one another.
    """
    threads = 1 if getattr(_local, "walking", False) else min(get_num_threads(), n // (piece or PIECE))
    if piece is None:  # in threads longer ones: after each of NumPy's calls they may wait for the interpreter's lock
        piece = 2 * PIECE if threads > 1 and n >= 16 * threads * PIECE else PIECE
    starts = iter(range(0, n, piece))  # shared: who is done first takes the next

    def run() -> None:
        scratch = _scratch()
        for start in starts:
            work(slice(start, min(start + piece, n)), scratch)

    def run_beside_others() -> None:
        _local.walking = True
        try:
            run()
        finally:
            _local.walking = False

    if threads <= 1:
        run()
        return
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, thread_name_prefix="qlab")
    others = [_pools[threads].submit(run_beside_others) for _ in range(1, threads)]
    try:
        run_beside_others()
    finally:
        errors = [future.exception() for future in others]
    for error in errors:
        if error is not None:
            raise error


@contextmanager
def blas_on_one_thread() -> Iterator[None]:
    """Keep NumPy's matrix products on one thread, where threadpoolctl is installed (it comes with scikit-learn).

    Small products gain nothing from a second thread, and wait long for one on a busy machine.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1):
        yield


def parts_of(n: int) -> list[slice]:
    """Return the slices of `SHORT` elements that cover a piece of n."""
    return [slice(start, min(start + SHORT, n)) for start in range(0, n, SHORT)]


def _forget_pools() -> None:
    _pools.clear()  # a forked child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)

"""Time functions side by side: the runs of all candidates are interleaved, so that a slow moment slows all of them."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from statistics import median

RESULTS = Path(__file__).parent / "results"
RUN = 0.02
"""Seconds that a run lasts at least: of what takes microseconds, the first call after other work is not what is asked."""


def side_by_side(candidates: dict[str, Callable[[], object]], *, elements: int, repeats: int = 9) -> dict[str, float]:
    """Return nanoseconds per element, the median over interleaved runs, of each candidate; a short one is called in a row."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    calls = {name: 1 + int(RUN / min(_seconds(work, 1) for _ in range(2))) for name, work in candidates.items()}
    for _ in range(repeats):
        for name, work in candidates.items():
            times[name].append(_seconds(work, calls[name]))
    return {name: median(t) / elements * 1e9 for name, t in times.items()}


def _seconds(work: Callable[[], object], calls: int) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - start) / calls


def machine() -> dict[str, str]:
    """Return what a result must carry to be compared: processor, versions, commit."""
    info = {"python": platform.python_version(), "system": platform.system(), "processor": _processor()}
    for package in ("numpy", "ml_dtypes", "torch", "qlab"):
        try:
            info[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return info | {"commit": commit.stdout.strip()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def store(name: str, rows: list[dict[str, object]], **beside_them: object) -> Path:
    """Write rows, with the machine and what else is given beside them, to ``results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps({"machine": machine(), **beside_them, "rows": rows}, indent=1) + "\n")
    beside.replace(path)
    return path


def progress(text: str) -> None:
    """Say on the terminal what is being measured."""
    print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="" if sys.stderr.isatty() else "\n", file=sys.stderr)

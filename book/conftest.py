"""Let nbval compare the outputs of notebooks that are stored without execution counts.

nbval takes a cell without a count for one that was never run, and then refuses its outputs. Ours are stored without, so
that executing a notebook again changes nothing in it.
"""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every stored cell that has outputs, or prints nothing, some count."""
    for item in items:
        cell = getattr(item, "cell", None)
        if cell is not None and cell.get("execution_count", 0) is None:
            cell.execution_count = 1

"""That `make nbval` really compares outputs: the same notebook with one digit changed must fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parents[2] / "book"


@pytest.mark.parametrize("change, passes", [("16777216", True), ("16777217", False)])
def test_a_changed_output_is_noticed(tmp_path, change, passes):
    folder = tmp_path / "book" / "en"
    folder.mkdir(parents=True)
    shutil.copy(BOOK / "conftest.py", tmp_path / "book")
    notebook = nbformat.read(BOOK / "en" / "02_float_anatomy.ipynb", as_version=4)
    first = next(c for c in notebook.cells if c.cell_type == "code")
    first.outputs[0].text = first.outputs[0].text.rstrip("\n").rsplit("\n", 1)[0] + f"\n{change}\n"
    notebook.cells = [first]
    nbformat.write(notebook, folder / "changed.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-q", "."]
    done = subprocess.run(command, cwd=tmp_path / "book", capture_output=True, text=True)
    assert (done.returncode == 0) == passes, done.stdout[-2000:]
    assert ("1 passed" if passes else "1 failed") in done.stdout

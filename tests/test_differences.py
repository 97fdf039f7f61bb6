"""benchmarks/differences: the adapters of the libraries that are here answer; the stored answers are well-formed."""

from __future__ import annotations

import json
import math

import pytest

import qlab
from benchmarks import differences
from benchmarks.timing import RESULTS

STORED = json.loads((RESULTS / "differences.json").read_text())


@pytest.fixture(scope="module")
def libraries():
    with pytest.MonkeyPatch.context() as patch:  # compiling qtorch takes a minute
        patch.setattr(differences, "LIBRARIES", {n: make for n, make in differences.LIBRARIES.items() if n != "qtorch"})
        return differences.installed()


def test_adapters_of_what_is_installed_answer(libraries):
    assert {"qlab", "numpy", "ml_dtypes", "torch"} <= set(libraries)
    for name, cast in libraries.items():
        answered = [fmt for fmt in differences.FORMATS if differences.answer(cast, 1.0, fmt) == "1.0"]
        assert answered, name
        others = set(differences.FORMATS) - set(answered)
        assert all(differences.answer(cast, 1.0, fmt) is None for fmt in others), name


def test_absent_libraries_are_named(capsys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(differences, "LIBRARIES", {"nowhere": lambda: __import__("a_library_that_is_nowhere")})
        assert differences.installed() == {}
    assert "absent: nowhere (ModuleNotFoundError" in capsys.readouterr().err


def test_stored_answers_are_well_formed():
    assert set(STORED) == {"machine", "libraries", "notes", "rows"}
    assert {"processor", "python", "numpy", "commit"} <= set(STORED["machine"])
    for row in STORED["rows"]:
        assert set(row) == {"format", "input", "value", "answers"}
        assert list(row["answers"]) == [name for name in STORED["libraries"] if name in row["answers"]]
        for text in (row["value"], *row["answers"].values()):
            assert text.endswith("Error") or isinstance(float(text), float)
    keys = [(row["format"], row["input"]) for row in STORED["rows"]]
    assert keys == [(fmt, label) for fmt in differences.FORMATS for label in differences.inputs(fmt)]


def test_the_packaged_copy_is_the_stored_one():
    """If this fails: python -m benchmarks.differences, which writes both."""
    assert differences.PACKAGED.read_bytes() == (RESULTS / "differences.json").read_bytes()
    stored = qlab.data.differences()
    assert stored.libraries == STORED["libraries"]
    assert [row.answers for row in stored.rows] == [row["answers"] for row in STORED["rows"]]
    same, disputed = (next(r for r in stored.rows if (r.format, r.input) == ("float8_e4m3fn", x)) for x in ("464", "500"))
    assert (same.value, same.disputed, disputed.value, disputed.disputed) == (464.0, False, 500.0, True)
    stored.rows[0].answers.clear()
    assert qlab.data.differences().rows[0].answers  # each caller has a copy


def test_qlab_still_answers_as_stored(libraries):
    for row in STORED["rows"]:
        assert differences.answer(libraries["qlab"], float(row["value"]), row["format"]) == row["answers"]["qlab"], row


def test_known_differences_are_among_the_rows():
    """What the book tells of its peers is in the stored rows (as of the versions stored with them)."""
    answers = {(row["format"], row["input"]): row["answers"] for row in STORED["rows"]}
    assert answers["float16", "1 + 2^-11 + 2^-40"]["torch"] == "1.0"  # rounded twice
    assert answers["float16", "1 + 2^-11 + 2^-40"]["numpy"] == answers["float16", "1 + 2^-11 + 2^-40"]["qlab"]
    assert answers["float8_e4m3fn", "500"]["torch"] == "448.0"
    assert math.isnan(float(answers["float8_e4m3fn", "500"]["ml_dtypes"]))
    assert answers["float16", "70000"]["pychop"] == "0.0"
    assert answers["float8_e8m0fnu", "3"] | {"bitstring": None} == {
        "qlab": "2.0", "ml_dtypes": "4.0", "torch": "4.0", "gfloat": "2.0", "bitstring": None,
    }  # fmt: skip

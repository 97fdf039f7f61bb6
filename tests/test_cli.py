"""The command line: what it prints, and that errors are one line without a stack trace."""

import pytest

from qlab.cli import main


def test_explain_in_a_language(capsys):
    assert main(["explain", "-0.1", "bf16", "--language", "fa", "--rounding", "toward_zero"]) == 0
    text = capsys.readouterr().out
    assert "1 01111011 1001100" in text
    assert "گرد" in text
    assert "`" not in text


def test_formats(capsys):
    assert main(["formats"]) == 0
    assert "float8_e4m3fn" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["explain", "0.1", "bf17"], ["explain", "one", "bf16"], ["explain", "nan", "int8"]])
def test_errors_are_one_line(arguments, capsys):
    assert main(arguments) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.startswith("qlab: ")
    assert caught.err.count("\n") == 1

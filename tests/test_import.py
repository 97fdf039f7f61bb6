"""`import qlab` is light, and every public name is there."""

import subprocess
import sys

import pytest

import qlab


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_import_is_light():
    heavy = ["torch", "matplotlib", "sklearn", "ml_dtypes", "IPython", "pandas", "scipy"]
    assert run(f"import qlab, sys; qlab.cast(0.1, 'fp16'); print([m for m in {heavy} if m in sys.modules])") == "[]"


def test_import_is_fast():
    code = "import time; t = time.perf_counter(); import qlab; print(time.perf_counter() - t)"
    assert min(float(run(code)) for _ in range(3)) < 0.3


@pytest.mark.parametrize("name", qlab.__all__)
def test_public_names(name):
    assert getattr(qlab, name) is not None
    assert name in dir(qlab)


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qlab.quantise


def test_every_public_function_says_what_it_does():
    for name in qlab.__all__:
        value = getattr(qlab, name)
        if callable(value):
            assert value.__doc__, name
            assert not value.__doc__.startswith(name), name

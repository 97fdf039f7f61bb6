"""What the READMEs show is what happens."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "README.vi.md", "README.fa.md"])
def test_examples(name):
    results = doctest.testfile(str(ROOT / name), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted == 4
    assert results.failed == 0


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "README.vi.md", "README.fa.md"])
def test_links(name):
    import re

    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert link.startswith("http") or (ROOT / link).exists(), link

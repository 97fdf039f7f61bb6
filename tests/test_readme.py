"""What the READMEs show is what happens."""

import doctest
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "README.vi.md", "README.fa.md"])
def test_examples(name):
    text = "\n".join("" if line.startswith("```") else line for line in (ROOT / name).read_text("utf-8").splitlines())
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    results = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert results.attempted == 7
    assert results.failed == 0


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "README.vi.md", "README.fa.md"])
def test_links(name):
    import re

    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text(encoding="utf-8")):
        assert link.startswith("http") or (ROOT / link).exists(), link

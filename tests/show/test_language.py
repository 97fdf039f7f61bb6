"""The catalogues: no language lacks a message, a placeholder or a mark of code; who decides the language."""

import re
import string

import pytest

import qlab
from qlab.show.language import LANGUAGES, catalogue, label

OTHERS = [language for language in LANGUAGES if language != "en"]
ENGLISH_TOO = re.compile(
    r"^[\W\d_]*$|^(ulp|NaN|x|bias|epsilon|1 bit|qlab|torch|ml_dtypes|gfloat|(float32|int8) \(ms\))$"
)  # what may be the same in every language


def placeholders(message: str) -> list[str]:
    return sorted(name for _, name, _, _ in string.Formatter().parse(message) if name is not None)


@pytest.mark.parametrize("language", OTHERS)
def test_no_message_is_missing_or_left_over(language):
    assert list(catalogue(language)) == list(catalogue("en"))


@pytest.mark.parametrize("language", OTHERS)
def test_placeholders_and_code_marks(language):
    for key, english in catalogue("en").items():
        message = catalogue(language)[key]
        assert placeholders(message) == placeholders(english), key
        assert message.count("`") == english.count("`"), key
        assert message.strip() == message != "", key


@pytest.mark.parametrize("language", OTHERS)
def test_messages_are_translated(language):
    same = [key for key, english in catalogue("en").items() if catalogue(language)[key] == english]
    same = [key for key in same if not ENGLISH_TOO.match(catalogue("en")[key])]
    assert not same


def test_persian_letters():
    text = "".join(catalogue("fa").values())
    assert not re.search("[يك]", text)  # Arabic letters where Persian has its own


def test_who_decides(monkeypatch, tmp_path):
    monkeypatch.delenv("QLAB_LANGUAGE", raising=False)
    folder = tmp_path / "book" / "vi"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert qlab.get_language() == "vi"
    monkeypatch.setenv("QLAB_LANGUAGE", "zh")
    assert qlab.get_language() == "zh"
    qlab.set_language("fa")
    assert qlab.get_language() == "fa"
    qlab.set_language(None)
    monkeypatch.delenv("QLAB_LANGUAGE")
    monkeypatch.chdir(tmp_path)
    assert qlab.get_language() == "en"


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="language='de' is not known; allowed are 'en', 'zh', 'vi', 'fa'"):
        qlab.set_language("de")
    monkeypatch.setenv("QLAB_LANGUAGE", "xx")
    with pytest.raises(ValueError, match="QLAB_LANGUAGE='xx'"):
        qlab.get_language()


def test_label_fills_in():
    assert label("figure.roofline.point", "en", batch=3, bits=4) == "batch 3, 4 bits"

"""The book's four languages: their codes, directions and titles. Everything else that differs is in `locale/`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BOOK = Path(__file__).resolve().parent.parent  # the folder book/
ROOT = BOOK.parent  # the repository, where _config.yml and _toc.yml are


@dataclass(frozen=True)
class Language:
    """One language of the book."""

    code: str
    """Folder under book/ and under the site."""
    tag: str
    """What the page says in <html lang>: a BCP 47 tag."""
    sphinx: str
    """The name that Sphinx and its catalogues use."""
    direction: str
    """ltr or rtl."""
    name: str
    """The language's name in itself, as the switcher shows it."""
    title: str
    """The book's title."""


LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        Language("en", "en", "en", "ltr", "English", "Numbers, Shrunk: floating point and quantization, by running it"),
        Language("zh", "zh-Hans", "zh_CN", "ltr", "中文", "把数字变小：浮点数与量化实践"),
        Language("vi", "vi", "vi", "ltr", "Tiếng Việt", "Thu nhỏ con số: dấu phẩy động và lượng tử hóa qua từng dòng mã"),
        Language("fa", "fa", "fa", "rtl", "فارسی", "عددهای کوچک‌شده: ممیز شناور و کوانتش، با اجرای کد"),
    )
}


def page_language(site_language: str, page: str) -> Language:
    """The language of a page: of the whole site, or, where one site holds all (`site_language` empty), of its folder."""
    if site_language:
        return LANGUAGES[site_language]
    folder = page.removeprefix("book/").split("/")[0]
    return LANGUAGES.get(folder, LANGUAGES["en"])

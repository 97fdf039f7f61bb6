"""Figures: inline SVG in a notebook (page fonts, dark mode, an accessible name), a matplotlib figure elsewhere.

Figures are drawn with the colours of `COLORS` only. For a page, each colour becomes a CSS variable, text stays text in
the page's font, and all that could differ from machine to machine (dates, identifiers, fonts) is taken out, so that the
same call gives the same bytes. Geometry must not depend on the width of words: no tight layout, no boxed legends.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from qlab.show.language import get_language, label

__all__ = ["COLORS", "Figure", "superscript"]

COLORS = {
    "ink": "#1f2329", "muted": "#5a646f", "grid": "#d6dbe1", "paper": "#fefefe",
    "c0": "#0b62a4", "c1": "#c8500a", "c2": "#1b7f4b", "c3": "#8a3ba8",
    "c4": "#b3261e", "c5": "#00798c", "c6": "#8a6d00", "c7": "#5f6b7a",
    "sign": "#f6c6c6", "exponent": "#c9e4c5", "fraction": "#c8d9f5",
}  # fmt: skip
"""The palette by CSS name (``--qlab-ink`` and so on), with the value for light pages and paper."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "qlab", "font.family": ["DejaVu Sans"], "font.size": 10,
    "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.unicode_minus": True,
    "axes.titlelocation": "left", "axes.axisbelow": True, "axes.grid": True, "grid.linewidth": 0.6,
    "grid.color": COLORS["grid"], "text.color": COLORS["ink"], "axes.labelcolor": COLORS["ink"],
    "axes.edgecolor": COLORS["muted"], "xtick.color": COLORS["muted"], "ytick.color": COLORS["muted"],
    "xtick.labelcolor": COLORS["ink"], "ytick.labelcolor": COLORS["ink"],
    "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "legend.frameon": False, "lines.linewidth": 1.8, "path.simplify": False,
}  # fmt: skip

_DIGITS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def superscript(exponent: int, base: int = 2) -> str:
    """Write a power as text: ``2⁻⁶``."""
    return f"{base}{str(exponent).translate(_DIGITS)}"


class Figure:
    """A figure of the book, drawn when it is looked at.

    Parameters
    ----------
    name : str
        Key of the catalogue's ``figure`` table, which holds ``caption`` and ``alt`` (alternative text).
    draw : callable
        ``draw(figure, word)`` draws on a matplotlib figure; ``word(key)`` is a label of this figure in the language.
    size : (float, float)
        Width and height in inches.
    data : mapping
        Numbers that say what the figure shows: they fill the placeholders of caption and alternative text, and are what
        the figure prints as, in every language the same.
    """

    def __init__(
        self,
        name: str,
        draw: Callable[[Any, Callable[..., str]], None],
        size: tuple[float, float] = (6.6, 3.2),
        data: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.data = name, dict(data or {})
        self._draw, self._size = draw, size

    def __repr__(self) -> str:
        return f"Figure({', '.join([repr(self.name), *(f'{key}={value}' for key, value in self.data.items())])})"

    def word(self, key: str, **values: Any) -> str:
        """Return a label of this figure in the reader's language."""
        return label(f"figure.{self.name}.{key}", **(self.data | values))

    def matplotlib(self) -> Any:
        """Return the figure as a `matplotlib.figure.Figure`, in the colours for paper."""
        try:
            import matplotlib as mpl
            from matplotlib.figure import Figure as MatplotlibFigure
        except ImportError as error:
            raise ImportError("figures need matplotlib: pip install 'qlab[book]'") from error
        with mpl.rc_context(_STYLE):
            figure = MatplotlibFigure(figsize=self._size)
            self._draw(figure, self.word)
        return figure

    def save(self, path: str | Path, **options: Any) -> None:
        """Write the figure to a file, ``.png``, ``.pdf`` or ``.svg``; its words need a font that has their letters."""
        import matplotlib as mpl

        fonts = ["DejaVu Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "Vazirmatn"]
        figure = self.matplotlib()
        with mpl.rc_context({"font.family": fonts}):
            figure.savefig(path, **({"facecolor": "white", "bbox_inches": "tight", "dpi": 200} | options))

    def svg(self) -> str:
        """Return the figure as an `<svg>` element for a web page."""
        import logging
        import warnings

        import matplotlib as mpl

        figure, buffer = self.matplotlib(), io.StringIO()
        logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font")  # only measured with it; the page has the font
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
        text = buffer.getvalue()
        text = text[text.index("<svg") :]
        text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
        text = re.sub(r"<defs>\s*</defs>", "", text)
        text = re.sub(r'font(?:-family)?: ([0-9.]+px )?[^;"]*DejaVu Sans[^;"]*', r"font: \1", text)
        text = re.sub(r"font: ([0-9.]+px) ?(?=[;\"])", r"font-size: \1", text).replace("font: ;", "")
        for key, color in COLORS.items():
            text = text.replace(color, f"var(--qlab-{key}, {color})")
        text = re.sub(r">\s+<", "><", text).strip()
        head = f'<svg role="img" aria-label="{escape(self.word("alt"), quote=True)}" direction="ltr" '
        return re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'{head}\1 xmlns="http://www.w3.org/2000/svg" '
                      r'xmlns:xlink="http://www.w3.org/1999/xlink">', text, count=1)  # fmt: skip

    def _repr_html_(self) -> str:
        direction = ' dir="rtl"' if get_language() == "fa" else ""
        caption = f"<figcaption{direction}>{escape(self.word('caption'))}</figcaption>"
        return f'<figure class="qlab-figure">{self.svg()}{caption}</figure>'

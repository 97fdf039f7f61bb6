"""Tables: HTML with words in the reader's language in a notebook, plain text that is the same everywhere elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from qlab.number.formats import FloatFormat, Format, TableFormat
from qlab.show.language import catalogue, get_language, label

__all__ = ["Table", "format_table", "number"]

_NUMBER = ' class="qlab-number"'


def number(value: Any, digits: int = 4) -> str:
    """Write a cell's number: integers whole, others to `digits` significant digits."""
    if not isinstance(value, float):
        return str(value)
    return str(int(value)) if abs(value) < 1e6 and value == int(value) else f"{value:.{digits}g}"


class Table:
    """Rows under named columns.

    Parameters
    ----------
    columns : sequence of str
        Keys of the catalogue's ``column`` table; they are also the headings in plain text.
    rows : sequence of sequences
        Cells: text, or numbers, which are set to the right. Text that is a key of the catalogue's ``cell`` table, or fits
        one with ``{}`` in it, is shown as its message in a notebook.
    caption : str, optional
        Key of the catalogue's ``table`` table.
    notes : mapping of str to str, optional
        Said below the table: what each is, a key as of `columns`, and its value.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str | None = None, *,
        notes: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.columns, self.rows, self.caption = tuple(columns), [tuple(row) for row in rows], caption
        self.notes = dict(notes or {})
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"row {row!r} has {len(row)} cells; the table has {len(self.columns)} columns")

    def _repr_html_(self) -> str:
        language = get_language()
        words = catalogue(language)

        def cell(value: Any) -> str:
            if isinstance(value, str):
                word = _message(value, words)
                return f"<td>{escape(word)}</td>" if word else f"<td><bdi>{escape(value)}</bdi></td>"
            return f"<td{_NUMBER}>{escape(number(value))}</td>"

        numeric = [bool(self.rows) and all(not isinstance(r[i], str) for r in self.rows) for i in range(len(self.columns))]
        heads = "".join(
            f'<th scope="col"{right * _NUMBER}>{escape(label(f"column.{key}"))}</th>'
            for key, right in zip(self.columns, numeric, strict=True)
        )
        body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in self.rows)
        caption = f"<caption>{escape(label(f'table.{self.caption}'))}</caption>" if self.caption else ""
        head = f"<thead><tr>{heads}</tr></thead>"
        notes = "".join(
            f'<tr><td colspan="{len(self.columns)}">{escape(label(f"column.{key}"))}: <bdi>{escape(value)}</bdi></td></tr>'
            for key, value in self.notes.items()
        )
        body = f"<tbody>{body}</tbody>" + (f"<tfoot>{notes}</tfoot>" if notes else "")
        return f'<div class="qlab-scroll"><table class="qlab-table">{caption}{head}{body}</table></div>'

    def __repr__(self) -> str:
        cells = [self.columns, *([v if isinstance(v, str) else number(v) for v in row] for row in self.rows)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        left = [any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]

        def line(row: Sequence[str]) -> str:
            padded = (c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True))
            return "  ".join(padded).rstrip()

        return "\n".join([*map(line, cells), *(f"{key}: {value}" for key, value in self.notes.items())])


def _message(text: str, words: Mapping[str, str]) -> str | None:
    """The message for a cell's text, with what stands in place of ``{}``; None if the catalogue has none."""
    if (exact := words.get(f"cell.{text}")) is not None:
        return exact
    for key, word in words.items():
        head, gap, tail = key.removeprefix("cell.").partition("{}")
        if gap and key.startswith("cell.") and text.startswith(head) and text.endswith(tail):
            return word.format(text[len(head) : len(text) - len(tail)])
    return None


def format_table(formats: Sequence[Format]) -> Table:
    """Return the table of formats: widths, bias, range and precision."""
    rows = []
    for fmt in formats:
        special = "-"
        if isinstance(fmt, FloatFormat):
            special = {(True, True): "inf nan", (True, False): "inf", (False, True): "nan"}.get(
                (fmt.infinities, fmt.nan_code is not None), "-"
            )
        elif isinstance(fmt, TableFormat) and fmt.nan_code is not None:
            special = "nan"
        parts = ("-", "-", "-") if isinstance(fmt, TableFormat) else (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias)
        low, eps = fmt.smallest_subnormal, fmt.epsilon
        rows.append((fmt.name, fmt.bits, *parts, fmt.max, fmt.smallest_normal, low, eps, special))
    return Table(
        ("format", "bits", "exponent_bits", "mantissa_bits", "bias", "max", "smallest_normal", "smallest_subnormal",
         "epsilon", "special"),
        rows,
    )  # fmt: skip

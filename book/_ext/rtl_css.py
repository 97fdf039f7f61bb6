"""Rewrites left and right in a stylesheet to start and end, so that one file serves both directions of writing.

The themes' CSS says `margin-left`; a right-to-left page wants that margin on the other side. `margin-inline-start` means
the left in English and the right in Persian. `logical(css)` makes that replacement throughout; it is idempotent.
"""

from __future__ import annotations

import re

_PROPERTY = r"(?<![\w-])"  # the name starts here, it is not the end of a longer one

_REPLACEMENTS: list[tuple[str, str]] = [
    (_PROPERTY + r"(margin|padding|scroll-margin|scroll-padding)-left(?=\s*:)", r"\1-inline-start"),
    (_PROPERTY + r"(margin|padding|scroll-margin|scroll-padding)-right(?=\s*:)", r"\1-inline-end"),
    (_PROPERTY + r"border-left((?:-width|-style|-color)?)(?=\s*:)", r"border-inline-start\1"),
    (_PROPERTY + r"border-right((?:-width|-style|-color)?)(?=\s*:)", r"border-inline-end\1"),
    (_PROPERTY + r"border-top-left-radius", "border-start-start-radius"),
    (_PROPERTY + r"border-top-right-radius", "border-start-end-radius"),
    (_PROPERTY + r"border-bottom-left-radius", "border-end-start-radius"),
    (_PROPERTY + r"border-bottom-right-radius", "border-end-end-radius"),
    (_PROPERTY + r"left(?=\s*:)", "inset-inline-start"),
    (_PROPERTY + r"right(?=\s*:)", "inset-inline-end"),
    (r"(text-align\s*:\s*)left", r"\1start"),
    (r"(text-align\s*:\s*)right", r"\1end"),
    (r"(" + _PROPERTY + r"(?:float|clear)\s*:\s*)left", r"\1inline-start"),
    (r"(" + _PROPERTY + r"(?:float|clear)\s*:\s*)right", r"\1inline-end"),
]


def logical(css: str) -> str:
    """The stylesheet with physical properties replaced by logical ones."""
    css = re.sub(_PROPERTY + r"(margin|padding|inset)\s*:\s*([^;{}]+)", _four_values, css)
    for pattern, replacement in _REPLACEMENTS:
        css = re.sub(pattern, replacement, css)
    return css


def _four_values(match: re.Match[str]) -> str:
    """`margin: top right bottom left` with different sides, as two logical properties."""
    name, value = match[1], match[2]
    important = " !important" if "!important" in value else ""
    parts = _split(value.replace("!important", ""))
    if len(parts) != 4 or parts[1] == parts[3]:
        return match[0]
    top, right, bottom, left = parts
    return f"{name}-block:{top} {bottom}{important};{name}-inline:{left} {right}{important}"


def _split(value: str) -> list[str]:
    """Cuts at the spaces that are outside of parentheses: `0 calc(1px + 2px)` has two parts."""
    parts, depth, current = [], 0, ""
    for char in value.strip() + " ":
        depth += (char == "(") - (char == ")")
        if char.isspace() and not depth:
            parts += [current] if current else []
            current = ""
        else:
            current += char
    return parts

"""The compact notation of schemes: ``int4-b128-asym``, ``nf4-b64-dq``, ``int4-b32/f16``, ``fp4-b16/e4m3-tensor``.

    FORMAT[-BLOCKS][-OPTION...][/STORED]

FORMAT   any name of `qlab.FORMATS` or an alias, or a codebook: fp4_bnb, af4, ternary, binary, logN, kmeansN, mxint8
BLOCKS   tensor (unless given), channel, axisN, row, bN (along the last axis), bNxM (tiles), flatN (of the flattened tensor)
OPTION   asym (integer zero), min (float minimum), signed, mean, pow2, unit, mse, entropy, pN (percentile), mx,
         mx_ceil, mx_nearest_even, mx_up, center, reciprocal, late, high_first, dq
STORED   what the scales are stored in: a format (f16, bf16, e8m0, e4m3), or again a notation

nf4, fp4_bnb and af4 are bitsandbytes': ``bN`` is of the flattened tensor (64 unless given), scales are multiplied by, the
first code lies in the high bits, and ``dq`` quantizes the scales once more.
"""

from __future__ import annotations

import re
from dataclasses import replace

from qlab.number.formats import Format, IntFormat, get_format
from qlab.tensor.blocks import Blocks, PerAxis, PerBlock, PerRow, PerTensor
from qlab.tensor.codebooks import abnormal_float
from qlab.tensor.scheme import MX_ROUNDINGS, Fitted, Scale, Scheme, codebook

__all__ = ["GRAMMAR", "compose", "parse"]

GRAMMAR = (
    "FORMAT[-BLOCKS][-OPTION...][/STORED], as in 'int4-b128-asym', 'nf4-b64-dq', 'int4-b32/f16': "
    "BLOCKS are tensor, channel, axisN, row, bN, bNxM or flatN; OPTIONs asym, min, signed, mean, pow2, unit, mse, entropy, pN, "
    "mx, mx_ceil, mx_nearest_even, mx_up, center, reciprocal, late, high_first, dq; STORED is a format or again a notation"
)
_SHORT = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}
_RULES = {
    "signed": "signed_absmax", "mean": "mean_abs", "pow2": "power_of_two", "mse": "mse", "entropy": "entropy", "unit": "unit",
}  # fmt: skip
_BITSANDBYTES = {"nf4": "nf4_bnb", "fp4_bnb": "fp4_bnb", "af4": "af4"}  # the word, the format's name
_WHOLE: dict[str, Blocks] = {"tensor": PerTensor(), "channel": PerAxis(0), "row": PerRow()}
_DOUBLE = "dynamic8-flat256-center-reciprocal"


def parse(text: str) -> Scheme:
    """Return the scheme that a notation describes.

    Raises
    ------
    ValueError
        If a word is not of the grammar, which the message shows.

    Examples
    --------
    >>> from qlab.tensor.notation import parse
    >>> parse("int4-b128-asym").blocks
    PerBlock(size=128, axis=-1)
    """
    try:
        return _parse(text)
    except (TypeError, ValueError) as error:
        if GRAMMAR in str(error):
            raise
        raise ValueError(f"scheme {text!r}: {error}; the notation is {GRAMMAR}") from None


def _parse(text: str) -> Scheme:
    head, _, stored = text.partition("/")
    word, *options = head.split("-")
    fmt = _format(word)
    ours = word in _BITSANDBYTES
    blocks: Blocks = PerBlock(64, None) if ours else PerTensor()
    scale, zero, center, order = Scale(reciprocal=ours), None, False, "high_first" if ours else "low_first"
    for option in options:
        if found := _blocks(option, flattened=ours):
            blocks = found
        elif option in ("asym", "min"):
            zero = "integer" if option == "asym" else "min"
            scale = replace(scale, rule="minmax") if scale.rule == "absmax" else scale
        elif option in _RULES:
            scale = replace(scale, rule=_RULES[option])
        elif match := re.fullmatch(r"p(\d+(?:\.\d+)?)", option):
            scale = replace(scale, rule="percentile", percent=float(match[1]))
        elif option == "mx" or option.removeprefix("mx_") in MX_ROUNDINGS:
            scale = replace(scale, rule="mx", rounding=option[3:] or "floor")
        elif option == "dq" and ours:
            scale = replace(scale, stored=parse(_DOUBLE), late=True)
        elif option in ("reciprocal", "late"):
            scale = replace(scale, **{option: True})  # type: ignore[arg-type]
        elif option == "center":
            center = True
        elif option in ("high_first", "low_first"):
            order = option
        else:
            raise ValueError(f"{option!r} is none of its words")
    if word == "af4" and isinstance(blocks, PerBlock) and isinstance(blocks.size, int):
        fmt = abnormal_float(blocks.size)  # which depends on how many share a scale
    if stored:
        inner: Format | Scheme = parse(stored) if "-" in stored or "/" in stored else _stored_format(stored)
        scale = replace(scale, stored=inner)
    return Scheme(fmt, blocks, scale, zero, center, order)


def _format(word: str) -> Format | Fitted:
    return codebook(word) or get_format(_SHORT.get(word, word))


def _stored_format(word: str) -> Format:
    fmt = _format(word)
    if isinstance(fmt, (Fitted, IntFormat)):
        raise ValueError(f"scales cannot be stored as {word} alone; give it blocks, as in '{word}-b8/f16'")
    return fmt


def _blocks(option: str, *, flattened: bool) -> Blocks | None:
    if option in _WHOLE:
        return _WHOLE[option]
    if match := re.fullmatch(r"axis(\d+)", option):
        return PerAxis(int(match[1]))
    if match := re.fullmatch(r"b(\d+)x(\d+)", option):
        return PerBlock((int(match[1]), int(match[2])))
    if match := re.fullmatch(r"(b|flat)(\d+)", option):
        return PerBlock(int(match[2]), None if flattened or match[1] == "flat" else -1)
    return None


_EVERYDAY = {
    get_format(alias).name: alias for alias in ("e4m3", "e5m2", "e3m2", "e2m3", "e8m0", "fp4", "bf16")
} | {"float16": "f16", "nf4_bnb": "nf4"}  # fmt: skip


def compose(scheme: Scheme) -> str:
    """Return the notation of a scheme: `parse` makes an equal one of it, except where no word says what it is.

    Examples
    --------
    >>> import qlab
    >>> from qlab.tensor.notation import compose
    >>> compose(qlab.Scheme("int8", qlab.PerAxis(0), "mse"))
    'int8-channel-mse'
    """
    name = scheme.format.name.partition("_b")[0] if scheme.format.name.startswith("af4_b") else scheme.format.name
    ours = name in _BITSANDBYTES.values()
    words = [_EVERYDAY.get(name, name), *_blocks_words(scheme.blocks, ours)]
    rule, scale = scheme.scale.rule, scheme.scale
    if scheme.zero is not None:
        words.append("asym" if scheme.zero == "integer" else "min")
    words += [word for word, name in _RULES.items() if name == rule]
    if rule == "percentile":
        words.append(f"p{scale.percent:g}")
    if rule == "mx":
        words.append("mx" if scale.rounding == "floor" else f"mx_{scale.rounding}")
    double = ours and scale.late and scale.stored == parse(_DOUBLE)
    words += ["center"] * scheme.center + ["reciprocal"] * (scale.reciprocal and not ours)
    words += ["dq"] if double else ["late"] * scale.late
    if scheme.order != ("high_first" if ours else "low_first"):
        words.append(scheme.order)
    text = "-".join(words)
    if scale.stored is None or double:
        return text
    if isinstance(scale.stored, Scheme):
        inner = compose(scale.stored)
        return f"{text}/{inner}" if "-" in inner or "/" in inner else f"{text}/{inner}-tensor"
    return f"{text}/{_EVERYDAY.get(scale.stored.name, scale.stored.name)}"


def _blocks_words(blocks: Blocks, ours: bool) -> list[str]:
    if isinstance(blocks, PerTensor):
        return ["tensor"] if ours else []
    if isinstance(blocks, PerRow):
        return ["row"]
    if isinstance(blocks, PerAxis):
        return ["channel" if blocks.axis == 0 else f"axis{blocks.axis}"]
    if isinstance(blocks.size, tuple):
        return [f"b{blocks.size[0]}x{blocks.size[1]}"]
    if blocks.axis is None:
        return [] if ours and blocks.size == 64 else [f"{'b' if ours else 'flat'}{blocks.size}"]
    return [f"b{blocks.size}"]

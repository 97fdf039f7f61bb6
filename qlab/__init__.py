"""qlab: number formats and quantization, exact, fast and readable.

    quantizer = FORMAT (which values a code can stand for)
              x BLOCKS (which elements share a scale)
              x SCALE  (how the scale is chosen and stored)

`import qlab` loads NumPy only; everything else arrives when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qlab import data, show
    from qlab._pieces import get_num_threads, set_num_threads
    from qlab.model import amp
    from qlab.model.allocation import allocate_bits
    from qlab.model.diagnosis import sensitivity
    from qlab.model.outliers import outliers
    from qlab.model.qat import convert, prepare_qat
    from qlab.model.recipe import RECIPES, Activations, Recipe
    from qlab.model.transform import quantization_map, quantize_model
    from qlab.number import arithmetic
    from qlab.number.codec import cast, decode, encode
    from qlab.number.explain import Explanation, explain
    from qlab.number.formats import FORMATS, FloatFormat, IntFormat, TableFormat, get_format
    from qlab.number.measures import format_report, rank_formats, ulp, ulp_distance
    from qlab.number.p3109 import p3109
    from qlab.show.language import get_language, set_language
    from qlab.tensor.blocks import PerAxis, PerBlock, PerRow, PerTensor
    from qlab.tensor.metrics import compare_schemes, error_report
    from qlab.tensor.qtensor import QTensor
    from qlab.tensor.quantize import fake_quantize, quantize
    from qlab.tensor.scheme import SCHEMES, Scale, Scheme, get_scheme

__version__ = "0.1.0"

_WHERE = {
    "qlab": ("data", "show"),
    "qlab._pieces": ("get_num_threads", "set_num_threads"),
    "qlab.model": ("amp",),
    "qlab.model.allocation": ("allocate_bits",),
    "qlab.model.diagnosis": ("sensitivity",),
    "qlab.model.outliers": ("outliers",),
    "qlab.model.qat": ("convert", "prepare_qat"),
    "qlab.model.recipe": ("RECIPES", "Activations", "Recipe"),
    "qlab.model.transform": ("quantize_model", "quantization_map"),
    "qlab.number": ("arithmetic",),
    "qlab.number.codec": ("cast", "decode", "encode"),
    "qlab.number.explain": ("Explanation", "explain"),
    "qlab.number.formats": ("FORMATS", "FloatFormat", "IntFormat", "TableFormat", "get_format"),
    "qlab.number.measures": ("format_report", "rank_formats", "ulp", "ulp_distance"),
    "qlab.number.p3109": ("p3109",),
    "qlab.show.language": ("get_language", "set_language"),
    "qlab.tensor.blocks": ("PerAxis", "PerBlock", "PerRow", "PerTensor"),
    "qlab.tensor.metrics": ("compare_schemes", "error_report"),
    "qlab.tensor.qtensor": ("QTensor",),
    "qlab.tensor.quantize": ("fake_quantize", "quantize"),
    "qlab.tensor.scheme": ("SCHEMES", "Scale", "Scheme", "get_scheme"),
}
_HOME = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "FORMATS", "RECIPES", "SCHEMES", "Activations", "Explanation", "FloatFormat", "IntFormat", "PerAxis", "PerBlock",
    "PerRow", "PerTensor", "QTensor", "Recipe", "Scale", "Scheme", "TableFormat", "allocate_bits", "amp",
    "arithmetic", "cast", "compare_schemes", "convert", "data", "decode", "encode", "error_report", "explain",
    "fake_quantize", "format_report", "get_format", "get_language", "get_num_threads", "get_scheme", "outliers",
    "p3109", "prepare_qat", "quantization_map", "quantize", "quantize_model", "rank_formats", "sensitivity",
    "set_language", "set_num_threads", "show", "ulp", "ulp_distance",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qlab' has no attribute {name!r}")
    module = _HOME[name]
    value = (
        importlib.import_module(f"{module}.{name}")
        if module in ("qlab", "qlab.model", "qlab.number")  # packages: the name is a module
        else getattr(importlib.import_module(module), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

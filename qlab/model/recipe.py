"""Recipes as data: which layers of a network are quantized, into what, and by which method.

A recipe is frozen and hashable, and reads aloud: ``str(recipe)`` is a sentence. The named ones are a table (`RECIPES`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from qlab._check import one_of, unknown_name
from qlab.number.formats import Format, IntFormat, get_format
from qlab.tensor.blocks import PerTensor
from qlab.tensor.scheme import Fitted, Scheme, get_scheme

__all__ = ["METHODS", "OBSERVERS", "RECIPES", "TYPES", "Activations", "Recipe", "RecipeTable", "get_recipe"]

METHODS = ("rtn", "gptq", "awq", "hqq", "adaround")
OBSERVERS = ("minmax", "moving_average", "percentile", "histogram_mse", "entropy")
TYPES = ("Linear", "Conv1d", "Conv2d", "Embedding")


@dataclass(frozen=True)
class Activations:
    """How the inputs of a layer are quantized.

    Parameters
    ----------
    scheme : str or Scheme
        For the whole tensor, or by row (a scale for each token).
    when : {"dynamic", "static"}
        Whether the scale is found anew for each input, or once, from calibration data.
    observer : str
        For static ones: what finds the range, ``minmax``, ``moving_average``, ``percentile``, ``histogram_mse`` or
        ``entropy``.

    Attributes
    ----------
    ends : tuple of int
        The lowest and the highest step of an integer format; (0, 0) of any other.

    Raises
    ------
    ValueError
        If a name is unknown, or the scheme is not one that inputs can have: it stores its scales, or is GGUF's, or, for
        static ones, does not give the whole tensor one scale.

    Notes
    -----
    Frozen and hashable. Exact: steps are the codes of `qlab.quantize` at the same scale. Book: chapter 12.

    Examples
    --------
    >>> import qlab
    >>> print(qlab.Activations("int8-asym", "static", "percentile"))
    int8-asym (static, percentile)
    >>> qlab.Activations("int8-row").ends
    (-128, 127)
    """

    scheme: Scheme
    when: str = "dynamic"
    observer: str = "minmax"
    ends: tuple[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", get_scheme(self.scheme))
        fmt = self.scheme.format
        object.__setattr__(self, "ends", (int(fmt.min), int(fmt.max)) if isinstance(fmt, IntFormat) else (0, 0))
        one_of("when", self.when, ("dynamic", "static"))
        one_of("observer", self.observer, OBSERVERS)
        if self.scheme.layout is not None or (self.scheme.scale.stored is not None and self.when == "static"):
            raise ValueError(f"activations cannot be stored as {self.scheme}; take a scheme such as 'int8-asym' or 'e4m3-row'")
        if self.when == "static":
            rule, zero = self.scheme.scale.rule, self.scheme.zero
            plain = rule in ("absmax", "minmax", "mean_abs") and zero != "min" and not self.scheme.center
            if not (isinstance(self.scheme.blocks, PerTensor) and plain) or isinstance(self.scheme.format, Fitted):
                raise ValueError(
                    f"static activations have one scale and the observer finds it, so that {self.scheme} is not allowed; "
                    "take a scheme for the whole tensor, such as 'int8-asym', or when='dynamic'"
                )

    def __str__(self) -> str:
        return f"{self.scheme} ({self.when}{', ' + self.observer if self.when == 'static' else ''})"


@dataclass(frozen=True)
class Recipe:
    """What becomes of a network.

    Parameters
    ----------
    weights : str or Scheme, optional
        How weights are stored; as they are unless given.
    activations : Activations, str or Scheme, optional
        How layers' inputs are quantized; a scheme alone means dynamically.
    method : {"rtn", "gptq", "awq", "hqq", "adaround"}
        How codes are found: round to nearest, or by a search that looks at the layer's inputs (not hqq).
    dtype : str, optional
        A format such as ``float16`` that all parameters are rounded to instead.
    layers, skip : tuple of str
        Patterns of the names of layers (as ``encoder.*.query``) to take and to leave.
    types : tuple of str
        Of ``Linear``, ``Conv1d``, ``Conv2d``, ``Embedding``; embeddings only if they are named here.
    embeddings : str or Scheme, optional
        How embedding tables are stored; as `weights` unless given.
    min_size : int
        Layers with fewer weights are left as they are. The named recipes have one where small layers lose: time, by integers
        found anew for each input, and accuracy, by weights of 4 bits, that a first convolution of 9 weights a channel cannot
        spare.
    options : tuple of (str, value)
        For the method, such as ``(("damping", 0.01),)``; a dict is taken too.

    Raises
    ------
    ValueError
        If a name is unknown, nothing is asked for, or two things that exclude each other are.

    Notes
    -----
    Frozen and hashable: equal recipes give equal models. The contract is that of the method (`qlab.quantize_model`).
    Book: chapter 12.

    Examples
    --------
    >>> import qlab
    >>> print(qlab.Recipe(weights="int4-b128", method="gptq", skip=("head",)))
    weights int4-b128 by gptq; activations as they are; Linear, Conv1d, Conv2d, not head
    """

    weights: Scheme | None = None
    activations: Activations | None = None
    method: str = "rtn"
    dtype: Format | None = None
    layers: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()
    types: tuple[str, ...] = ("Linear", "Conv1d", "Conv2d")
    embeddings: Scheme | None = None
    min_size: int = 0
    options: tuple[tuple[str, Any], ...] | Mapping[str, Any] = ()
    name: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        put = object.__setattr__
        for key in ("weights", "embeddings"):
            if getattr(self, key) is not None:
                put(self, key, get_scheme(getattr(self, key)))
        given: Any = self.activations
        if given is not None and not isinstance(given, Activations):
            put(self, "activations", Activations(given))
        if self.dtype is not None:
            put(self, "dtype", get_format(self.dtype))
        for key in ("layers", "skip", "types"):
            value = getattr(self, key)
            put(self, key, (value,) if isinstance(value, str) else tuple(value))
        put(self, "options", tuple(sorted(dict(self.options).items())))
        one_of("method", self.method, METHODS)
        for kind in self.types:
            one_of("types", kind, TYPES)
        if self.dtype is not None:
            self._check_dtype(self.dtype)
        if self.dtype is None and self.weights is None and self.activations is None and self.embeddings is None:
            raise ValueError("a recipe says what to do: give weights, activations, embeddings or dtype")
        if self.method != "rtn" and self.weights is None:
            raise ValueError(f"method={self.method!r} finds codes of weights; give weights, a scheme")
        if isinstance(self.min_size, bool) or not isinstance(self.min_size, int) or self.min_size < 0:
            raise ValueError(f"min_size={self.min_size!r} is not allowed; give a number of weights, 0 or more")
        if self.options and self.method == "rtn":
            raise ValueError(f"options={dict(self.options)} are for a method that searches; name it, as method='gptq'")

    def _check_dtype(self, dtype: Format) -> None:
        given = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in ("dtype", "name")}
        if more := [key for key, value in given.items() if value != getattr(Recipe, key)]:
            raise ValueError(f"dtype={dtype.name} rounds all parameters; leave out {' and '.join(more)}, or dtype")
        if isinstance(dtype, IntFormat):
            raise ValueError(f"dtype={dtype.name} has no scale; give weights, a scheme such as '{dtype.name}-channel'")

    def __str__(self) -> str:
        if self.dtype is not None:
            return f"all parameters {self.dtype.name}"
        weights = f"weights {self.weights or 'as they are'}" + (f" by {self.method}" if self.weights else "")
        parts = [weights, f"activations {self.activations or 'as they are'}", ", ".join(self.types)]
        if self.layers != ("*",):
            parts[-1] += f" named {', '.join(self.layers)}"
        if self.skip:
            parts[-1] += f", not {', '.join(self.skip)}"
        if self.min_size:
            parts[-1] += f", of at least {self.min_size} weights"
        if self.embeddings:
            parts.append(f"embeddings {self.embeddings}")
        return "; ".join(parts)

    def takes(self, name: str) -> bool:
        """Whether the layer of that name is to be quantized."""
        return any(fnmatchcase(name, p) for p in self.layers) and not any(fnmatchcase(name, p) for p in self.skip)

    @property
    def needs_calibration(self) -> bool:
        """Whether data must be run through the network first."""
        static = self.activations is not None and self.activations.when == "static"
        return static or self.method in ("gptq", "awq", "adaround")


def _static(scheme: str, observer: str = "minmax") -> Activations:
    return Activations(get_scheme(scheme), "static", observer)


def _recipes() -> dict[str, Recipe]:
    made: dict[str, dict[str, Any]] = {
        "weight_only_int8": {"weights": "int8-channel"},
        "weight_only_nf4": {"weights": "nf4", "min_size": 2**10},
        "weight_only_int4": {"weights": "uint4-b64-min/f16", "min_size": 2**10},  # from the lowest value of a block up
        "dynamic_int8": {"weights": "int8-channel", "activations": "int8-asym", "types": ("Linear",), "min_size": 2**17},
        "static_int8": {"weights": "int8-channel", "activations": _static("int8-asym", "histogram_mse")},
        "static_int16x8": {"weights": "int8-channel", "activations": _static("int16")},
        "float16": {"dtype": "float16"},
        "bfloat16": {"dtype": "bfloat16"},
        "fp8_dynamic": {"weights": "e4m3-channel", "activations": "e4m3-row", "types": ("Linear",)},
        "mxfp4": {"weights": "mxfp4", "activations": "mxfp4", "types": ("Linear",)},
        "tflite_dynamic_range": {"weights": "int8-channel", "activations": "int8-asym"},
        "tflite_float16": {"weights": "float16-unit", "types": TYPES},  # brought back to float32, as TFLite does on a CPU
        "tflite_full_integer": {"weights": "int8-channel", "activations": _static("int8-asym")},
        "tflite_int16x8": {"weights": "int8-channel", "activations": _static("int16")},
    }
    return {name: Recipe(**parts, name=name) for name, parts in made.items()}


class RecipeTable(Mapping[str, Recipe]):
    """The named recipes: a read-only mapping of name to Recipe, which a notebook shows as a table."""

    def __init__(self, recipes: dict[str, Recipe]) -> None:
        self._recipes = recipes

    def __getitem__(self, name: str) -> Recipe:
        return self._recipes[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {recipe}" for name, recipe in self.items())

    def _repr_html_(self) -> str:
        from qlab.show.table import Table

        rows = [
            (name, str(r.dtype.name if r.dtype else r.weights), str(r.activations or "-"), ", ".join(r.types), r.min_size)
            for name, r in self.items()
        ]
        return Table(("recipe", "weights", "activations", "layer_types", "min_size"), rows)._repr_html_()


RECIPES = RecipeTable(_recipes())
"""The named recipes."""


def get_recipe(recipe: str | Recipe) -> Recipe:
    """Return the recipe of that name; a recipe is returned as it is.

    Raises
    ------
    ValueError
        If no recipe has that name; the message offers the nearest ones.

    Examples
    --------
    >>> import qlab
    >>> print(qlab.RECIPES["dynamic_int8"])
    weights int8-channel by rtn; activations int8-asym (dynamic); Linear, of at least 131072 weights
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, str):
        raise TypeError(f"a recipe is a name or a Recipe, not {type(recipe).__name__}")
    if recipe in RECIPES:
        return RECIPES[recipe]
    unknown_name("recipe", recipe, RECIPES, "qlab.RECIPES lists all names")

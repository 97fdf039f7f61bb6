"""Small real data and models for the book, and a stored comparison of libraries, the same on every machine.

scikit-learn ships the data: 1797 handwritten digits of 8 x 8 pixels, from the UCI repository. The networks of torch,
`digits_cnn`, `digits_mlp`, `digits_transformer` and `minilm`, live in `qlab.models` and `qlab.minilm`, and are loaded when used.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qlab._pieces import Array, blas_on_one_thread

if TYPE_CHECKING:
    from qlab.minilm import minilm
    from qlab.models import digits_cnn, digits_mlp, digits_transformer

__all__ = [
    "Classifier", "Difference", "Differences", "Digits", "TrainingStep", "differences", "digits", "digits_cnn", "digits_mlp",
    "digits_transformer", "minilm", "sentences", "train_digits", "training_step",
]  # fmt: skip

_OF_TORCH = {
    "digits_cnn": "qlab.models", "digits_mlp": "qlab.models", "digits_transformer": "qlab.models", "minilm": "qlab.minilm",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _OF_TORCH:
        raise AttributeError(f"module 'qlab.data' has no attribute {name!r}")
    return getattr(importlib.import_module(_OF_TORCH[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


class Digits(NamedTuple):
    """Pictures (n, 64) with grey levels from 0 to 1, float32, and what they show, (n,) integers."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array


@lru_cache(maxsize=1)
def _load() -> Digits:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install 'qlab[book]'") from error
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, test = order[:1200], order[1200:]
    return Digits(x[train], y[train], x[test], y[test])


def digits() -> Digits:
    """Return the handwritten digits of scikit-learn, split into 1200 to train with and 597 to test on.

    Raises
    ------
    ImportError
        If scikit-learn is not installed.

    Notes
    -----
    Exact: the same pictures in the same order everywhere. Alpaydin and Kaynak, "Optical recognition of handwritten digits", 1998.

    Examples
    --------
    >>> import qlab
    >>> qlab.data.digits().test_x.shape
    (597, 64)
    """
    return Digits(*(part.copy() for part in _load()))


@dataclass(frozen=True, repr=False)
class Classifier:
    """A network of two layers: ``softmax(relu(x @ w1 + b1) @ w2 + b2)``.

    Attributes
    ----------
    weights : tuple of arrays
        Of shapes (64, hidden) and (hidden, 10), float32.
    biases : tuple of arrays
        Of shapes (hidden,) and (10,), float32.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]

    def __repr__(self) -> str:
        shapes = " -> ".join(str(n) for n in (self.weights[0].shape[0], *(w.shape[1] for w in self.weights)))
        return f"Classifier({shapes}, {self.num_weights} weights)"

    @property
    def num_weights(self) -> int:
        """How many weights there are, biases not counted."""
        return sum(w.size for w in self.weights)

    def predict(self, x: Array) -> Array:
        """Return the most probable digit for each picture, (n,) integers."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, 0)
        return np.asarray((x @ self.weights[-1] + self.biases[-1]).argmax(axis=-1))

    def accuracy(self, x: Array, y: Array) -> float:
        """Return the share of pictures that are told right, in percent."""
        return float(100 * (self.predict(x) == y).mean())

    def map_weights(self, change: Callable[[Array], Array]) -> Classifier:
        """Return a classifier with each weight matrix changed."""
        return replace(self, weights=tuple(change(w) for w in self.weights))


class TrainingStep(NamedTuple):
    """What one step of training computes: three dicts of name to float32 array.

    Attributes
    ----------
    parameters : dict
        ``w1 b1 w2 b2``, before the step.
    activations : dict
        ``pixels hidden logits probabilities``, each of shape (1200, units).
    gradients : dict
        Of the mean loss, by the parameters ``w1 b1 w2 b2`` and by the activations ``hidden logits``.
    """

    parameters: dict[str, Array]
    activations: dict[str, Array]
    gradients: dict[str, Array]


_PARAMETERS, _STEPS = ("w1", "b1", "w2", "b2"), 150


def _forward_and_backward(parameters: list[Array]) -> TrainingStep:
    data = _load()
    x, target = data.train_x.astype(np.float64), np.eye(10)[data.train_y]
    w1, b1, w2, b2 = parameters
    h = np.maximum(x @ w1 + b1, 0)
    logits = h @ w2 + b2
    probability = np.exp(logits - logits.max(axis=1, keepdims=True))
    probability /= probability.sum(axis=1, keepdims=True)
    d_logits = (probability - target) / len(x)
    d_h = d_logits @ w2.T * (h > 0)
    return TrainingStep(
        dict(zip(_PARAMETERS, parameters, strict=True)),
        {"pixels": x, "hidden": h, "logits": logits, "probabilities": probability},
        {"w1": x.T @ d_h, "b1": d_h.sum(0), "w2": h.T @ d_logits, "b2": d_logits.sum(0), "hidden": d_h, "logits": d_logits},
    )


@lru_cache(maxsize=8)
def _train(hidden: int, steps: int) -> tuple[Array, ...]:
    """Gradient descent on all pictures at once, with the step sizes of Adam (Kingma and Ba, 2015).

    It computes in float64 and rounds the parameters to float32 after every step. What differs from one machine's
    libraries to another's, a last bit of a float64, is rounded away each time: the result is the same everywhere.
    """
    rng, shapes = np.random.default_rng(0), ((64, hidden), (hidden,), (hidden, 10), (10,))
    parameters = [rng.normal(0, (2 / shape[0]) ** 0.5, shape) * (len(shape) == 2) for shape in shapes]
    mean, square = [np.zeros(s) for s in shapes], [np.zeros(s) for s in shapes]
    with blas_on_one_thread():
        for step in range(1, steps + 1):
            gradients = _forward_and_backward(parameters).gradients
            for i, name in enumerate(_PARAMETERS):
                gradient = gradients[name]
                mean[i] += 0.1 * (gradient - mean[i])
                square[i] += 0.001 * (gradient**2 - square[i])
                change = mean[i] / (1 - 0.9**step) / (np.sqrt(square[i] / (1 - 0.999**step)) + 1e-8)
                parameters[i] = (parameters[i] - 0.01 * change).astype(np.float32).astype(np.float64)
    return tuple(parameters)


def _check_positive(name: str, value: int, lowest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        allowed = "a positive integer" if lowest else "a step from 0 up"
        raise ValueError(f"{name}={value!r} is not allowed; give {allowed}")


def train_digits(hidden: int = 64) -> Classifier:
    """Train a small classifier of handwritten digits: 64 pixels, `hidden` units, 10 digits. Takes about a second.

    Parameters
    ----------
    hidden : int
        Units of the hidden layer.

    Raises
    ------
    ValueError
        If `hidden` is not a positive integer.

    Notes
    -----
    Exact: trained in float64 and rounded to float32 after each step, so that the bits are the same on every machine.

    Examples
    --------
    >>> import qlab
    >>> network = qlab.data.train_digits()
    >>> network
    Classifier(64 -> 64 -> 10, 4736 weights)
    >>> data = qlab.data.digits()
    >>> network.accuracy(data.test_x, data.test_y) > 95
    True
    """
    _check_positive("hidden", hidden, 1)
    w1, b1, w2, b2 = (p.astype(np.float32) for p in _train(hidden, _STEPS))
    return Classifier((w1, w2), (b1, b2))


def training_step(step: int = _STEPS, *, hidden: int = 64) -> TrainingStep:
    """Return the parameters, activations and gradients of `train_digits` at a step, for all 1200 training pictures.

    Parameters
    ----------
    step : int
        How many steps were made before: 0 is the untrained network, 150 the one that `train_digits` returns.
    hidden : int
        Units of the hidden layer.

    Examples
    --------
    >>> import qlab
    >>> start, end = qlab.data.training_step(0), qlab.data.training_step(150)
    >>> start.gradients["w1"].shape
    (64, 64)
    >>> bool(abs(end.gradients["w1"]).max() < 0.1 * abs(start.gradients["w1"]).max())
    True
    """
    _check_positive("step", step, 0)
    _check_positive("hidden", hidden, 1)
    at_step = _forward_and_backward(list(_train(hidden, step)))
    parts = [{name: array.astype(np.float32) for name, array in part.items()} for part in at_step]
    return TrainingStep(*parts)


class Difference(NamedTuple):
    """One question, which value a format makes of a number, and what each library answers.

    Attributes
    ----------
    format, input : str
        Name of the format; the number as it is best said, as ``1 + 2^-11``.
    value : float
        The number.
    answers : dict of str to str
        By library: a number that `float` reads, or the name of an error. A library without the format is left out.
    """

    format: str
    input: str
    value: float
    answers: dict[str, str]

    @property
    def disputed(self) -> bool:
        """Whether not all libraries answer alike."""
        return len(set(self.answers.values())) > 1


class Differences(NamedTuple):
    """What libraries answered: their versions by name, and a row for each question."""

    libraries: dict[str, str]
    rows: list[Difference]


def differences() -> Differences:
    """Return how qlab and other libraries rounded the same hard numbers to the same formats, as stored with the package.

    ``python -m benchmarks.differences`` asks them again, those that are installed.

    Examples
    --------
    >>> import qlab
    >>> stored = qlab.data.differences()
    >>> row = next(r for r in stored.rows if (r.format, r.input) == ("float8_e4m3fn", "500"))
    >>> row.answers["torch"], row.answers["ml_dtypes"], row.disputed
    ('448.0', 'nan', True)
    """
    stored = json.loads(files("qlab").joinpath("differences.json").read_text(encoding="utf-8"))
    rows = [Difference(r["format"], r["input"], float(r["value"]), r["answers"]) for r in stored["rows"]]
    return Differences(stored["libraries"], rows)


def sentences() -> list[str]:
    """Return 50 short English sentences on ten subjects, five on each, for the case study of a sentence encoder.

    Examples
    --------
    >>> import qlab
    >>> qlab.data.sentences()[0]
    'The rain has not stopped since Tuesday.'
    """
    return files("qlab").joinpath("sentences.txt").read_text(encoding="utf-8").splitlines()

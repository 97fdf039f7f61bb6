"""Products of quantized matrices: the integer product that the hardware makes, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from qlab._pieces import Array, blas_on_one_thread, get_num_threads, set_num_threads
from qlab.number.codec import encode
from qlab.tensor.quantize import find_scale, quantize
from qlab.tensor.scheme import get_scheme

__all__ = ["integer_product", "time_products"]


def integer_product(a: Array, b: Array) -> Array:
    """Return the exact product of two int8 matrices.

    Parameters
    ----------
    a, b : int8 arrays of shapes (m, k) and (k, n)

    Returns
    -------
    product : int32 array of shape (m, n)

    Notes
    -----
    Exact as long as no sum leaves int32 (k below 131 072). Uses torch's int8 kernel if torch is installed; NumPy's
    integer product has no fast kernel and is some hundred times slower.

    Examples
    --------
    >>> import numpy as np
    >>> from qlab.tensor.product import integer_product
    >>> integer_product(np.int8([[100, 100]]), np.int8([[100], [-99]])).tolist()
    [[100]]
    """
    if a.dtype != np.int8 or b.dtype != np.int8 or a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(
            f"got {a.dtype} of shape {a.shape} and {b.dtype} of shape {b.shape}; "
            "the product needs int8 matrices of shapes (m, k) and (k, n)"
        )
    try:
        import torch
    except ImportError:
        return a.astype(np.int32) @ b.astype(np.int32)
    product: Array = torch._int_mm(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    return product


def time_products(sizes: Sequence[int], *, batch: int = 64) -> Any:
    """Measure ``x @ w`` in float32 and in int8, for square weights of several sizes.

    The int8 way is what a dynamically quantized layer does: find the scale of `x`, round `x` to int8, multiply integers,
    multiply by both scales. The weights were rounded before. On one thread, where threadpoolctl is installed (it comes
    with scikit-learn).

    Parameters
    ----------
    sizes : sequence of int
        Rows and columns of the weights.
    batch : int
        Rows of `x`.

    Returns
    -------
    Table
        Milliseconds (medians) and their ratio: above 1, int8 is faster.
    """
    from qlab.show.table import Table

    rng, scheme, rows = np.random.default_rng(0), get_scheme("int8"), []
    for size in sizes:
        x = rng.standard_normal((batch, size), dtype=np.float32)
        w = rng.standard_normal((size, size), dtype=np.float32)
        w_scale = find_scale(w, scheme)
        w_codes = quantize(w, scheme).codes().view(np.int8)

        def in_int8(x: Array = x, w_codes: Array = w_codes, w_scale: Array = w_scale) -> Array:
            x_scale = find_scale(x, scheme)
            x_codes = encode(x / x_scale, "int8").view(np.int8)
            product: Array = integer_product(x_codes, w_codes) * (x_scale * w_scale)
            return product

        def in_float32(x: Array = x, w: Array = w) -> Array:
            return x @ w

        with _one_thread():
            fp32, int8 = _median_ms(in_float32), _median_ms(in_int8)
        rows.append((size, *(float(f"{value:.3g}") for value in (fp32, int8, fp32 / int8))))
    return Table(("size", "fp32_ms", "int8_ms", "ratio"), rows)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(1)
    try:
        with blas_on_one_thread():
            yield
    finally:
        set_num_threads(before)


def _median_ms(work: Callable[[], Array], seconds: float = 0.15) -> float:
    work()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 200):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2] * 1e3

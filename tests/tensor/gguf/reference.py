"""llama.cpp's search for scales, written down group by group, plainly and slowly: what qlab's search must not be worse than.

The names are those of ``ggml-quants.c`` (``make_qkx2_quants`` and so on); a function returns the values that a file would
give back, not the bytes. What llama.cpp does in float32 is done in float64 here; scales are rounded to float16.
"""

from __future__ import annotations

import numpy as np

IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], float)


def half(value: float) -> float:
    return float(np.float16(value))


def make_qx(x, nmax, weights=None):
    """A scale for codes from -nmax to nmax - 1; without weights, large values count by their squares."""
    peak = x[np.abs(x).argmax()]
    if abs(peak) < 1e-15:
        return 0.0
    weights = x * x if weights is None else weights
    scale = best = None
    for step in [0, *range(-9, 0), *range(1, 10)]:
        codes = np.clip(np.rint(-(nmax + 0.1 * step) / peak * x), -nmax, nmax - 1)
        along, length = (weights * x * codes).sum(), (weights * codes * codes).sum()
        if best is None or (length > 0 and along * along > best * length):
            scale = along / length if length else 0.0
            best = scale * along
    return scale


def make_q3(x, nmax):
    """The same by changing one code after the other, as long as that helps (Q3_K without importance)."""
    peak = x[np.abs(x).argmax()]
    if abs(peak) < 1e-15:
        return 0.0
    weights = x * x
    codes = np.clip(np.rint(-nmax / peak * x), -nmax, nmax - 1)
    along, length = (weights * x * codes).sum(), (weights * codes * codes).sum()
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            a = along - weights[i] * x[i] * codes[i]
            if a > 0:
                b = length - weights[i] * codes[i] ** 2
                new = float(np.clip(np.rint(x[i] * b / a), -nmax, nmax - 1))
                if new != codes[i]:
                    a += weights[i] * x[i] * new
                    b += weights[i] * new * new
                    if b > 0 and a * a * length > along * along * b:
                        codes[i], along, length, changed = new, a, b, True
        if not changed:
            break
    return along / length if length > 0 else 0.0


def make_qkx2(x, nmax, weights, rmin, rdelta, nstep, use_mad):
    """A scale and a minimum (returned positive) for codes from 0 to nmax."""
    low, high = min(x.min(), 0.0), x.max()
    if high <= low:
        return 0.0, -low
    measure = np.abs if use_mad else np.square
    scale, minimum = (high - low) / nmax, low
    codes = np.clip(np.rint((x - low) / scale), 0, nmax)
    best = (weights * measure(scale * codes + minimum - x)).sum()
    sum_w, sum_x = weights.sum(), (weights * x).sum()
    for step in range(nstep + 1):
        codes = np.clip(np.rint((rmin + rdelta * step + nmax) / (high - low) * (x - low)), 0, nmax)
        sum_l, sum_l2, sum_xl = (weights * codes).sum(), (weights * codes * codes).sum(), (weights * codes * x).sum()
        determinant = sum_w * sum_l2 - sum_l * sum_l
        if determinant > 0:
            this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            this_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            if this_min > 0:
                this_min, this_scale = 0.0, sum_xl / sum_l2
            error = (weights * measure(this_scale * codes + this_min - x)).sum()
            if error < best:
                best, scale, minimum = error, this_scale, this_min
    return scale, -minimum


def make_qp(x, nmax, weights):
    """A scale for values that are not negative, and their codes from 0 to nmax."""
    if x.max() < 1e-15:
        return 0.0, np.zeros(len(x))
    best = chosen = None
    for step in [0, -4, -3, -2, -1, 1, 2, 3, 4]:
        inverse = (0.1 * step + nmax) / x.max()
        codes = np.minimum(np.rint(inverse * x), nmax)
        error = (weights * np.square(x - codes / inverse)).sum()
        if best is None or error < best:
            best, chosen = error, inverse
    codes = np.minimum(np.rint(chosen * x), nmax)
    along, length = (weights * x * codes).sum(), (weights * codes * codes).sum()
    for _ in range(5):
        changed = False
        for i in range(len(x)):
            a, b = along - weights[i] * x[i] * codes[i], length - weights[i] * codes[i] ** 2
            if a > 0 and b > 0:
                new = min(float(np.rint(x[i] * b / a)), nmax)
                if new != codes[i]:
                    a += weights[i] * x[i] * new
                    b += weights[i] * new * new
                    if a * a * length > along * along * b:
                        codes[i], along, length, changed = new, a, b, True
        if not changed:
            break
    return (along / length if length > 0 else 0.0), codes


def with_minimum(x, group, top, end, importance=None):
    """Q2_K, Q4_K, Q5_K: values of one block of 256."""
    rows = x.reshape(-1, group)
    if importance is None:
        search = {3: (-0.5, 0.1, 15, True), 15: (-1.0, 0.1, 20, False), 31: (-0.5, 0.1, 15, False)}[top]
        weights = np.abs(rows) if top == 3 else np.abs(rows) + np.sqrt((rows**2).mean(axis=1, keepdims=True))
    else:
        search = (-0.9, 0.05, 36, False)
        sigma2 = (1 if top == 3 else 2) * (x**2).mean()
        weights = importance.reshape(rows.shape) * np.sqrt(sigma2 + rows**2)
    fits = np.array([make_qkx2(row, top, w, *search) for row, w in zip(rows, weights, strict=True)])
    scales, minima = fits.T
    if importance is None:
        block = [max(v.max(), 0.0) / end for v in (scales, minima)]
        codes = [np.minimum(np.rint(v / b), end) if b else v * 0 for v, b in zip((scales, minima), block, strict=True)]
    else:
        block, codes = zip(*(make_qp(v, end, weights.sum(axis=1)) for v in (scales, minima)), strict=True)
    step, low = half(block[0]) * codes[0][:, None], half(block[1]) * codes[1][:, None]
    return (np.clip(np.rint((rows + low) / np.where(step, step, np.inf)), 0, top) * step - low).ravel()


def symmetric(x, nmax, end, importance=None):
    """Q3_K, Q6_K: values of one block of 256."""
    rows = x.reshape(-1, 16)
    if importance is None:
        scales = np.array([make_q3(row, nmax) if nmax == 4 else make_qx(row, nmax) for row in rows])
    else:
        weights = importance.reshape(rows.shape)
        if nmax == 4:
            weights = weights * np.sqrt(2 * (x**2).mean() + rows**2)
        scales = np.array([make_qx(row, nmax, w) for row, w in zip(rows, weights, strict=True)])
    peak = scales[np.abs(scales).argmax()]
    if not peak:
        return x * 0
    scale = make_qx(scales, 32, weights.sum(axis=1)) if importance is not None and nmax == 4 else -peak / end
    step = half(scale) * np.clip(np.rint(scales / scale), -end, end - 1)[:, None]
    return (np.clip(np.rint(rows / np.where(step, step, np.inf)), -nmax, nmax - 1) * step).ravel()


def nearest_level(x):
    return IQ4[np.searchsorted((IQ4[1:] + IQ4[:-1]) / 2, x, side="right")]


def make_iq4(x, weights, ntry=7):
    """A scale for the levels of IQ4."""
    peak = x[np.abs(x).argmax()]
    if abs(peak) < 1e-15:
        return 0.0
    scale = best = None
    for inverse in [-IQ4[0] / peak, *((step + IQ4[0]) / peak for step in range(-ntry, ntry + 1))]:
        levels = nearest_level(inverse * x)
        along, length = (weights * x * levels).sum(), (weights * levels * levels).sum()
        if best is None or along * along > best * length:
            scale, best = along / length, along * along / length
    return scale


def iq4(x, importance=None):
    """IQ4_NL for a block of 32, IQ4_XS for one of 256: values."""
    rows = x.reshape(-1, 32)
    weights = rows**2
    if importance is not None:
        weights = importance.reshape(rows.shape) * np.sqrt(2 * (x**2).mean() + rows**2)
    scales = np.array([make_iq4(row, w) for row, w in zip(rows, weights, strict=True)])
    if len(rows) == 1:
        return nearest_level(x / scales[0]) * half(scales[0]) if scales[0] else x * 0
    scale = -scales[np.abs(scales).argmax()] / 32
    if not scale:
        return x * 0
    codes = np.clip(np.rint(scales / scale), -32, 31)[:, None]
    levels = nearest_level(rows / np.where(codes, codes * scale, np.inf))
    return (levels * codes * half(scale)).ravel()


REFERENCE = {
    "q2_k": (256, lambda x, w=None: with_minimum(x, 16, 3, 15, w)),
    "q3_k": (256, lambda x, w=None: symmetric(x, 4, 32, w)),
    "q4_k": (256, lambda x, w=None: with_minimum(x, 32, 15, 63, w)),
    "q5_k": (256, lambda x, w=None: with_minimum(x, 32, 31, 63, w)),
    "q6_k": (256, lambda x, w=None: symmetric(x, 32, 128, w)),
    "iq4_nl": (32, iq4),
    "iq4_xs": (256, iq4),
}
"""Values of one block by llama.cpp's search: ``REFERENCE[name][1](x, importance)``."""


def reference_values(name, x, importance=None):
    block, search = REFERENCE[name]
    blocks = np.asarray(x, float).reshape(-1, block)
    weights = [None] * len(blocks) if importance is None else np.asarray(importance, float).reshape(-1, block)
    return np.stack([search(b, w) for b, w in zip(blocks, weights, strict=True)]).reshape(x.shape)

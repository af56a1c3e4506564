"""Kernels rounded to int8 so that what a convolution gives changes least, on inputs like those it was shown.

Rounded to nearest, the errors of a kernel add up where its inputs are alike, as in the black around a head:
in a trial that was most of what int8 did to the classifier. Here each weight's error is made up for by those
not yet rounded (Frantar et al. 2022, GPTQ), in the order of how strong their inputs are.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trainer.int8_graph import TOP, Kernel, upward

DAMPING = 0.01
"""Of the inputs' mean square, added to each: moments of few slices are not to be trusted to the end."""
_BLOCK = 64


def round_kernel(kernel: npt.NDArray[np.float32], moments: npt.NDArray[np.float64] | None) -> Kernel:
    """Of a kernel float32 [O,I,h,w] and its inputs' second moments [I*h*w,I*h*w]; to nearest without them."""
    rows = kernel.reshape(len(kernel), -1).astype(np.float64)
    steps = upward(np.abs(rows).max(axis=1) / TOP)
    scaled = rows / steps.astype(np.float64)[:, None]
    values = _nearest(scaled) if moments is None or not moments.any() else _made_up_for(scaled, moments)
    return Kernel(values.astype(np.int8).reshape(kernel.shape), steps)


def _nearest(scaled: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.clip(np.round(scaled), -TOP, TOP)


def _made_up_for(
    scaled: npt.NDArray[np.float64], moments: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    size = scaled.shape[1]
    order = np.argsort(-np.diag(moments), kind="stable")
    damped = moments[np.ix_(order, order)] + np.eye(size) * (DAMPING * np.diag(moments).mean())
    weights = np.linalg.cholesky(np.linalg.inv(damped)).T
    left = scaled[:, order]
    values = np.empty_like(left)
    for start in range(0, size, _BLOCK):
        stop = min(start + _BLOCK, size)
        errors = np.empty((len(left), stop - start))
        for k in range(start, stop):
            values[:, k] = _nearest(left[:, k])
            errors[:, k - start] = (left[:, k] - values[:, k]) / weights[k, k]
            left[:, k + 1 : stop] -= np.outer(errors[:, k - start], weights[k, k + 1 : stop])
        left[:, stop:] -= errors @ weights[start:stop, stop:]
    restored = np.empty_like(values)
    restored[:, order] = values
    return restored

"""AdaRound: each value goes up or down, whichever together moves a layer's outputs least.

Nagel et al. 2020, arXiv 2004.10568. With scales fixed, a value's code is its floor plus h in 0..1,
h = clip(1.2 sigmoid(V) - 0.1, 0, 1) (eq. 23); V is moved by gradients of the outputs' squared
error, tr(D H D^T) for what rounding changes, D, and H = X^T X, and of 1 - |2 h - 1|^b (eq. 24),
which drives h to one of its ends as b falls from 20 to 2.
"""

import numpy as np
import torch

from edgeopt.compress.blocks import encode_blocks
from edgeopt.compress.codes import Codes, Floats, encode_weight
from edgeopt.compress.factors import DAMPING, Doubles
from edgeopt.compress.reconstruct import Rounded

#: Steps of Adam, their size, and the share of them before h is driven to its ends.
_STEPS, _RATE, _FREE = 600, 0.05, 0.2
#: How much the ends count beside the error, both being means over values.
_PRESSURE = 0.1
_FIRST, _LAST = 20.0, 2.0


def round_adaptively(
    rows: Floats, hessian: Doubles, *, bits: int = 8, block: int | None = None
) -> Rounded:
    """Round W [N, K] for a layer whose inputs have the hessian [K, K].

    Scales are those of the nearest codes: in blocks, or of int8 one per row.
    """
    if block is None:
        _, scales = encode_weight(rows, axis=0)
        scales, limits = scales[:, None], (-127, 127)
    else:
        _, scales = encode_blocks(rows, block=block, bits=bits)
        limits = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    spread = np.repeat(scales, rows.shape[1] // scales.shape[1], axis=1)
    codes = _choose(rows / spread, spread, hessian, limits)
    return Rounded(codes, scales)


def _choose(wide: Floats, spread: Floats, hessian: Doubles, limits: tuple[int, int]) -> Codes:
    """Return the code of each of the values [N, K], which are divided by their scales already."""
    damped = hessian + np.eye(len(hessian)) * max(DAMPING * np.diag(hessian).mean(), 1e-12)
    weight = torch.from_numpy((damped / np.diag(damped).mean()).astype(np.float32))
    size = torch.from_numpy(spread / np.sqrt(np.square(spread).mean()))
    values = torch.from_numpy(wide.astype(np.float32))
    low = torch.floor(values)
    share = (values - low).clamp(0.01, 0.99)
    place = torch.logit((share + 0.1) / 1.2).requires_grad_()
    optimizer = torch.optim.Adam([place], _RATE)
    for step in range(_STEPS):
        optimizer.zero_grad()
        up = _between(place)
        error = ((low + up).clamp(*limits) - values) * size
        loss = (error * (error @ weight)).mean()
        done = (step / _STEPS - _FREE) / (1 - _FREE)
        if done > 0:
            power = _LAST + (_FIRST - _LAST) * (1 - done)
            loss = loss + _PRESSURE * (1 - (2 * up - 1).abs() ** power).mean()
        loss.backward()
        optimizer.step()
    chosen = low + (_between(place.detach()) >= 0.5)
    codes: Codes = chosen.clamp(*limits).numpy().astype(np.int8)
    return codes


def _between(place: torch.Tensor) -> torch.Tensor:
    return (1.2 * torch.sigmoid(place) - 0.1).clamp(0, 1)

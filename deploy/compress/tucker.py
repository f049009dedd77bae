"""Small factors whose product stands for a large weight: matrices by SVD, convolutions by Tucker-2.

A weight W changed into W' changes what it makes of inputs x by (W' - W) x, whose mean square is the trace of
(W' - W) H (W' - W)' with H = E[x x']. With L L' = H that is the plain square of (W' - W) L: truncating W L is
thus the best for the data, as truncating W is without any.

    matrix          W ~ U (U' W), U the first left singular vectors of W L: two matrices
    convolution     W ~ core x1 U x2 V: 1x1 down to some of the input channels' directions, the kernel between
                    those, 1x1 up again (Kim et al., ICLR 2016); by the higher-order SVD, then alternating
                    least squares (De Lathauwer et al. 2000)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 3
_DAMP = 1e-4
"""Of H's mean diagonal, added to it, so that it has a root and an inverse."""


@dataclass(frozen=True)
class Factors:
    """``down`` (rank in, inputs) or None, ``core`` (rank out, rank in, taps), ``up`` (outputs, rank out) or
    None. A matrix has one tap, and no ``down``."""

    down: np.ndarray | None
    core: np.ndarray
    up: np.ndarray | None

    def weight(self) -> np.ndarray:
        """What they stand for: (outputs, inputs, taps)."""
        found = self.core
        if self.down is not None:
            found = np.einsum("rst,si->rit", found, self.down)
        return found if self.up is None else np.einsum("or,rit->oit", self.up, found)

    @property
    def ranks(self) -> tuple[int, int]:
        """Out and in."""
        return self.core.shape[0], self.core.shape[1]


def root(gram: np.ndarray) -> np.ndarray:
    """A lower triangular L, invertible, with L L' close to ``gram``."""
    damp = _DAMP * max(float(np.trace(gram)) / len(gram), 1e-12)
    return np.linalg.cholesky(gram + damp * np.eye(len(gram)))


def left(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors, and the squares of all singular values, largest first."""
    if matrix.shape[0] <= matrix.shape[1]:  # the small side's own square is cheaper than a whole SVD
        return _directions(matrix @ matrix.T)
    vectors, values, _ = np.linalg.svd(matrix, full_matrices=False)
    return vectors, values**2


def _directions(square: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvectors of a square that is symmetric and not negative, and its eigenvalues, largest first."""
    values, vectors = np.linalg.eigh(square)
    return vectors[:, ::-1], np.maximum(values[::-1], 0.0)


def rank_for(powers: np.ndarray, lost: float, multiple: int = 1) -> int:
    """The least rank, a multiple of ``multiple`` where there are so many, that loses ``lost`` of the sum of
    ``powers`` at most.

    >>> rank_for(np.array([8.0, 1.0, 0.9, 0.1]), 0.1), rank_for(np.array([8.0, 1.0, 0.9, 0.1]), 0.1, 4)
    (2, 4)
    """
    total = powers.sum()
    tails = np.concatenate([[total], total - np.cumsum(powers)])
    rank = max(1, int(np.argmax(tails <= lost * total + 1e-12 * total)))
    return min(len(powers), -(-rank // multiple) * multiple)


def by_outputs(weight: np.ndarray, gram: np.ndarray | None, lost: float, multiple: int = 1) -> Factors:
    """Two factors of ``weight`` (outputs, inputs, taps): fewer outputs, then all of them from these.

    The best of their rank; of the power that they make of inputs with ``gram`` (inputs x taps, channel by
    channel), or of their own squares, they lose ``lost`` at most.
    """
    flat = weight.reshape(len(weight), -1)
    vectors, powers = left(flat) if gram is None else _directions(flat @ gram @ flat.T)
    up = vectors[:, : rank_for(powers, lost, multiple)]
    return Factors(None, (up.T @ flat).reshape(-1, *weight.shape[1:]), up)


def tucker(weight: np.ndarray, gram: np.ndarray | None, lost: float, multiple: int = 1) -> Factors:
    """Three factors of ``weight`` (outputs, inputs, taps). ``gram`` is over inputs x taps, of which the mean
    over taps weighs the input channels. Both sides together lose about ``lost`` of the power."""
    outputs, inputs, taps = weight.shape
    lower = np.eye(inputs)
    if gram is not None:
        blocks = gram.reshape(inputs, taps, inputs, taps)
        lower = root(np.einsum("itjt->ij", blocks) / taps)
    white = np.einsum("oit,ij->ojt", weight, lower)
    up, out_powers = left(white.reshape(outputs, -1))
    across, in_powers = left(white.transpose(1, 0, 2).reshape(inputs, -1))
    up = up[:, : rank_for(out_powers, lost / 2, multiple)]
    across = across[:, : rank_for(in_powers, lost / 2, multiple)]
    for _ in range(_ROUNDS):
        part = np.einsum("ojt,js->ost", white, across)
        up = left(part.reshape(outputs, -1))[0][:, : up.shape[1]]
        part = np.einsum("ojt,or->rjt", white, up)
        across = left(part.transpose(1, 0, 2).reshape(inputs, -1))[0][:, : across.shape[1]]
    core = np.einsum("ojt,or,js->rst", white, up, across)
    return Factors(np.linalg.solve(lower.T, across).T, core, up)


def lost_power(found: np.ndarray, weight: np.ndarray, gram: np.ndarray | None) -> float:
    """The share of the power of what ``weight`` makes that ``found`` in its place is off by."""
    flat, change = weight.reshape(len(weight), -1), (found - weight).reshape(len(weight), -1)
    if gram is None:
        return float((change**2).sum() / max((flat**2).sum(), 1e-300))
    return float(((change @ gram) * change).sum() / max(((flat @ gram) * flat).sum(), 1e-300))

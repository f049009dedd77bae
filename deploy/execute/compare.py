"""Do two graphs compute the same? Answered by running both on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError, DataError, DeployError, ModelError
from deploy.execute.reference import Session, open_graph
from deploy.spec.tensors import TensorSpec

TOLERANCE = 1e-4
"""Largest relative difference by which a rewritten graph may differ: float32 sums in another order."""
HALF_TOLERANCE = 5e-3
"""The same where values are float16: ten times what rounding one of them costs (2^-11)."""
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_SIZES = (1, 8, 16, 32, 64, 128, 224, 256, 512)


def relative_error(reference: np.ndarray, other: np.ndarray) -> float:
    """Largest difference over the largest reference magnitude; infinite where NaN or shapes differ.

    Of integers and booleans, which mean classes more often than amounts, it is the share that differs.

    >>> relative_error(np.array([1.0, -4.0]), np.array([1.5, -4.0]))
    0.125
    >>> relative_error(np.array([1, 2]), np.array([1, 3]))
    0.5
    """
    if reference.shape != other.shape:
        return float("inf")
    if reference.size == 0:
        return 0.0
    if reference.dtype.kind not in "fc":
        return float(np.mean(reference != other))
    a, b = reference.astype(np.float64), other.astype(np.float64)
    odd = ~np.isfinite(a)
    if not np.array_equal(a[odd], b[odd], equal_nan=True) or not np.isfinite(b[~odd]).all():
        return float("inf")
    if odd.all():
        return 0.0
    scale = max(float(np.abs(a[~odd]).max()), 1e-30)
    return float(np.abs(a[~odd] - b[~odd]).max()) / scale


def largest_error(reference: Arrays, other: Arrays) -> float:
    """The largest relative error over all arrays of ``reference``."""
    return max((relative_error(reference[name], other[name]) for name in reference), default=0.0)


def tolerance(model: ir.Model) -> float:
    """How far apart two ways to compute this graph may come, relative to the largest magnitude."""
    half = any(out.dtype in _HALF for node in model.graph for out in node.outputs)
    return HALF_TOLERANCE if half else TOLERANCE


def random_feeds(
    inputs: Sequence[TensorSpec], seed: int, *, batch: int = 2, free: int = 32
) -> dict[str, np.ndarray]:
    """Standard normal floats, pixels where these are fed, small integers and booleans.

    Free dimensions take ``batch`` where they come first, else ``free``; those of one name are one size.
    """
    generator = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    feeds = {}
    for spec in inputs:
        shape = [
            d if isinstance(d, int) else sizes.setdefault(d, batch if axis == 0 else free)
            for axis, d in enumerate(spec.shape)
        ]
        kind = np.dtype(spec.dtype).kind
        if kind == "f":
            feeds[spec.name] = np.asarray(generator.standard_normal(shape), spec.dtype)
        elif spec.raw:
            low = np.iinfo(spec.dtype).min
            feeds[spec.name] = np.asarray(generator.integers(low, low + 256, shape), spec.dtype)
        elif kind == "b":
            feeds[spec.name] = np.asarray(generator.random(shape) < 0.5)
        else:
            feeds[spec.name] = np.asarray(generator.integers(0, 2, shape), spec.dtype)
    return feeds


def workable_feeds(session: Session, seed: int) -> dict[str, np.ndarray]:
    """Random feeds that the model accepts, found by trying sizes for its free dimensions.

    Raises ModelError where none of the usual sizes works.
    """
    last: DeployError | None = None
    for feeds in _candidates(session.inputs, seed):
        try:
            session.run(feeds)
        except (BackendError, DataError) as e:
            last = e
            continue
        return feeds
    free = [s for s in session.inputs if any(isinstance(d, str) for d in s.shape[1:])]
    if not free:
        raise ModelError(
            f"the model does not run on random numbers: {last}",
            hint="try it in ONNX Runtime itself; where an input carries sizes or positions that few numbers "
            "fit, make it a constant of the model",
        ) from last
    raise ModelError(
        f"the model runs with none of the usual sizes: {last}",
        hint=f"give its input shape, for example --shape {free[0].name}=1,3,224,224",
    ) from last


def _candidates(inputs: Sequence[TensorSpec], seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of all usual sizes, then with ones for all integers: lengths and divisors that may not be 0."""
    seen: set[tuple[tuple[int, ...], ...]] = set()
    for batch in (2, 1):
        for free in _SIZES[3:] + _SIZES[:3]:
            feeds = random_feeds(inputs, seed, batch=batch, free=free)
            shapes = tuple(a.shape for a in feeds.values())
            if shapes not in seen:
                seen.add(shapes)
                yield feeds
    feeds = random_feeds(inputs, seed)
    if any(a.dtype.kind in "ui" for a in feeds.values()):
        yield {n: np.ones_like(a) if a.dtype.kind in "ui" else a for n, a in feeds.items()}


def prover(
    feeds: Sequence[Mapping[str, np.ndarray]], threads: int = 1
) -> Callable[[ir.Model, ir.Model], str | None]:
    """A function that says how two graphs differ on ``feeds``, or None where they agree."""

    def prove(before: ir.Model, after: ir.Model) -> str | None:
        allowed = tolerance(before)
        # One after the other: a session holds all weights.
        with open_graph(before, optimised=False, threads=threads) as one:
            wanted = [one.run(sample) for sample in feeds]
        with open_graph(after, optimised=False, threads=threads) as other:
            found = [other.run(sample) for sample in feeds]
        for want, got in zip(wanted, found, strict=True):
            for name in want:
                if name not in got:
                    return f"output '{name}' is gone"
                error = relative_error(want[name], got[name])
                if error > allowed:
                    return f"output '{name}' differs by {error:.2g} of its magnitude"
        return None

    return prove

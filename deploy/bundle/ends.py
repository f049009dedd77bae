"""Proof of what lies beyond one inference of one size: states that are kept, and the sizes may be fed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from deploy.adapter.batching import fixed_batch, sample_count
from deploy.adapter.protocol import Arrays, Remembers, Runner
from deploy.execute.compare import largest_error
from deploy.spec.ends import Sizes, bounds_of
from deploy.spec.tensors import TensorSpec

_STEPS = 8
_MOST_NUMBERS = 2**22
"""Of an input: a graph of larger ones takes too long to run for a check."""


@dataclass(frozen=True)
class Stray:
    """How far an artifact is off, against what is allowed there."""

    where: str
    error: float
    allowed: float


def stored(samples: Arrays, states: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The samples with states as they are kept, in float16."""
    return {name: _stored(a) if name in states else a for name, a in samples.items()}


def kept(results: Arrays, states: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The results, in the same way."""
    return {name: _stored(a) if name in states.values() else a for name, a in results.items()}


def _stored(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # beyond float16 is infinite, as it is kept
        return array.astype(np.float16).astype(array.dtype)


def strays(
    literal: Runner, runner: Remembers, samples: Arrays, floor: float, factor: float, exact: float
) -> Iterator[Stray]:
    """The samples one after the other, each with what the one before left, in an artifact that keeps that and
    in a reference to which it is fed by hand.

    Allowed is ``factor`` times the noise, and ``exact``: ``floor`` for every inference so far, and what
    float16 between the inferences makes of the reference.
    """
    states = runner.states
    batch = fixed_batch([spec for spec in runner.inputs if spec.name not in states]) or 1
    fed = {name: array for name, array in samples.items() if name not in states}
    count = sample_count(fed)
    exactly = {spec.name: _zeros(spec) for spec in runner.inputs if spec.name in states}
    rounded = dict(exactly)
    runner.reset()
    for step in range(_STEPS):
        rows = (np.arange(batch) + step * batch) % count
        feeds = {name: array[rows] for name, array in fed.items()}
        want, half = literal.run({**feeds, **exactly}), literal.run({**feeds, **rounded})
        got = runner.step(feeds)
        exactly = {name: want[result] for name, result in states.items()}
        rounded = {name: _stored(half[result]) for name, result in states.items()}
        noise = largest_error(want, kept(half, states))
        where = f"inference {step + 1} of a sequence, after what those before it left"
        yield Stray(where, largest_error(want, got), factor * ((step + 1) * floor + noise) + exact)
    runner.reset()


def _zeros(spec: TensorSpec) -> np.ndarray:
    return np.zeros([size if isinstance(size, int) else 1 for size in spec.shape], spec.dtype)


def at_other_sizes(
    sizes: Mapping[str, Sizes], inputs: Sequence[TensorSpec], samples: Arrays
) -> Iterator[tuple[str, dict[str, np.ndarray] | None]]:
    """Feeds of the shapes that bound what may be fed, made of the samples by repeating and cutting them.

    Each with its shapes in words; None for the feeds of very large ones. Where samples are fed one at a time
    there are as many as there were.
    """
    count = sample_count(samples)
    for shapes in bounds_of(sizes):
        known: dict[str, int] = {}
        for spec in inputs:
            chosen = shapes.get(spec.name, ())
            known |= {d: n for d, n in zip(spec.shape, chosen, strict=False) if isinstance(d, str)}
        sized = {
            spec.name: tuple(known.get(size, 1) if isinstance(size, str) else size for size in spec.shape)
            for spec in inputs
        }
        words = ", ".join(f"{name} {list(shape)}" for name, shape in sized.items())
        if max(map(prod, sized.values())) > _MOST_NUMBERS:
            yield words, None
            continue
        feeds = {}
        for name, shape in sized.items():
            array = samples[name]
            wanted = (count, *shape[1:]) if shape[:1] == (1,) and len(array) == count else shape
            for axis, size in enumerate(wanted):
                array = np.take(array, np.arange(size) % array.shape[axis], axis)
            feeds[name] = array
        yield words, feeds

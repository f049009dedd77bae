"""What deploy.toml asks of an artifact's ends, held against the model before anything takes time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deploy.data.source import nearest
from deploy.errors import UsageError
from deploy.execute.compare import random_feeds
from deploy.spec.ends import Sizes, shapes_of, span
from deploy.spec.tensors import TensorSpec


def check_sizes(sizes: Mapping[str, Sizes], inputs: Sequence[TensorSpec]) -> None:
    """Raises UsageError for an input that is not there, and sizes that are not this one's."""
    known = {spec.name: spec for spec in inputs}
    free: dict[str, tuple[list[int], str]] = {}
    for name, said in sizes.items():
        _require_known(name, known, "[io] sizes", "input")
        spec, shapes = known[name], shapes_of(said)
        if len(shapes[0]) != len(spec.shape):
            raise UsageError(
                f"[io] sizes of '{name}': {len(shapes[0])} sizes, and the model takes {spec}",
                hint="one for each axis",
            )
        for axis, size in enumerate(spec.shape):
            found = _along(said, axis)
            if isinstance(size, int):
                if set(found) != {size}:
                    raise UsageError(
                        f"[io] sizes of '{name}': axis {axis} is {size} in the model, not "
                        + " or ".join(map(str, sorted(set(found)))),
                        hint="export the model with a free size there",
                    )
                continue
            before, where = free.setdefault(size, (found, f"'{name}', axis {axis}"))
            if before != found:
                raise UsageError(
                    f"[io] sizes: '{name}', axis {axis}, and {where}, are one size of the model, '{size}', "
                    "and are given different ones",
                    hint="give both the same",
                )


def _along(sizes: Sizes, axis: int) -> list[int]:
    """What is said of one axis: its size in each shape, or least, usual and greatest one."""
    spans = [span(size) for size in sizes if not isinstance(size, tuple)]
    return list(spans[axis]) if spans else [shape[axis] for shape in shapes_of(sizes)]


def usual_feeds(
    sizes: Mapping[str, Sizes], inputs: Sequence[TensorSpec], feeds: Mapping[str, np.ndarray], seed: int
) -> dict[str, np.ndarray]:
    """``feeds`` with random numbers of the usual sizes for the inputs that were given some, and for those
    that share a free size with these."""
    known: dict[str, int] = {}
    for spec in inputs:
        if spec.name in sizes:
            usual = shapes_of(sizes[spec.name])[0]
            known |= {d: n for d, n in zip(spec.shape, usual, strict=True) if isinstance(d, str)}
    found = dict(feeds)
    for spec in inputs:
        if any(size in known for size in spec.shape):
            shape = tuple(
                have if isinstance(size, int) else known.get(size, have)
                for size, have in zip(spec.shape, feeds[spec.name].shape, strict=True)
            )
            found |= random_feeds([spec.model_copy(update={"shape": shape})], seed)
    return found


def check_states(
    states: Mapping[str, str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raises UsageError for a state that is not there, or changes."""
    given, made = ({spec.name: spec for spec in specs} for specs in (inputs, outputs))
    for name, result in states.items():
        _require_known(name, given, "[io] states", "input")
        _require_known(result, made, "[io] states", "output")
        before, after = given[name], made[result]
        if before.dtype != after.dtype or not _may_be_equal(before.shape, after.shape):
            raise UsageError(
                f"[io] states: {before} becomes {after}: a state keeps its type and shape",
                hint="name the output that is fed as this input the next time",
            )
        if list(states.values()).count(result) > 1:
            raise UsageError(
                f"[io] states: the output '{result}' is given to two inputs", hint="one state for each output"
            )


def _may_be_equal(one: tuple[int | str, ...], other: tuple[int | str, ...]) -> bool:
    """Whether two shapes are one: a free size may be any."""
    return len(one) == len(other) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in zip(one, other, strict=True)
    )


def check_classes(classes: Sequence[str], outputs: Sequence[TensorSpec]) -> None:
    """Raises UsageError where an artifact that is to name the class could not."""
    if not classes:
        raise UsageError(
            "[io] classifier: nobody gave the names of the classes",
            hint='one in each line of a file: [data] classes = "labels.txt"',
        )
    twice = next((name for name in classes if list(classes).count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"[io] classifier: two classes are called '{twice}'",
            hint="probabilities are given by name: let every class have its own",
        )
    if not any(o.dtype.startswith("float") and o.shape and o.shape[-1] == len(classes) for o in outputs):
        raise UsageError(
            f"[io] classifier: {len(classes)} class names, and no output has as many scores: "
            + ", ".join(map(str, outputs)),
            hint="one name for each class, in the order of their numbers",
        )


def _require_known(name: str, known: Mapping[str, TensorSpec], where: str, what: str) -> None:
    if name not in known:
        raise UsageError(
            f"{where}: the model has no {what} '{name}'",
            hint=f"{nearest(name, list(known))}its {what}s: {', '.join(known)}",
        )

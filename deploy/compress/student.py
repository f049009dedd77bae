"""The step ``shrink``: a thinner copy of a graph, with weights of its own if that is wanted.

    Conv 3 > 64, Conv 64 > 128, Gemm 128 > 10   width 0.5:   Conv 3 > 32, Conv 32 > 64, Gemm 64 > 10

Every family of channels that can go keeps its share, rounded to what the target computes well. ``fresh``
weights are normal with a variance of 2 / fan-in (He et al., arXiv:1502.01852); norms begin as identities,
biases at zero.
"""

from __future__ import annotations

import math
import zlib
from fnmatch import fnmatchcase

import numpy as np
import onnx_ir as ir

from deploy.compress.ground import Ground, StepResult
from deploy.compress.prune.choose import matching, ordered, step_of, widths
from deploy.compress.prune.criteria import Scores, drawn, scaled, weighed
from deploy.compress.step import Step
from deploy.errors import UsageError
from deploy.execute.module import weight_names
from deploy.graph.cost import macs, parameters
from deploy.graph.edit import constant
from deploy.graph.groups import Family, Groups, find_groups
from deploy.graph.shrink import shrink
from deploy.spec.compression import Shrink

_NORMS = ("BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization")
_REASONS = 4


def check(step: Shrink, model: ir.Model, ground: Ground) -> None:
    """Raises UsageError for a pattern that names no node, and where no channels can go, saying why."""
    _groups(step, model, ground)


def _groups(step: Shrink, model: ir.Model, ground: Ground) -> Groups:
    """What can go. Raises what `check` raises."""
    matching(model, step.widths, "shrink: widths")
    groups = find_groups(model, matching(model, step.protect, "shrink: protect"))
    if not _removed(step, groups, drawn(groups, 0), ground)[0]:
        reasons = [f"{name}: {why}" for name, why in groups.left.items()][:_REASONS]
        raise UsageError(
            "shrink: no channels of this model can go",
            hint="; ".join(reasons) or "its groups of channels are too narrow",
        )
    return groups


def run(step: Shrink, model: ir.Model, ground: Ground) -> StepResult:
    """The student. Raises what `check` raises."""
    groups = _groups(step, model, ground)
    removed, rows = _removed(step, groups, _scores(step, model, groups, ground.seed), ground)
    thin = shrink(model, groups, removed)
    if step.fresh:
        thin = fresh(thin, ground.seed)
    told = f"{parameters(thin) / max(parameters(model), 1):.0%} of the parameters"
    own, whole = macs(thin), macs(model)
    if own is not None and whole:
        told += f" and {own / whole:.0%} of the MACs"
    return StepResult(thin, f"{told} left{', all weights drawn anew' if step.fresh else ''}", rows)


def _scores(step: Shrink, model: ir.Model, groups: Groups, seed: int) -> Scores:
    match step.criterion:
        case "batch_norm":
            return scaled(model, groups)[0]
        case "random":
            return drawn(groups, seed)
    return weighed(model, groups, 1 if step.criterion == "l1" else 2)


def _removed(
    step: Shrink, groups: Groups, scores: Scores, ground: Ground
) -> tuple[list[int], tuple[Step, ...]]:
    """The atoms that go, the least of each family, and what is to be said of the families."""
    align, strict = (ground.align, False) if step.align is None else (step.align, True)
    gone: list[int] = []
    rows = []
    for family in groups.families:
        count = len(family.atoms)
        kept = _kept(count, _share(step, family), step_of(family, align, strict=strict))
        gone += ordered(family, scores)[: count - kept]
        rows.append(Step(family.name, f"{kept} of {count} kept", kept < count))
    return gone, tuple(rows)


def _share(step: Shrink, family: Family) -> float:
    """That of the first pattern that names one of the family's makers, else that of all."""
    named = (
        width
        for pattern, width in step.widths.items()
        if any(fnmatchcase(maker, pattern) for maker in family.makes)
    )
    return next(named, step.width)


def _kept(count: int, share: float, step: int) -> int:
    """The width that is allowed and nearest to the share, the smaller one of two.

    >>> _kept(64, 0.5, 16), _kept(10, 0.5, 1), _kept(1, 0.5, 1), _kept(64, 1.0, 16)
    (32, 5, 1, 64)
    """
    if share == 1:
        return count
    return min(widths(count, step, 1), key=lambda kept: (abs(kept - share * count), kept))


def fresh(model: ir.Model, seed: int) -> ir.Model:
    """A copy with all that is trained drawn anew; constants of formulas stay."""
    copy = model.clone()
    trained = weight_names(copy)
    found: dict[str, np.ndarray] = {}
    for node in copy.graph:
        for index, value in enumerate(node.inputs):
            array = constant(value)
            if value is None or array is None or value.name is None or value.name in found:
                continue
            if node.op_type == "BatchNormalization" and index > 2:
                found[value.name] = np.full_like(array, index == 4)
            elif value.name in trained:
                rng = np.random.default_rng([seed, zlib.crc32(value.name.encode())])
                new = _drawn(node, index, array, rng)
                if new is not None:
                    found[value.name] = new
    for name, array in found.items():
        value = copy.graph.initializers[name]
        value.const_value = ir.tensor(np.ascontiguousarray(array), dtype=value.dtype, name=name)
    return copy


def _drawn(node: ir.Node, index: int, array: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    """What stands for a constant in the beginning; None where it stays."""
    if node.op_type in _NORMS or (array.ndim < 2 and node.op_type in ("Mul", "Add", "Sub", "Div")):
        return np.full_like(array, node.op_type in ("Mul", "Div") or (node.op_type in _NORMS and index == 1))
    if array.ndim < 2 or array.size == max(array.shape):
        return np.zeros_like(array) if array.ndim < 2 and node.op_type != "PRelu" else None
    fan = _fan_in(node, array.shape)
    return (rng.standard_normal(array.shape) * math.sqrt(2 / fan)).astype(array.dtype)


def _fan_in(node: ir.Node, shape: tuple[int, ...]) -> int:
    """How many products make one number."""
    match node.op_type:
        case "MatMul":
            return shape[-2]
        case "Gemm":
            return shape[1 if node.attributes.get_int("transB", 0) else 0]
        case "ConvTranspose":
            return shape[0] * math.prod(shape[2:]) // node.attributes.get_int("group", 1)
        case "Conv":
            return math.prod(shape[1:])
    return shape[-1]

"""How a list of rewriting steps is applied: every step that changed something is proved, or taken back.

`clean` and `fuse` are lists of steps; this is what runs them. The proof comes from the caller, because
running a graph is not the business of this package.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from deploy.graph.edit import weight_bytes
from deploy.graph.fold import SMALL
from deploy.graph.shapes import infer

logger = logging.getLogger(__name__)

Prove = Callable[[ir.Model, ir.Model], str | None]
"""None if both models give equal outputs on random inputs, else what differs."""

Steps = Mapping[str, Callable[[ir.Model], int]]
"""In order, under the names used in reports: each changes the model in place and returns how often."""

_ROUNDS = 5
"""One step makes room for another; nothing real needs more."""


@dataclass(frozen=True)
class Rewrite:
    """What one step did. ``kept`` is False, and ``why`` says the reason, where it was taken back."""

    step: str
    nodes_before: int
    nodes_after: int
    bytes_before: int
    bytes_after: int
    kept: bool = True
    why: str = ""


@dataclass(frozen=True)
class Rewritten:
    """The new model, all shapes inferred, and the steps that changed something, in order."""

    model: ir.Model
    rewrites: tuple[Rewrite, ...]


def rewrite(model: ir.Model, steps: Steps, prove: Prove, *, growth: int = 0) -> Rewritten:
    """Apply ``steps`` in rounds until none changes anything. ``model`` itself stays as it is.

    The whole is proved once. Only where that fails, or where a step made the constants grow by more than the
    nodes it saved are worth and ``growth`` bytes, everything is done again with a proof after each step; a
    step that fails is taken back, warned about, and not tried again.
    """
    model = infer(model.clone())  # every free dimension has a name now, for `prove` too
    result, rewrites = _together(model, steps)
    if not rewrites:
        return Rewritten(result, ())
    grown = any(_growth(r, growth) for r in rewrites)
    why = None if grown else _difference(model, result, prove)
    if grown or why:
        logger.info("proving step by step: %s", why or "the model grew")
        result, rewrites = _one_by_one(model, steps, prove, growth)
    return Rewritten(result, tuple(rewrites))


def _together(model: ir.Model, steps: Steps) -> tuple[ir.Model, list[Rewrite]]:
    result = model.clone()
    rewrites: list[Rewrite] = []
    size = weight_bytes(result)
    for _ in range(_ROUNDS):
        known = len(rewrites)
        for name in steps:
            done = _apply(result, name, steps, size)
            if done is not None:
                rewrites.append(done)
                size = done.bytes_after
        if len(rewrites) == known:
            break
        infer(result)
    return result, rewrites


def _one_by_one(model: ir.Model, steps: Steps, prove: Prove, growth: int) -> tuple[ir.Model, list[Rewrite]]:
    result = model.clone()
    rewrites: list[Rewrite] = []
    refused: set[str] = set()
    size = weight_bytes(result)
    for _ in range(_ROUNDS):
        changed = False
        for name in steps:
            if name in refused:
                continue
            candidate = result.clone()
            done = _apply(candidate, name, steps, size)
            if done is None:
                continue
            why = _growth(done, growth) or _difference(result, candidate, prove)
            if why:
                logger.warning("%s: taken back, %s", name, why)
                refused.add(name)
                done = replace(done, kept=False, why=why)
            else:
                result, size, changed = infer(candidate), done.bytes_after, True
            rewrites.append(done)
        if not changed:
            break
    return result, rewrites


def _apply(model: ir.Model, name: str, steps: Steps, size: int) -> Rewrite | None:
    """Run one step and sweep up what it left unused. ``size`` is the `weight_bytes` before."""
    nodes = len(model.graph)
    if not steps[name](model):
        return None
    passes.RemoveUnusedNodesPass()(model)
    return Rewrite(name, nodes, len(model.graph), size, weight_bytes(model))


def _growth(done: Rewrite, free: int) -> str:
    allowed = free + SMALL * max(0, done.nodes_before - done.nodes_after)
    grown = done.bytes_after - done.bytes_before
    return f"the constants grew by {grown} bytes" if grown > allowed else ""


def _difference(before: ir.Model, after: ir.Model, prove: Prove) -> str:
    """Empty if the models have the same signature and are proved equal."""
    for kind, old, new in (
        ("inputs", before.graph.inputs, after.graph.inputs),
        ("outputs", before.graph.outputs, after.graph.outputs),
    ):
        if [(v.name, v.dtype) for v in old] != [(v.name, v.dtype) for v in new]:
            return f"the {kind} changed from {[v.name for v in old]} to {[v.name for v in new]}"
    return prove(before, after) or ""

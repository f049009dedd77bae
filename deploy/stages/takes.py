"""Which runtimes take a model, node by node, before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.cache import Cache
from deploy.errors import ToolchainError, UnsupportedError
from deploy.spec.artifact import Verdict
from deploy.stages import steps
from deploy.stages.legalize import legalize
from deploy.stages.record import Record
from deploy.stages.request import Request
from deploy.stages.target import Target, find_target, judged


@dataclass(frozen=True)
class RuntimeTakes:
    """What one runtime says, under the rules of a target, of the nodes by name."""

    runtime: str
    target: str
    verdicts: dict[str, Verdict]

    def count(self, support: str) -> int:
        """How many nodes have that verdict."""
        return sum(verdict.support == support for verdict in self.verdicts.values())


@dataclass(frozen=True)
class Takes:
    """``nodes`` are (name, operation) in the order in which they run, and behind them what is rewritten for
    single runtimes; ``notes`` say which runtimes could not be asked, and why."""

    nodes: tuple[tuple[str, str], ...]
    runtimes: tuple[RuntimeTakes, ...]
    notes: tuple[str, ...]


def takes(request: Request, places: Sequence[tuple[str, str | None]], record: Record, cache: Cache) -> Takes:
    """The verdicts of the runtimes of ``places``: (target, its runtime or all of them).

    Raises what a build raises until its model is cleaned, UsageError for an unknown target.
    """
    notes: list[str] = []
    targets: list[Target] = []
    for name, only in places:
        try:
            targets.append(find_target(name, only))
        except ToolchainError as e:
            notes.append(f"{only or name} is not asked: {e.hint}")
    prepared = steps.clean(steps.read_source(request, cache, record), request, cache, record)
    nodes = {node.name or "": node.op_type for node in prepared.fused.graph}
    found = []
    for target in targets:
        own = legalize(target, prepared, request.threads, cache, record)
        for route in target.routes:
            try:
                verdicts = judged(route, own)
            except UnsupportedError as e:
                notes.append(f"{route.runtime.name}: {e.message}; {e.hint}")
                continue
            nodes |= {v.node: v.op for v in verdicts if v.node not in nodes}
            found.append(RuntimeTakes(route.runtime.name, target.name, {v.node: v for v in verdicts}))
    return Takes(tuple(nodes.items()), tuple(found), tuple(notes))

"""The graph that each runtime compiles: the fused one, or what the rules in its profile make of that.

    fuse -> for each list of rules: rewrite, proved -> calibrate -> ...

Runtimes whose rules find nothing share the fused graph. A value keeps its name through every rule, and new
ones are called after the node that they were written out of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx_ir as ir

from deploy.cache import Cache
from deploy.execute.compare import prover
from deploy.frontend.onnx_file import write
from deploy.graph.rules import apply_rules, rules_for
from deploy.spec.document import Frozen, parse, render
from deploy.spec.unit import Rewriting
from deploy.stages.prepare import EMBEDDED, FloatGraph, Prepared, other_feeds, rolled_back
from deploy.stages.record import Record
from deploy.stages.target import Target

_GRAPH, _FACTS = "graph.onnx", "legalized.json"


class Legalized(Frozen):
    """What came of it; it lies in the cache beside the graph, which is only there where something changed."""

    sha256: str | None
    nodes: int = 0
    notes: tuple[str, ...] = ()


def legalize(target: Target, prepared: Prepared, threads: int, cache: Cache, record: Record) -> Prepared:
    """``prepared`` with the graphs that the target's runtimes want for themselves.

    What came quantized is final: a rule would take away the values that its parameters are of.
    """
    lists = dict.fromkeys(route.runtime.rewrites for route in target.routes)
    wanted = {names: rules for names in lists if (rules := rules_for(prepared.fused, names))}
    if not wanted or prepared.facts.imported:
        return prepared
    made: dict[tuple[Rewriting, ...], FloatGraph] = {}
    with record.stage("legalize") as stage:
        stage.cached = True
        said = []
        for rules in dict.fromkeys(wanted.values()):
            key = cache.key("legalize", graph=prepared.facts.fused_sha256, rules=rules)
            folder, cached = cache.fetch(key, partial(_write, prepared, rules, threads))
            stage.cached &= cached
            facts = parse(Legalized, (folder / _FACTS).read_text(), origin=folder / _FACTS)
            for note in facts.notes:
                record.progress.warn(note)
            if facts.sha256 is not None:
                path = folder / _GRAPH
                made[rules] = FloatGraph(ir.load(path), facts.sha256, path)
                names = [r.runtime.name for r in target.routes if wanted.get(r.runtime.rewrites) == rules]
                said.append(f"{', '.join(names)}: {len(prepared.fused.graph)} nodes became {facts.nodes}")
        stage.outcome = "; ".join(said) or "nothing to rewrite"
    return replace(prepared, own={names: made[rules] for names, rules in wanted.items() if rules in made})


def _write(prepared: Prepared, rules: Sequence[Rewriting], threads: int, folder: Path) -> None:
    feeds = prepared.trial
    other = other_feeds(prepared.fused, prepared.facts.inputs, feeds, 1, threads)
    found = apply_rules(prepared.fused, rules, prover([feeds, other], threads))
    facts = Legalized(sha256=None, notes=tuple(rolled_back(found)))
    if any(rewrite.kept for rewrite in found.rewrites):
        sha256 = write(found.model, folder / _GRAPH, embed=EMBEDDED)
        facts = facts.model_copy(update={"sha256": sha256, "nodes": len(found.model.graph)})
    (folder / _FACTS).write_text(render(facts))

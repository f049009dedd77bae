"""What is said where a runtime refuses nodes of a model: all of them, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from deploy.errors import UnsupportedError
from deploy.graph.origin import origin
from deploy.spec.artifact import Verdict


def refused(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those of the ``verdicts`` that say no; what is unknown is none of them."""
    return [verdict for verdict in verdicts if verdict.support == "unsupported"]


def refusal(
    who: str, verdicts: Sequence[Verdict], hint: str = "replace these operations in the model"
) -> UnsupportedError | None:
    """The error that lists every node which ``who`` refuses, of the model that has these ``verdicts``; None
    where nothing is refused."""
    nodes = refused(verdicts)
    if not nodes:
        return None
    listed = "".join(f"\n  {v.op} '{v.node}': {v.reason}" for v in nodes)
    return UnsupportedError(f"{who} cannot run {len(nodes)} of {len(verdicts)} nodes:{listed}", hint=hint)


def of_origins(verdicts: Sequence[Verdict], graph: ir.Model) -> list[Verdict]:
    """Verdicts of a runtime's own graph, told of the nodes that its user knows: each once, by its worst."""
    nodes = {node.name or "": node for node in graph.graph}
    found: dict[str, Verdict] = {}
    for verdict in verdicts:
        op, name = origin(nodes[verdict.node]) if verdict.node in nodes else (verdict.op, verdict.node)
        told = verdict
        if name != verdict.node:
            reason = f"in {verdict.op} '{verdict.node}': {verdict.reason}" if verdict.reason else ""
            told = verdict.model_copy(update={"node": name, "op": op, "reason": reason})
        if name not in found or _BAD[told.support] > _BAD[found[name].support]:
            found[name] = told
    return list(found.values())


_BAD = {"supported": 0, "unknown": 1, "unsupported": 2}

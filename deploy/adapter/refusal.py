"""What is said where a runtime refuses nodes of a model: all of them, each with the reason."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.errors import UnsupportedError
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

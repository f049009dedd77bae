"""Why each block is computed as it is: what it takes in either form, and what spoke against the other.

Milliseconds are those of the cost model (`deploy/predict`), so that forms which were never built can be told
apart; what the runtime's profiler took of the artifact stands beside them, in `BlockTime`.
"""

from __future__ import annotations

from deploy.spec.document import Frozen
from deploy.spec.tensors import Precision


class Explanation(Frozen):
    """One block; figures that are not known are None.

    ``float_ms`` and ``integer_ms`` are what its own kernels take in either form, ``changes_ms`` what the
    changes of form at its borders take as things are. ``instead_ms`` is what the whole would take more, were
    this block alone in the other form, borders counted; below zero: less. ``noise`` is its share (0 to 1) of
    the noise that all blocks make together where all that can be are integers. ``points``: the same share of
    a measured drop, in the metric's unit: for a block in integers of the artifact's drop, among those that
    are, for a float block of the drop with the most integers that was scored.
    """

    id: str
    precision: Precision
    float_ms: float | None = None
    integer_ms: float | None = None
    changes_ms: float | None = None
    instead_ms: float | None = None
    sqnr_db: float | None = None
    noise: float | None = None
    points: float | None = None
    reason: str = ""


class Explained(Frozen):
    """The blocks in the order of the graph. ``basis`` says where the milliseconds are from, ``why_not`` why
    there are none. ``predicted_ms`` is one inference of the artifact."""

    basis: str = ""
    why_not: str = ""
    predicted_ms: float | None = None
    blocks: tuple[Explanation, ...] = ()

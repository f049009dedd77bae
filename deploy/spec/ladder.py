"""The accuracy ladder: the names of its rungs, and what each won and cost in a build."""

from __future__ import annotations

from typing import Literal

from deploy.spec.document import Frozen

RungName = Literal["ranges", "equalize", "smooth", "correct", "split", "round", "train", "wide"]
"""In the order in which they are climbed, the cheapest first; ``wide`` is mixed precision already, block by
block, and comes before float blocks."""

CHEAP: tuple[RungName, ...] = ("ranges", "equalize", "smooth", "correct", "split")
"""Those that take a few passes over the calibration samples, and no training."""
ALL: tuple[RungName, ...] = (*CHEAP, "round", "train")


class RungRecord(Frozen):
    """What a rung did to the graph of one runtime, all blocks quantized that can be.

    ``places`` it changed; ``gain_db`` is by how much the noise at the outputs fell, and it was ``kept`` if
    that was enough. ``drop`` is what was measured with it on the data that choose, ``seconds`` what it took,
    trying it included. ``why`` says why it changed nothing.
    """

    runtime: str
    name: RungName
    kept: bool
    places: int = 0
    gain_db: float = 0.0
    drop: float | None = None
    seconds: float = 0.0
    why: str = ""

"""What each step of a recipe won and cost: the rows of the ablation table, and what a lock keeps of them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deploy.spec.document import Frozen
from deploy.spec.recipe import Step


class Figures(Frozen):
    """A float graph in figures. ``drop`` is against the graph before the recipe, positive where this one is
    worse, ``interval`` its paired 95 % interval, all in the metric's unit; None where there are no samples to
    judge by. ``weight_bytes`` are those of its constants, ``macs`` those of one sample, None where a size is
    free. ``latency_ms`` is one inference, None where nothing is known of it."""

    score: float | None = None
    per_class: dict[str, float] = {}
    drop: float | None = None
    interval: tuple[float, float] | None = None
    weight_bytes: int
    macs: int | None
    parameters: int
    latency_ms: float | None = None


class PlaceRecord(Frozen):
    """What a step did in one place. ``before`` and ``after`` are the error there, as a share of the signal's
    power, ``rise`` what it added to that at the network's outputs; None where nothing was measured."""

    place: str
    what: str
    kept: bool = True
    before: float | None = None
    after: float | None = None
    rise: float | None = None


class StepRecord(Frozen):
    """One try of a step. ``step`` is as it ran: in the try number ``softened`` after the first, with so large
    a ``share`` of its goal, or 2:4 sparsity without some of its layers. ``number`` is its place in the
    recipe, from 1. ``allowed`` is what it may cost, None where nobody asks; ``undone`` says why the graph was
    not kept, empty if it was."""

    number: int = Field(ge=1)
    step: Step
    softened: int = Field(default=0, ge=0)
    share: float = Field(default=1.0, gt=0, le=1)
    figures: Figures
    allowed: float | None = None
    undone: str = ""
    told: str = ""
    places: tuple[PlaceRecord, ...] = ()
    shared: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def kept(self) -> bool:
        return not self.undone


class Ablation(Frozen):
    """``before`` is the graph before the recipe, ``steps`` every try in order. ``role`` and ``samples`` say
    on which data they were judged, ``basis`` where the milliseconds are from. ``notes`` are what was left out
    of a preset, and why."""

    metric: str = ""
    unit: str = ""
    higher_is_better: bool = True
    role: Literal["", "validation", "calibration", "random"] = ""
    samples: int = 0
    basis: str = ""
    before: Figures
    steps: tuple[StepRecord, ...]
    notes: tuple[str, ...] = ()

    @property
    def lasting(self) -> Ablation:
        """What equal builds have in common: the steps that were kept and what they left, without times,
        places and words, in which there may be times."""
        return self.model_copy(
            update={
                "basis": "",
                "before": _timeless(self.before),
                "steps": tuple(
                    record.model_copy(
                        update={
                            "figures": _timeless(record.figures),
                            "allowed": None,
                            "told": "",
                            "places": (),
                            "seconds": 0.0,
                        }
                    )
                    for record in self.steps
                    if record.kept
                ),
            }
        )


def _timeless(figures: Figures) -> Figures:
    return figures.model_copy(update={"latency_ms": None, "per_class": {}})


class StepChoice(Frozen):
    """What became of a step of the recipe: in which try after the first it held, with what share of its goal
    or without which layers, and whether it was kept."""

    step: str
    softened: int = Field(default=0, ge=0)
    share: float = Field(default=1.0, gt=0, le=1)
    protect: tuple[str, ...] = ()
    kept: bool = True

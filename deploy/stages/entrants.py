"""The forms of the model that may ship, and the race between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from deploy.adapter.protocol import Variant
from deploy.measure.latency import Timing
from deploy.quantize.candidate import Subject
from deploy.quantize.decide import Decided
from deploy.spec.measurement import Attempt
from deploy.spec.tensors import Precision
from deploy.stages.baseline import Contender
from deploy.stages.settings import reopened

GIVEN = "as given"
"""The name of the baseline among the contenders."""
_FLOATS: Mapping[str, Precision] = {"float32": "float", "bfloat16": "bf16"}


@dataclass(frozen=True)
class Entrant:
    """A form of the model that may ship: what was decided for one runtime.

    ``mixed``: by the costs of its blocks, else by accuracy alone. ``accepted``: eval data were asked.
    ``runner_up``: tried on the way to what was decided, and timed with it. ``stored``: beside that, in a form
    of its weights alone.
    """

    decided: Decided
    mixed: bool = False
    accepted: bool = False
    runner_up: bool = False
    stored: bool = False

    @property
    def subject(self) -> Subject:
        return self.decided.subject

    @property
    def runtime(self) -> str:
        return self.subject.runtime.name

    @property
    def first(self) -> bool:
        """Whether it is what accuracy alone decided, from which the search may go on."""
        return not (self.mixed or self.runner_up or self.stored)

    @property
    def integer(self) -> bool:
        return self.decided.candidate.plan.quantized

    @property
    def precision(self) -> Precision:
        if self.subject.form is not None:
            return self.subject.form
        return self.subject.integer_precision if self.integer else self.subject.float_precision

    @property
    def name(self) -> str:
        if self.runner_up:
            blocks = self.decided.candidate.plan.blocks
            count = sum(block.precision == self.subject.integer_precision for block in blocks)
            word = "mixed, " if self.mixed else ""
            return f"{self.runtime} {word}{self.precision} in {count} of {len(blocks)} blocks"
        return f"{self.runtime} {'mixed' if self.mixed else self.precision}"

    def contender(self) -> Contender:
        return Contender(self.subject.backend, self.decided.candidate.artifact, self.subject.options)


@dataclass(frozen=True)
class Race:
    """Who may win, preferred runtimes first; the float builds that INT8 has to beat; times where there are.

    ``times`` holds the baseline under `GIVEN` and everybody else by name, ``memory`` the peak bytes of those
    who were weighed, ``energy`` joules of one inference by round, of the baseline and those who were metered.
    ``refused`` are forms that eval data did not allow, with what they said of them; ``tuned`` are the
    settings that were tried of the winner.
    """

    entrants: tuple[Entrant, ...]
    floats: tuple[Entrant, ...] = ()
    times: Mapping[str, Timing] | None = None
    refused: tuple[Entrant, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    energy: Mapping[str, np.ndarray] = field(default_factory=dict)
    tuned: tuple[Attempt, ...] = ()

    def without(self, runtime: str) -> Race:
        """The race as if that runtime had not been there."""
        return replace(
            self,
            entrants=tuple(e for e in self.entrants if e.runtime != runtime),
            floats=tuple(e for e in self.floats if e.runtime != runtime),
        )


def under(entrant: Entrant, variant: Variant) -> Entrant:
    """The entrant opened with other settings. Its file stays, its plan says what floats are computed in."""
    decided, subject = entrant.decided, entrant.subject
    candidate = decided.candidate
    if variant.around is not None:
        was, becomes = subject.float_precision, _FLOATS[variant.around]
        blocks = tuple(
            b.model_copy(update={"precision": becomes}) if b.precision == was else b
            for b in candidate.plan.blocks
        )
        candidate = replace(candidate, plan=candidate.plan.model_copy(update={"blocks": blocks}))
    return replace(entrant, decided=replace(decided, subject=reopened(subject, variant), candidate=candidate))

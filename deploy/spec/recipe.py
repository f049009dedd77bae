"""The recipe: the ordered compression steps that a build applies to the graph before quantization."""

from __future__ import annotations

from pydantic import field_validator

from deploy.spec.document import Frozen

STEPS: tuple[str, ...] = ()
"""Names of the steps that this version can run."""


class Step(Frozen):
    """One compression step: its own settings and, by its type, its own dispatch key."""

    step: str

    @field_validator("step")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STEPS:
            raise ValueError(f"no step is called '{name}'; this version knows {', '.join(STEPS) or 'none'}")
        return name


class Recipe(Frozen):
    """Steps in the order in which they run. Empty: the graph is quantized as it came."""

    steps: tuple[Step, ...] = ()

"""The recipe: the ordered compression steps that a build applies to the graph before quantization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

from deploy.spec.document import Frozen
from deploy.spec.finetune import Finetune

STEPS: Mapping[str, type[Frozen]] = {"finetune": Finetune}
"""The steps that this version can run, by their ``type``."""


def _known(step: object) -> object:
    """A step of an unknown type is refused by name; the union alone would only list what it expected."""
    if isinstance(step, Mapping):
        name = step.get("type")
        known = ", ".join(STEPS)
        if name is None:
            raise ValueError(f"a step needs a type; this version knows {known}")
        if name not in STEPS:
            raise ValueError(f"no step is called '{name}'; this version knows {known}")
    return step


Step = Annotated[Finetune, BeforeValidator(_known)]
"""One step: its own settings and, by its ``type``, its own dispatch key. Once there are several this is their
union with ``Field(discriminator="type")``."""


class Recipe(Frozen):
    """Steps in the order in which they run. Empty: the graph is quantized as it came."""

    steps: tuple[Step, ...] = ()

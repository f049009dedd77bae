"""The recipe: the ordered compression steps that a build applies to the graph before quantization."""

from __future__ import annotations

from deploy.spec.document import Frozen


class Step(Frozen):
    """One compression step: its own settings and, by its type, its own dispatch key."""

    step: str


class Recipe(Frozen):
    """Steps in the order in which they run. Empty: the graph is quantized as it came."""

    steps: tuple[Step, ...] = ()

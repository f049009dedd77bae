"""The recipe: the ordered compression steps that a build applies to the graph before quantization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from deploy.errors import UsageError
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.document import Given
from deploy.spec.finetune import Finetune

STEPS: Mapping[str, type[Given]] = {
    "prune": Prune,
    "shrink": Shrink,
    "sparsify": Sparsify,
    "lowrank": LowRank,
    "cluster": Cluster,
    "finetune": Finetune,
}
"""The steps that this version can run, by name."""


def _known(step: object) -> object:
    """A step of an unknown name is refused by it; the union alone would only list what it expected."""
    if isinstance(step, Mapping):
        name = step.get("step")
        known = ", ".join(STEPS)
        if name is None and "preset" in step:
            raise ValueError(f'a preset is no step; name it under [build], recipe = "{step["preset"]}"')
        if name is None:
            raise ValueError(f"say which step it is, step = '...'; this version knows {known}")
        if name not in STEPS:
            raise ValueError(f"no step is called '{name}'; this version knows {known}")
    return step


Step = Annotated[
    Annotated[Prune | Shrink | Sparsify | LowRank | Cluster | Finetune, Field(discriminator="step")],
    BeforeValidator(_known),
]
"""One step: its own settings and, by ``step``, its own dispatch key."""

_UNDONE: Mapping[tuple[str, str], str] = {
    ("cluster", "prune"): "channels that are removed change the values that weights share",
    ("cluster", "shrink"): "channels that are removed change the values that weights share",
    ("cluster", "lowrank"): "factors of a shared weight share no values",
    ("cluster", "sparsify"): "zeros and refitted weights share no values",
    ("cluster", "finetune"): "training moves weights off the values that they share",
    ("sparsify", "prune"): "channels that are removed break the pattern of zeros",
    ("sparsify", "shrink"): "channels that are removed break the pattern of zeros",
    ("sparsify", "lowrank"): "factors of a sparse weight are dense",
    ("sparsify", "sparsify"): "the second would choose its zeros anew",
    ("cluster", "cluster"): "the second would choose its values anew",
}
"""(earlier, later) step -> why the later one undoes the earlier."""


def check_order(steps: Sequence[Step]) -> None:
    """Raises ValueError where a step undoes what an earlier one did."""
    for at, later in enumerate(steps):
        for earlier in steps[:at]:
            why = _UNDONE.get((earlier.step, later.step))
            if why is not None:
                number = steps.index(earlier) + 1
                raise ValueError(
                    f"step {at + 1} ({later.step}) undoes step {number} ({earlier.step}): {why}; "
                    f"put {later.step} first"
                    if earlier.step != later.step
                    else f"step {at + 1} ({later.step}) undoes step {number}: {why}; leave one of them out"
                )


def _in_order(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    check_order(steps)
    return steps


Steps = Annotated[tuple[Step, ...], AfterValidator(_in_order)]


Preset = Literal["fast", "balanced", "smallest"]
"""Recipes by name: ``fast`` trains nothing; ``balanced`` takes away what a short training makes up for;
``smallest`` takes away as much as it can. Which steps that means depends on model, data and target."""


class Recipe(Given):
    """Steps in the order in which they run. Empty: the graph is quantized as it came. A ``preset`` becomes
    steps as soon as model, data and target are known; ``notes`` say what it leaves out, and why."""

    preset: Preset | None = None
    steps: Steps = ()
    notes: tuple[str, ...] = ()


def recipe_of(given: Recipe | Preset | Sequence[Step]) -> Recipe:
    """A recipe from its name or its steps. Raises UsageError for a name that there is not."""
    if isinstance(given, Recipe):
        return given
    if isinstance(given, str):
        if given not in get_args(Preset):
            raise UsageError(f"no recipe is called '{given}'", hint=f"one of {', '.join(get_args(Preset))}")
        return Recipe(preset=given)
    return Recipe(steps=tuple(given))

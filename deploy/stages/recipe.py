"""A recipe made ready before any step of it runs: a preset becomes steps, and what cannot work is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from deploy.compress.ground import Ground
from deploy.errors import UsageError, missing_extra
from deploy.progress import Progress
from deploy.spec.compression import LowRank, Prune
from deploy.spec.finetune import Finetune
from deploy.spec.manifest import Lock
from deploy.spec.recipe import Recipe, Step
from deploy.stages import shared_weights
from deploy.stages.costs import costs_of
from deploy.stages.ground import checker, ground_for, sparsity_pays
from deploy.stages.prepare import Prepared
from deploy.stages.presets import Means, expand
from deploy.stages.request import Request, Roles
from deploy.stages.target import Target
from deploy.stages.training import training_of
from deploy.stages.yardstick import Yardstick


def ready(
    request: Request,
    prepared: Prepared,
    target: Target,
    roles: Roles,
    lock: Lock | None,
    progress: Progress,
) -> Request:
    """The request with a recipe whose steps can run.

    Raises UsageError for what can be known to fail: see `check`, and a ``lock`` of another recipe.
    """
    recipe = request.recipe
    if recipe.preset is not None and not recipe.steps:
        if prepared.facts.imported:
            raise _quantized(f"the recipe {recipe.preset}")
        _require_torch()
        ground = _ground(request, prepared, target, roles)
        recipe = _able(expand(recipe.preset, means(prepared, target, roles)), ground)
        for note in recipe.notes:
            progress.note(f"recipe {recipe.preset}: {note}")
        request = replace(request, recipe=recipe)
    check(request, prepared, target, roles)
    for note in shared_weights.notes(request, target, roles):
        progress.note(note)
    then = None if lock is None or lock.recipe is None else [choice.step for choice in lock.recipe]
    now = [step.step for step in recipe.steps]
    if then is not None and then != now:
        raise UsageError(
            f"the lock was made with {_named(then)}, and the recipe now has {_named(now)}",
            hint="give the recipe that it was made with, or build without it",
        )
    return request


def _able(recipe: Recipe, ground: Ground) -> Recipe:
    """A preset without the steps that are refused here, and without trainings where no other step is left."""
    steps: list[Step] = []
    notes = list(recipe.notes)
    for step in recipe.steps:
        try:
            checker(step)(step, ground.given, ground)
        except UsageError as e:
            notes.append(f"{step.step} is left out: {e.message.removeprefix(f'{step.step}: ')}")
        else:
            steps.append(step)
    if all(isinstance(step, Finetune) for step in steps):
        steps = []
    return recipe.model_copy(update={"steps": tuple(steps), "notes": tuple(notes)})


def _require_torch() -> None:
    if not find_spec("torch"):
        raise missing_extra("PyTorch", "torch")


def _named(steps: Sequence[str]) -> str:
    return f"the steps {', '.join(steps)}" if steps else "no steps"


def _quantized(what: str) -> UsageError:
    return UsageError(
        f"{what}: the model came quantized, and its integers are final",
        hint="hand in the float model that it was made from",
    )


def means(prepared: Prepared, target: Target, roles: Roles) -> Means:
    """What a preset has to work with."""
    return Means(
        model=prepared.clean,
        samples=roles.calibration is not None and not roles.random,
        train=roles.train,
        pays=sparsity_pays(target)[0],
        target=target.name,
    )


def _ground(request: Request, prepared: Prepared, target: Target, roles: Roles) -> Ground:
    yard = Yardstick(prepared, roles, request, target, costs_of(target, request.threads))
    return ground_for(yard, None, prepared.folder)


def check(request: Request, prepared: Prepared, target: Target, roles: Roles) -> None:
    """Raises UsageError for a step that cannot work with this model, these data and this target."""
    steps = request.recipe.steps
    if not steps:
        return
    if prepared.facts.imported:
        raise _quantized(f"[[recipe]] {steps[0].step}")
    _require_torch()
    ground = _ground(request, prepared, target, roles)
    renamed = False
    for step in steps:
        if training_of(step) is not None and roles.train is None:
            what = "" if isinstance(step, Finetune) else "its finetune has nothing to learn from: "
            raise UsageError(
                f"[[recipe]] {step.step}: {what}there are no training data",
                hint='give --train samples.npz, or [data] train = "samples.npz" in deploy.toml',
            )
        if isinstance(step, Prune) and step.latency is not None and ground.latency(prepared.clean) is None:
            raise UsageError(
                f"[[recipe]] prune: a goal of latency needs to know what kernels take on {target.name}",
                hint="measure it there (`deploy profile`), or give the goal as macs",
            )
        if not (renamed and isinstance(step, Finetune)):
            checker(step)(step, prepared.clean, ground)
        renamed |= isinstance(step, LowRank)  # its factors have names of their own


def check_targets(recipe: Recipe, targets: Sequence[str]) -> None:
    """Raises UsageError for a goal of latency where several targets are built for: each would get another
    network by it."""
    waits = any(isinstance(step, Prune) and step.latency is not None for step in recipe.steps)
    if len(targets) > 1 and waits:
        raise UsageError(
            f"[[recipe]] prune: a goal of latency belongs to one target, and there are {len(targets)}: "
            + ", ".join(targets),
            hint="build for one at a time, or give the goal as macs",
        )

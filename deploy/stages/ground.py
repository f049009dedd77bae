"""The table from a step to what runs it, and the ground that it stands on in a build."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import cast

import onnx_ir as ir

from deploy.compress.ground import Ground, StepResult, Tune
from deploy.spec.compression import Cluster, LowRank, Prune, Shrink, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Step
from deploy.stages.target import Target
from deploy.stages.training import validated_by, validation
from deploy.stages.yardstick import Yardstick

STEPS: Mapping[type[Step], str] = {
    Prune: "deploy.compress.prune.step",
    Shrink: "deploy.compress.student",
    Sparsify: "deploy.compress.sparsify",
    LowRank: "deploy.compress.lowrank",
    Cluster: "deploy.compress.cluster",
    Finetune: "deploy.stages.training",
}
"""Step -> the module whose ``run`` runs it and whose ``check`` says beforehand what cannot work; imported
when it is needed, since most of them import PyTorch."""


def runner(step: Step) -> Callable[[Step, ir.Model, Ground], StepResult]:
    """What runs a step."""
    found = import_module(STEPS[type(step)]).run
    return cast(Callable[[Step, ir.Model, Ground], StepResult], found)


def checker(step: Step) -> Callable[[Step, ir.Model, Ground], None]:
    """What refuses a step that cannot work, without running anything."""
    return cast(Callable[[Step, ir.Model, Ground], None], import_module(STEPS[type(step)]).check)


def ground_for(
    yard: Yardstick, tune: Tune | None, workdir: Path, teachers: tuple[ir.Model, ...] = ()
) -> Ground:
    """What a step stands on; ``tune`` and ``workdir`` are its own. Nothing is trained without ``tune``."""
    request, roles = yard.request, yard.roles
    pays, why = sparsity_pays(yard.target)
    ground = Ground(
        samples=roles.calibration,
        given=yard.before.clean,
        workdir=workdir,
        train=roles.train,
        validation=validation(roles),
        teachers=teachers or (yard.before.clean,),
        score=yard.score,
        drop=yard.drop,
        metric=validated_by(request),
        latency=yard.predicted,
        align=alignment(yard.target),
        pays=pays,
        why=why,
        seed=request.seed,
        threads=request.threads,
        root=request.root,
        progress=yard.progress,
    )
    return ground if tune is None else replace(ground, tune=tune)


def alignment(target: Target) -> int:
    """The multiple of channels that all runtimes of the device compute well, whichever are here or asked for:
    a lock names one of them, and must come to the same graph."""
    return math.lcm(*(runtime.align for runtime in target.profile.runtime))


def sparsity_pays(target: Target) -> tuple[bool, str]:
    """Whether a runtime of the target is faster with 2:4 sparse weights, and that in words."""
    found = [(route.runtime.name, s) for route in target.routes if (s := route.runtime.sparsity) is not None]
    if not found:
        return False, f"no runtime of {target.describe()} is faster with 2:4 sparse weights"
    name, sparsity = found[0]
    if sparsity.gain == "unknown":
        return True, f"{name} computes 2:4 sparse weights faster, by how much is unknown"
    pays = any(route.runtime.sparsity_gain > 1 for route in target.routes)
    return pays, f"{name} with 2:4 sparse weights: {sparsity.gain.value} {sparsity.gain.unit}"

"""A build that takes the choices of an earlier one, from its ``deploy.lock``, instead of searching again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.progress import Progress
from deploy.spec.document import digest, parse
from deploy.spec.manifest import Lock
from deploy.spec.project import WITHOUT_RANGES
from deploy.stages.job import Ingredients
from deploy.stages.prepare import Prepared
from deploy.stages.request import Request
from deploy.stages.target import Target, missing_runtime


def read_lock(request: Request, prepared: Prepared) -> Lock | None:
    """The lock that was asked for. Raises UsageError where there is none, or one of another model."""
    if request.lock is None:
        return None
    if not request.lock.is_file():
        raise UsageError(
            f"{request.lock}: no such lock file", hint="give the deploy.lock of an earlier bundle"
        )
    lock = parse(Lock, request.lock.read_text(encoding="utf-8", errors="replace"), origin=request.lock)
    if lock.source_sha256 != prepared.facts.source.sha256:
        raise UsageError(
            f"{request.lock}: it was written for another model",
            hint="build without --lock, or give the model that it belongs to",
        )
    return lock


def follow_lock(request: Request, target: Target, prepared: Prepared) -> tuple[Request, Target]:
    """The request with the precision that the lock was made with, the target with the runtime that it chose.

    Both stay as they are where no lock was asked for. Raises UsageError where the request contradicts the
    lock, whose choices would then not be those of the build, or where its runtime is not here.
    """
    lock = read_lock(request, prepared)
    if lock is None or request.lock is None:
        return request, target
    if request.precision not in ("auto", lock.precision):
        raise UsageError(
            f"{request.lock}: it was made with precision {lock.precision}, and {request.precision} is "
            "asked for",
            hint="leave --precision out for what the lock chose, or build without --lock to choose anew",
        )
    blind = request.data is None and not request.random_calibration and not prepared.facts.imported
    if blind and lock.calibration_sha256 is not None and lock.precision not in WITHOUT_RANGES:
        raise UsageError(
            f"{request.lock}: it was made with calibration data, and there are none now",
            hint="give --data (or --random-calibration where it was made so), or build without --lock",
        )
    return replace(request, precision=lock.precision), _of_the_lock(request.lock, request, target, lock)


def _of_the_lock(path: Path, request: Request, target: Target, lock: Lock) -> Target:
    """The target with the runtime of the lock alone."""
    if request.runtime is not None and request.runtime != lock.runtime:
        raise UsageError(
            f"{path}: it chose {lock.runtime}, and --runtime {request.runtime} is asked for",
            hint="leave --runtime out for what the lock chose, or build without --lock to choose anew",
        )
    locked = tuple(route for route in target.routes if route.runtime.name == lock.runtime)
    if locked:
        return replace(target, routes=locked)
    known = [runtime.name for runtime in target.profile.runtime]
    if lock.runtime not in known:
        raise UsageError(
            f"{path}: it chose {lock.runtime}, which {target.name} does not have ({', '.join(known)})",
            hint="give the lock of a build for this target, or build without --lock",
        )
    raise UsageError(
        f"{path}: it chose {lock.runtime}, which is not installed; here there is {target.describe()}",
        hint=f"{missing_runtime(lock.runtime)}; or build without --lock",
    )


def warn_of_changes(lock: Lock | None, made_of: Ingredients, progress: Progress) -> None:
    """A lock's choices hold for other data and another profile as well, but were not made for them."""
    if lock is None:
        return
    if lock.calibration_sha256 != _digest(made_of.roles.calibration):
        progress.warn("the lock was written with other calibration data: ranges will differ")
    if lock.profile_sha256 != digest(made_of.target.profile):
        progress.warn(f"the profile of {made_of.target.name} has changed since the lock was written")


def _digest(dataset: Dataset | None) -> str | None:
    return None if dataset is None else dataset.digest

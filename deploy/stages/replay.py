"""A build that takes the choices of an earlier one instead of searching again: from its ``deploy.lock``, or
from a point of the front that lies in its measurements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from deploy.bundle.read import MANIFEST, Bundle, load_bundle, load_lock
from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.progress import Progress
from deploy.quantize.decide import BY_COSTS
from deploy.spec.document import digest, parse
from deploy.spec.manifest import Choice, Lock
from deploy.spec.measurement import Point
from deploy.spec.project import WITHOUT_RANGES
from deploy.spec.tensors import INTEGER
from deploy.stages.job import Ingredients
from deploy.stages.pick import PICKED
from deploy.stages.prepare import Prepared
from deploy.stages.request import Request
from deploy.stages.target import Target, missing_runtime


def read_lock(request: Request, prepared: Prepared) -> Lock | None:
    """The lock that was asked for, a point as one. Raises UsageError where there is none, or one of another
    model."""
    if request.pick is not None:
        lock = _picked(request, request.pick)
    elif request.lock is None:
        return None
    elif not request.lock.is_file():
        raise UsageError(
            f"{request.lock}: no such lock file", hint="give the deploy.lock of an earlier bundle"
        )
    else:
        text = request.lock.read_text(encoding="utf-8", errors="replace")
        lock = parse(Lock, text, origin=request.lock)
    if lock.source_sha256 != prepared.facts.source.sha256:
        raise UsageError(
            f"{_origin(request)}: it was written for another model",
            hint=f"build without {_flag(request)}, or give the model that it belongs to",
        )
    return lock


def front_of(request: Request) -> tuple[Point, ...]:
    """The points of the bundle that lies where this build goes. Raises UsageError where there are none."""
    points = _earlier(request).measurements.front
    if not points:
        raise UsageError(
            f"{_destination(request)}: its measurements hold no points to pick from",
            hint="build without --pick: the points are then listed and kept in the bundle",
        )
    return points


def _picked(request: Request, number: int) -> Lock:
    points = front_of(request)
    point = next((p for p in points if p.number == number), None)
    if point is None:
        known = ", ".join(str(p.number) for p in points)
        raise UsageError(f"{_destination(request)}: it has no point {number}", hint=f"its points are {known}")
    lock = load_lock(_earlier(request))
    choices = [Choice(what="point", chosen=f"{number} of {len(points)}", reason=PICKED)]
    if point.mixed:  # by this reason a replay knows why blocks are float
        choices.insert(0, Choice(what="INT8 blocks", chosen=_integer_blocks(point.form), reason=BY_COSTS))
    seen = point.chosen or not lock.looks
    return lock.model_copy(
        update={
            "runtime": point.runtime,
            "options": point.options,
            "precision": point.precision,
            "float_blocks": point.float_blocks,
            "rungs": point.rungs,
            "sparse_blocks": point.sparse_blocks,
            "wide_blocks": point.wide_blocks,
            "choices": tuple(choices),
            "looks": lock.looks if seen else lock.looks + 1,
        }
    )


def _integer_blocks(form: str) -> str:
    """How many blocks of a point are in integers, by its name.

    >>> _integer_blocks("int8 in 17 of 22 blocks, 2:4 in 9"), _integer_blocks("int8, 2:4 in 9")
    ('17 of 22', 'all')
    >>> _integer_blocks("float, 2:4 in 3")
    'none'
    """
    precision, _, count = form.partition(",")[0].partition(" in ")
    return count.removesuffix(" blocks") or ("all" if precision in INTEGER else "none")


def _earlier(request: Request) -> Bundle:
    folder = _destination(request)
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder}: there is no bundle to pick point {request.pick} of",
            hint="build without --pick first: the points are then listed",
        )
    return load_bundle(folder)


def _destination(request: Request) -> Path:
    return Path(request.out) / request.target


def _origin(request: Request) -> Path:
    """What the choices are from, for messages."""
    return request.lock or _destination(request)


def _flag(request: Request) -> str:
    return "--lock" if request.pick is None else "--pick"


def follow_lock(request: Request, target: Target, prepared: Prepared) -> tuple[Request, Target]:
    """The request with the precision that the lock was made with, the target with the runtime that it chose.

    Both stay as they are where no lock was asked for. Raises UsageError where the request contradicts the
    lock, whose choices would then not be those of the build, or where its runtime is not here.
    """
    lock = read_lock(request, prepared)
    if lock is None:
        return request, target
    origin, flag = _origin(request), _flag(request)
    if request.precision not in ("auto", lock.precision):
        raise UsageError(
            f"{origin}: it was made with precision {lock.precision}, and {request.precision} is asked for",
            hint=f"leave --precision out for what was chosen then, or build without {flag} to choose anew",
        )
    blind = request.data is None and not request.random_calibration and not prepared.facts.imported
    if blind and lock.calibration_sha256 is not None and lock.precision not in WITHOUT_RANGES:
        raise UsageError(
            f"{origin}: it was made with calibration data, and there are none now",
            hint=f"give --data (or --random-calibration where it was made so), or build without {flag}",
        )
    return _with_its_threads(request, lock), _of_the_lock(request, target, lock)


def _with_its_threads(request: Request, lock: Lock) -> Request:
    """What was asked for then. Raises UsageError where another number of threads is asked for now."""
    if not lock.options:  # written before locks held settings
        return replace(request, precision=lock.precision)
    known = {lock.threads, lock.options.get("threads"), 1}
    if request.threads not in known:
        raise UsageError(
            f"the lock was made for {lock.options.get('threads')} threads, {request.threads} are asked for",
            hint="leave --threads out for what was chosen then, or build without a lock to choose anew",
        )
    return replace(request, precision=lock.precision, threads=lock.threads, any_threads=lock.any_threads)


def _of_the_lock(request: Request, target: Target, lock: Lock) -> Target:
    """The target with the runtime of the lock alone."""
    origin, flag = _origin(request), _flag(request)
    if request.runtime is not None and request.runtime != lock.runtime:
        raise UsageError(
            f"{origin}: it chose {lock.runtime}, and --runtime {request.runtime} is asked for",
            hint=f"leave --runtime out for what was chosen then, or build without {flag} to choose anew",
        )
    locked = tuple(route for route in target.routes if route.runtime.name == lock.runtime)
    if locked:
        return replace(target, routes=locked)
    known = [runtime.name for runtime in target.profile.runtime]
    if lock.runtime not in known:
        raise UsageError(
            f"{origin}: it chose {lock.runtime}, which {target.name} does not have ({', '.join(known)})",
            hint=f"give the lock of a build for this target, or build without {flag}",
        )
    raise UsageError(
        f"{origin}: it chose {lock.runtime}, which is not installed; here there is {target.describe()}",
        hint=f"{missing_runtime(lock.runtime)}; or build without {flag}",
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

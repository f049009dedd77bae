"""What a build is for: a device, and the runtimes by which it can run the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deploy.adapter.discover import backend_names, find_backend
from deploy.adapter.profiles import all_profiles, load_profile, resolve
from deploy.adapter.protocol import Backend, Keeps, Names, Narrows
from deploy.adapter.refusal import of_origins, refusal, refused
from deploy.bundle.report.figures import plural
from deploy.errors import ToolchainError, UsageError
from deploy.measure.host import host
from deploy.progress import Progress
from deploy.spec.artifact import Verdict
from deploy.spec.profile import Profile, Runtime
from deploy.spec.project import IoSection, PrecisionRequest
from deploy.stages.prepare import Prepared

_ANYWHERE: tuple[PrecisionRequest, ...] = ("auto", "float", "mixed", "int8")
"""Requests that every runtime meets: where it has no INT8 the build is float."""

_NOTHING_ASKED = IoSection()

_FEW = 3
"""Other devices that a hint names."""
_INTEGER_OUTPUTS = "integer_outputs"
"""The option by which a backend that can is told to give outputs as integers."""


@dataclass(frozen=True)
class Route:
    """One runtime of the device, as the profile describes it, and the backend that writes for it."""

    runtime: Runtime
    backend: Backend


@dataclass(frozen=True)
class Target:
    """A device as it was asked for, the profile it resolved to, and its runtimes, preferred ones first.

    ``left_out`` says of runtimes that the device prefers to these why they are not here, and of those that
    are, what their profile's rules take for granted.
    """

    name: str
    profile: Profile
    routes: tuple[Route, ...]
    left_out: tuple[str, ...] = ()

    def stands_here(self) -> bool:
        """Whether this machine can stand in for the device, so that times taken here mean something."""
        here = host()
        same = self.profile.arch == here.arch and set(self.profile.features) <= here.features
        return self.profile.stand_in and same

    def describe(self) -> str:
        """The target with its runtimes, for messages."""
        return f"{self.name} ({', '.join(route.runtime.name for route in self.routes)})"


def find_target(name: str, only: str | None = None) -> Target:
    """The device of that name with the runtimes that can be built for here; with ``only`` the one so called.

    Raises UsageError for an unknown device or one that has no such runtime, ToolchainError where nothing that
    it runs is installed, saying what is missing.
    """
    profile = resolve(load_profile(name), host().features)
    runtimes = [runtime for runtime in profile.runtime if only in (None, runtime.name)]
    if not runtimes:
        known = ", ".join(runtime.name for runtime in profile.runtime)
        raise UsageError(f"{name} has no runtime '{only}'", hint=f"one of {known}, or leave --runtime out")
    installed = backend_names()
    routes, missing = [], []
    left_out: list[str] = []
    for runtime in runtimes:
        if runtime.name not in installed:
            continue
        route = Route(runtime, find_backend(runtime.name))
        available = route.backend.available()
        if available.usable:
            if isinstance(route.backend, Narrows):
                able, reason = route.backend.narrowed(runtime)
                route = replace(route, runtime=able)
                left_out += [f"{name}: {reason}"] if reason else []
            routes.append(route)
        else:
            missing.append(f"{available.runtime}: {available.missing}")
            if not routes:
                left_out.append(f"{runtime.name}, which {name} prefers, is left out: {available.missing}")
    if routes:
        return Target(name, profile, tuple(routes), tuple(left_out))
    if missing:
        raise ToolchainError(f"nothing by which {name} runs a model works here", hint="; ".join(missing))
    names = " and ".join(runtime.name for runtime in runtimes)
    raise ToolchainError(
        f"{name} runs models with {names}: no such backend is installed ({', '.join(installed)} are)",
        hint="none comes with this version of deploy; a package may bring one (entry point deploy.backends)",
    )


def missing_runtime(name: str) -> str:
    """What to do to have the runtime of that name here."""
    if name not in backend_names():
        return f"no backend '{name}' comes with this version of deploy; a package may bring one"
    return find_backend(name).available().missing


def able_to(target: Target, precision: PrecisionRequest, io: IoSection = _NOTHING_ASKED) -> Target:
    """The target with the runtimes that have the form asked for, and the rules of that form.

    Raises UsageError if none has, or none has words for what is asked of inputs and outputs.
    """
    if io.outputs is not None:
        target = _giving_integers(target)
    target = _with_ends(target, io)
    if precision in _ANYWHERE:
        return target
    able = tuple(r for r in target.routes if precision in r.runtime.precisions)
    if not able:
        has = "; ".join(f"{r.runtime.name} has {', '.join(r.runtime.precisions)}" for r in target.routes)
        beside = " or ".join(r.name for r in target.profile.runtime if precision in r.precisions)
        first = target.routes[0].runtime.name
        others = [p.name for p in all_profiles() if _has(p, first, precision)][:_FEW]
        nearest = f"{' or '.join(others)}, where {first} has it" if others else ""
        raise UsageError(
            f"{target.describe()} has no {precision} form",
            hint=f"{has}: give one of these, {f'leave --runtime out ({beside} has it), ' if beside else ''}"
            f"or another target ({nearest or '`deploy targets NAME` says what one has'})",
        )
    if precision == "w8a16":
        wide = [r.runtime.model_copy(update={"quant": r.runtime.quant16}) for r in able]
        able = tuple(replace(route, runtime=runtime) for route, runtime in zip(able, wide, strict=True))
    return replace(target, routes=able)


def _has(profile: Profile, name: str, precision: PrecisionRequest) -> bool:
    """Whether a device has a form in the runtime of that name."""
    return any(runtime.name == name and precision in runtime.precisions for runtime in profile.runtime)


def _with_ends(target: Target, io: IoSection) -> Target:
    """The runtimes that can do what is asked of inputs and outputs, and know it."""
    able, reasons = target.routes, []
    if io.states:
        keeping = [(r, r.backend.keeps(r.runtime)) for r in able if isinstance(r.backend, Keeps)]
        able = tuple(route for route, reason in keeping if not reason)
        reasons = [reason for _, reason in keeping if reason]
    if io.classifier:
        able = tuple(route for route in able if isinstance(route.backend, Names))
    if not able:
        words = " and ".join(["states"] * bool(io.states) + ["classifier"] * io.classifier)
        raise UsageError(
            f"{target.describe()} has no words for [io] {words}",
            hint="; ".join(reasons)
            or "leave it out, or build for a target that runs Core ML packages (iphone15)",
        )
    runtimes = [route.runtime.model_copy(update={"asked": io.ends}) for route in able]
    routes = tuple(replace(route, runtime=runtime) for route, runtime in zip(able, runtimes, strict=True))
    return replace(target, routes=routes)


def _giving_integers(target: Target) -> Target:
    able = [r for r in target.routes if _INTEGER_OUTPUTS in r.backend.options_type.model_fields]
    if not able:
        raise UsageError(
            f"{target.describe()} gives outputs as the model has them only",
            hint="leave [io] outputs out, or build for a target that runs .tflite files",
        )
    routes = []
    for route in able:
        options = {**route.runtime.options, _INTEGER_OUTPUTS: True}
        routes.append(replace(route, runtime=route.runtime.model_copy(update={"options": options})))
    return replace(target, routes=tuple(routes))


def judged(route: Route, prepared: Prepared) -> list[Verdict]:
    """What a runtime says of each node of the fused graph, its own form of that asked."""
    own = prepared.graph_for(route.runtime).model
    return of_origins(route.backend.check(own, route.runtime), own)


def able_to_run(target: Target, prepared: Prepared, progress: Progress) -> Target:
    """The target with the runtimes that can run every node of the model.

    Raises UnsupportedError where there is none, listing every node that the preferred one refuses.
    """
    for reason in target.left_out:
        progress.note(reason)
    said = [(route, judged(route, prepared)) for route in target.routes]
    able = tuple(route for route, verdicts in said if not refused(verdicts))
    if not able:
        route, verdicts = said[0]
        hint = "replace these operations in the model, or build for another target"
        error = refusal(f"{target.name} ({route.runtime.name})", verdicts, hint)
        assert error is not None
        raise error
    for route, verdicts in said:
        if nodes := refused(verdicts):
            first = nodes[0]
            progress.note(
                f"{route.runtime.name} is left out: it refuses {plural(len(nodes), 'node')}, "
                f"first {first.op} '{first.node}': {first.reason}"
            )
    return replace(target, routes=able)

"""``deploy profile``: what the kernels of this machine's runtimes take, measured, shown and judged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.options import CacheFolder, Json, Quiet, Verbose, parse_shapes, settle
from deploy.errors import ToolchainError, UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from deploy.adapter.overlays import Fit
    from deploy.spec.profile import Profile

_KEPT = "What was measured"
_MEANT = {
    "measuring": ("--quick", "--fresh", "--out", "--picture"),
    "--show": ("--of", "--out", "--picture"),
    "--check": ("--data", "--shape"),
    "--use": (),
}
"""The flags that mean something beside each of the things that the command does."""


def profile(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer sizes: a minute or two, and predictions a little worse.")
    ] = False,
    runtime: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Measure this runtime only; repeatable. Default: all found here."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help="Threads to measure with.")] = 1,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin anew where a survey was interrupted before.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the measurements to this file, too: for --use on another machine."
        ),
    ] = None,
    show: Annotated[
        bool,
        typer.Option("--show", rich_help_panel=_KEPT, help="Show what was measured; measure nothing."),
    ] = False,
    of: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_KEPT,
            help="Show another machine: a target, or a part of its CPU's or accelerator's name.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE", rich_help_panel=_KEPT, help="Draw it, too: a .png, .svg or .pdf file."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", rich_help_panel=_KEPT, help="Time this model and compare with prediction."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", rich_help_panel=_KEPT, help="Samples for --check; without them noise will do."
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SIZES",
            rich_help_panel=_KEPT,
            help="Fix the model's input sizes for --check: x=1,3,224,224; repeatable.",
        ),
    ] = None,
    cache: CacheFolder = None,
    use: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_KEPT,
            help="Keep measurements of another machine, from --out there.",
        ),
    ] = None,
    json: Json = False,
    verbose: Verbose = 0,
    quiet: Quiet = False,
) -> None:
    """Measure this machine: the true speed of its runtimes by kind of operation, size and precision.

    Builds and predictions then know what INT8 is worth here. Takes three to fifteen minutes; one that was
    interrupted goes on where it stopped.
    """
    quiet = settle(context, verbose, quiet)
    given = {
        "--quick": quick, "--fresh": fresh, "--out": out, "--of": of, "--picture": picture, "--data": data,
        "--shape": shape,
    }  # fmt: skip
    _fits({"--show": show, "--check": check, "--use": use}, given)
    wanted = _known(runtime)
    if use is not None:
        _use(use, json=json, quiet=quiet)
    elif check is not None:
        _check(check, data, parse_shapes(shape), wanted, threads, cache, json=json, quiet=quiet)
    elif show:
        fit = _other(of) if of else _found(_profile(), wanted, threads)
        _show(fit, out, picture, json=json, quiet=quiet)
    else:
        _measure(wanted, threads, out, picture, quick=quick, fresh=fresh, json=json, quiet=quiet)


def _fits(actions: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Raises UsageError for flags that mean nothing beside each other."""
    named = [flag for flag, value in actions.items() if value] or ["measuring"]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} do not go together", hint="give one of them")
    for flag, value in given.items():
        if value and flag not in _MEANT[named[0]]:
            of = [action for action, flags in _MEANT.items() if flag in flags]
            raise UsageError(
                f"{flag} means nothing beside {named[0]}",
                hint=f"leave it out; it goes with {' and '.join(of)}",
            )


def _known(runtimes: Sequence[str] | None) -> tuple[str, ...] | None:
    """The runtimes named, each once. Raises UsageError for one that is not known or no runtime of this
    machine's profile."""
    if not runtimes:
        return None
    import difflib

    from deploy.adapter.discover import backend_names

    known = backend_names()
    for name in runtimes:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
            meant = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"unknown runtime '{name}'", hint=f"{meant}installed: {', '.join(known)}")
    own = [runtime.name for runtime in _profile().runtime]
    for name in runtimes:
        if name not in own:
            raise UsageError(
                f"{name} runs nothing on a machine like this one ({_profile().name})",
                hint=f"one of {', '.join(own)}",
            )
    return tuple(dict.fromkeys(runtimes))


def _measure(
    runtimes: Sequence[str] | None,
    threads: int,
    out: Path | None,
    picture: Path | None,
    *,
    quick: bool,
    fresh: bool,
    json: bool,
    quiet: bool,
) -> None:
    from deploy.adapter.overlays import write_overlay
    from deploy.cli import measured
    from deploy.cli.terminal import show_note, stages, write_json
    from deploy.survey.picture import save_picture
    from deploy.survey.run import survey

    absent = _absent(runtimes)
    if runtimes and absent:
        raise ToolchainError("; ".join(absent), hint="install it, or leave --runtime out")
    if not quiet:
        for reason in absent:
            show_note(f"left out: {reason}")
    try:
        with stages("this machine", quiet=quiet) as progress:
            kept = survey(runtimes=runtimes, threads=threads, quick=quick, fresh=fresh, progress=progress)
    except KeyboardInterrupt:
        if not quiet:
            show_note("what was measured is kept: the same command goes on from there")
        raise
    path, found = kept.path, kept.overlay
    if out is not None:
        write_overlay(found, out)
    if picture is not None:
        save_picture(found, picture)
    warnings = measured.noise_warnings(found)
    if json:
        write_json({"file": str(path), "warnings": warnings, "overlay": measured.as_json(found)})
    elif not quiet:
        measured.show_overlay(found, [path])
    measured.warn(warnings, quiet=quiet)


def _show(fit: Fit, out: Path | None, picture: Path | None, *, json: bool, quiet: bool) -> None:
    from deploy.adapter.overlays import kept_overlays, shipped_overlays, write_overlay
    from deploy.cli import measured
    from deploy.cli.terminal import write_json, write_line
    from deploy.survey.picture import save_picture

    shown = {kept.path for kept in fit.sources.values()}
    elsewhere = [k for k in (*kept_overlays()[0], *shipped_overlays()) if k.path not in shown]
    if fit.overlay is None and (out or picture):
        raise _nothing_measured(fit)
    if fit.overlay is not None and out is not None:
        write_overlay(fit.overlay, out)
    if fit.overlay is not None and picture is not None:
        save_picture(fit.overlay, picture)
    if json:
        write_json({
            "overlay": None if fit.overlay is None else measured.as_json(fit.overlay),
            "files": {name: str(kept.path) for name, kept in fit.sources.items()},
            "classes": {} if fit.overlay is None else measured.classes_json(fit.overlay),
            "warnings": list(fit.warnings),
            "reasons": list(fit.reasons),
            "kept": [str(kept.path) for kept in elsewhere],
        })  # fmt: skip
        return
    if quiet:
        return
    if fit.overlay is None:
        write_line(
            "nothing was measured on this machine yet" if not fit.reasons else "nothing fits this machine"
        )
        write_line(
            ("`deploy profile` measures it in three to fifteen minutes, with --quick in one or two", "quiet")
        )
    else:
        measured.show_overlay(fit.overlay, sorted(shown))
    measured.show_kept(elsewhere)
    noisy = measured.noise_warnings(fit.overlay) if fit.overlay else []
    measured.warn([*(noisy or fit.warnings), *fit.reasons], quiet=False)


def _check(
    model: Path,
    data: str | None,
    shapes: Mapping[str, Sequence[int]],
    runtimes: Sequence[str] | None,
    threads: int,
    cache: Path | None,
    *,
    json: bool,
    quiet: bool,
) -> None:
    from deploy.cli import checked, measured
    from deploy.cli.terminal import stages, write_json
    from deploy.predict.latency import Costs
    from deploy.stages.request import Request
    from deploy.survey.check import check

    here = _profile()
    fit = _found(here, runtimes, threads)
    if fit.overlay is None:
        raise _nothing_measured(fit)
    measured.warn([*fit.warnings, *fit.reasons], quiet=quiet)
    request = Request(
        source=model,
        target=here.name,
        data=data,
        shapes=shapes,
        threads=threads,
        cache=cache,
        random_calibration=data is None,
    )
    costs = {m.name: Costs.of(m, fit.overlay.facts) for m in fit.overlay.runtime}
    with stages(f"{model} on this machine", quiet=quiet) as progress:
        found = check(request, costs, progress)
    if json:
        write_json(checked.as_json(found))
    elif not quiet:
        checked.show_check(found)


def _use(path: Path, *, json: bool, quiet: bool) -> None:
    from deploy.adapter.overlays import read_overlay, save, why_not
    from deploy.cli.terminal import show_note, write_json, write_line
    from deploy.measure.host import this_machine

    overlay = read_overlay(path)
    kept = save(overlay)
    why = why_not(overlay.machine, this_machine(overlay.machine.device))
    if json:
        write_json({"file": str(kept), "this_machine": not why, "reason": why})
    elif not quiet:
        write_line(("✓ ", "good"), str(kept), wrap=False)
        if why:
            show_note(f"kept for predictions about that machine; not used for this one: {why}")


def _profile() -> Profile:
    """The profile by whose rules this machine is measured."""
    from deploy.adapter.profiles import profile_for
    from deploy.measure.host import host

    return profile_for(host().arch, host().features)


def _absent(runtimes: Sequence[str] | None) -> list[str]:
    """What is missing of the runtimes that are wanted, of all of this machine's profile if None."""
    from deploy.adapter.discover import backend_names, find_backend

    wanted = [r.name for r in _profile().runtime if runtimes is None or r.name in runtimes]
    installed = backend_names()
    found = {name: find_backend(name).available() for name in wanted if name in installed}
    return [f"{name}: {there.missing}" for name, there in found.items() if there.version is None]


def _found(profile: Profile, runtimes: Sequence[str] | None, threads: int) -> Fit:
    from deploy.adapter.overlays import find_overlay, runs_here
    from deploy.measure.host import this_machine

    wanted = [r for r in profile.runtime if runtimes is None or r.name in runtimes]
    return find_overlay(this_machine(), runs_here(wanted, threads))


def _other(name: str) -> Fit:
    """What was measured of the machine called so, all of it."""
    from deploy.adapter.overlays import Fit, named_overlay

    kept = named_overlay(name)
    return Fit(kept.overlay, {runtime.name: kept for runtime in kept.overlay.runtime}, (), ())


def _nothing_measured(fit: Fit) -> UsageError:
    if fit.reasons:
        return UsageError(
            "what was measured does not fit this machine:\n" + "\n".join(fit.reasons),
            hint="measure it now: deploy profile",
        )
    return UsageError("nothing was measured on this machine yet", hint="measure it first: deploy profile")

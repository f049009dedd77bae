"""Where measurements of machines lie, and which of them are true of a machine.

Overlays of the user's own machines are files in ``<data folder>/measured``; those of a few named machines
come with the package, for predictions about devices that are not at hand. An overlay that does not fit is
never used silently, and never left out silently either.
"""

from __future__ import annotations

import os
import re
import statistics
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from deploy.adapter.discover import backend_names, find_backend
from deploy.adapter.protocol import Revised
from deploy.errors import UsageError
from deploy.spec.document import digest, parse, render
from deploy.spec.overlay import Machine, Overlay, RuntimeCosts
from deploy.spec.profile import Runtime

TOO_NOISY = 0.2
"""A median spread above it says that the machine was busy."""
LARGEST = 16 * 2**20
"""Bytes of an overlay that are read at most; one with every class of every runtime has below one million."""

_PACKAGE = Path(__file__).parents[1]
_SHIPPED = (_PACKAGE / "_profiles" / "measured", _PACKAGE.parent / "profiles" / "measured")
"""In an installed wheel, in a checkout."""
_AGAIN = "measure anew with: deploy profile"

Settings = Mapping[str, bool | int | str]


def data_root() -> Path:
    """The folder of what is kept for long: DEPLOY_DATA, or the system's place for a user's data."""
    given = os.environ.get("DEPLOY_DATA")
    return Path(given) if given else Path(platformdirs.user_data_dir("deploy-compiler"))


def overlay_folder(root: Path | None = None) -> Path:
    """Where the overlays lie below ``root``, the data folder unless another is given."""
    return (data_root() if root is None else root) / "measured"


@dataclass(frozen=True)
class Runs:
    """A runtime as it would run here: what the points of an overlay have to agree with."""

    name: str
    version: str
    threads: int
    settings: Settings
    runner: int = 1


def runs_here(runtimes: Iterable[Runtime], threads: int) -> list[Runs]:
    """The runtimes of a profile that run on this machine, with their versions; others are left out."""
    installed = backend_names()
    found = []
    for runtime in runtimes:
        backend = find_backend(runtime.name) if runtime.name in installed else None
        version = None if backend is None else backend.available().version
        if version is not None:
            runner = backend.runner if isinstance(backend, Revised) else 1
            found.append(Runs(runtime.name, version, threads, runtime.options, runner))
    return found


@dataclass(frozen=True)
class Kept:
    """An overlay with the file in which it lies."""

    path: Path
    overlay: Overlay


@dataclass(frozen=True)
class Fit:
    """What is true of a machine. ``overlay`` holds the runtimes of which points fit, None where none do.

    ``sources`` are by runtime. ``reasons`` say of each overlay that could have been meant why it is
    not used; ``warnings`` what to think of what is used.
    """

    overlay: Overlay | None
    sources: Mapping[str, Kept]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def read_overlay(path: Path) -> Overlay:
    """The overlay in a file from anywhere. Raises UsageError with the file, line and key that are wrong."""
    try:
        if not path.is_file():
            raise UsageError(f"{path}: no such file", hint="deploy profile --out FILE writes one")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as e:
        raise UsageError(f"{path}: cannot be read: {e.strerror}", hint="check the file's permissions") from e
    if len(raw) > LARGEST:
        raise UsageError(
            f"{path}: larger than any overlay ({LARGEST >> 20} MiB)", hint="give a file of deploy profile"
        )
    try:
        text = raw.decode()
    except UnicodeDecodeError as e:
        raise UsageError(f"{path}: is not text: {e.reason}", hint="give a file of deploy profile") from e
    return parse(Overlay, text, origin=path)


def write_overlay(overlay: Overlay, path: Path) -> None:
    """Write it whole or not at all: a reader, or a full disk, never finds half of one. Raises UsageError."""
    scratch = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=".new-", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(render(overlay))
            file.flush()
            os.fsync(handle)
        Path(scratch).chmod(0o666 & ~_umask())
        Path(scratch).replace(path)
    except OSError as e:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
        raise UsageError(
            f"{path}: cannot be written: {e.strerror}",
            hint="name a folder that can be written: DEPLOY_DATA for what is kept, --out for a file",
        ) from e


def save(overlay: Overlay, root: Path | None = None) -> Path:
    """Keep an overlay in the data folder; returns its file. Raises UsageError where that cannot be written.

    A machine has a file for each set of runtimes, number of threads and kind of survey; a new one replaces
    that, and whatever else it makes obsolete.
    """
    path = overlay_folder(root) / _file_name(overlay)
    write_overlay(overlay, path)
    kept, _ = kept_overlays(root)
    for other in kept:
        if other.path != path and _obsolete(other.overlay, overlay):
            other.path.unlink(missing_ok=True)
    return path


def kept_overlays(root: Path | None = None) -> tuple[list[Kept], list[str]]:
    """What lies in the data folder, the newest and fullest first, and why files there cannot be read."""
    kept, unreadable = [], []
    for path in sorted(overlay_folder(root).glob("*.json")):
        try:
            kept.append(Kept(path, read_overlay(path)))
        except UsageError as e:
            unreadable.append(f"{e.message}; {e.hint}")
    kept.sort(key=lambda k: (not k.overlay.quick, k.overlay.date), reverse=True)
    return kept, unreadable


def measured_machines() -> list[Overlay]:
    """The named machines whose measurements come with the package, by name of the profile and CPU.

    Raises UsageError where one of these files is damaged.
    """
    return [kept.overlay for kept in shipped_overlays()]


def shipped_overlays() -> list[Kept]:
    """The same, with their files."""
    folder = next((folder for folder in _SHIPPED if folder.is_dir()), None)
    paths = () if folder is None else folder.glob("*.json")
    found = [Kept(path, read_overlay(path)) for path in paths]
    return sorted(found, key=lambda k: (k.overlay.profile, k.overlay.machine.cpu, k.path))


def named_overlay(name: str, root: Path | None = None) -> Kept:
    """Measurements of the machine called so: by its profile, its accelerator or its CPU, or a part of that.

    Raises UsageError where there is none, or several machines are called so.
    """
    everything = [*kept_overlays(root)[0], *shipped_overlays()]
    called = [(k, (_name(k.overlay), k.overlay.profile, k.overlay.machine.cpu)) for k in everything]
    wanted = name.casefold()
    meant = [k for k, names in called if wanted in (n.casefold() for n in names)]
    meant = meant or [k for k, names in called if any(wanted in n.casefold() for n in names)]
    known = ", ".join(dict.fromkeys(f"{_name(k.overlay)} ({k.overlay.profile})" for k in meant or everything))
    if not meant:
        raise UsageError(
            f"no measurements of a machine called '{name}'", hint=f"there are those of {known or 'none'}"
        )
    if len({why_not(k.overlay.machine, meant[0].overlay.machine) for k in meant}) > 1:
        raise UsageError(f"several machines are called '{name}': {known}", hint="give more of the name")
    return meant[0]


def find_overlay(machine: Machine, runtimes: Iterable[Runs], root: Path | None = None) -> Fit:
    """What was measured on this very ``machine`` with these ``runtimes``, each as it would run here.

    Of several that fit, a full survey goes before a quick one, then the newer. A noisy one is used with a
    warning. Overlays of other runtimes than those asked for are passed over.
    """
    kept, reasons = kept_overlays(root)
    chosen: dict[str, Kept] = {}
    costs: list[RuntimeCosts] = []
    for runtime in runtimes:
        unfit: list[str] = []
        for candidate in kept:
            found = candidate.overlay.runtime_named(runtime.name)
            if found is None:
                continue
            why = why_not(candidate.overlay.machine, machine) or _why_not_runtime(found, runtime)
            if not why:
                chosen[runtime.name] = candidate
                costs.append(found)
                break
            unfit.append(f"{candidate.path}: {runtime.name} is not used: {why}; {_AGAIN}")
        else:
            reasons += unfit
    used = {kept.path: kept for kept in chosen.values()}
    warnings = tuple(
        f"{k.path}: measured on a busy machine, spread {k.overlay.noise:.2f}; {_AGAIN} --fresh"
        for k in used.values()
        if k.overlay.noise > TOO_NOISY
    )
    return Fit(
        overlay=_joined([k.overlay for k in used.values()], costs),
        sources=chosen,
        reasons=tuple(reasons),
        warnings=warnings,
    )


def why_not(measured: Machine, here: Machine) -> str:
    """Why what was measured on one machine is not true of another; empty where it is.

    The number of cores does not count: an overlay says with how many threads it was taken.
    """
    if measured.cpu != here.cpu or measured.arch != here.arch:
        return f"measured on {measured.cpu} ({measured.arch}), this is {here.cpu} ({here.arch})"
    if measured.device != here.device:
        return f"measured on {measured.device or 'the CPU'}, this is {here.device or 'the CPU'}"
    lost, new = (
        ", ".join(sorted(set(a) - set(b)))
        for a, b in ((measured.features, here.features), (here.features, measured.features))
    )
    if lost:
        return f"measured with CPU features that are not here: {lost}"
    return f"measured without CPU features that are here: {new}" if new else ""


def _why_not_runtime(measured: RuntimeCosts, here: Runs) -> str:
    if measured.version != here.version:
        return f"measured with version {measured.version}, installed is {here.version}"
    if measured.runner != here.runner:
        return (
            f"measured through runner {measured.runner} of this package, which has number {here.runner} now"
        )
    if measured.threads != here.threads:
        return f"measured with threads = {measured.threads}, wanted are {here.threads}"
    if dict(measured.settings) != dict(here.settings):
        return f"measured with {_said(measured.settings)}, the profile now says {_said(here.settings)}"
    return ""


def _said(settings: Settings) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items()) or "no settings"


def _joined(overlays: list[Overlay], costs: list[RuntimeCosts]) -> Overlay | None:
    """Points of several overlays of one machine as one: as old as the oldest, as noisy as its points."""
    if not overlays:
        return None
    newest = max(overlays, key=lambda o: o.date)
    if len(overlays) == 1 and len(costs) == len(newest.runtime):
        return newest
    facts = {key: fact for o in sorted(overlays, key=lambda o: o.date) for key, fact in o.facts.items()}
    spreads = [cost.spread for runtime in costs for cost in runtime.cost]
    return newest.model_copy(
        update={
            "date": min(o.date for o in overlays),
            "command": "; ".join(dict.fromkeys(o.command for o in overlays)),
            "quick": any(o.quick for o in overlays),
            "seconds": sum(o.seconds for o in overlays),
            "noise": statistics.median(spreads) if spreads else 0.0,
            "facts": facts,
            "runtime": tuple(costs),
        }
    )


def _obsolete(old: Overlay, new: Overlay) -> bool:
    """Whether nothing of the old one would ever be used again."""
    measured = [(r.name, r.threads, r.settings) for r in new.runtime]
    covered = all((r.name, r.threads, r.settings) in measured for r in old.runtime)
    newer = old.date <= new.date and (old.quick or not new.quick)
    return covered and newer and not why_not(old.machine, new.machine)


def _name(overlay: Overlay) -> str:
    return overlay.machine.device or overlay.machine.cpu


def _file_name(overlay: Overlay) -> str:
    machine = overlay.machine
    name = re.sub(r"[^a-z0-9]+", "-", _name(overlay).lower()).strip("-")[:40] or "machine"
    features = tuple(sorted(machine.features))
    identity = digest(machine.model_copy(update={"cores": 1, "features": features}))[:8]
    runtimes = "-".join(sorted(re.sub(r"[^a-z0-9]+", "", r.name.lower()) for r in overlay.runtime))[:60]
    threads = "-".join(str(n) for n in sorted({r.threads for r in overlay.runtime}))
    return f"{name}-{identity}-{runtimes}-{threads}t{'-quick' if overlay.quick else ''}.json"


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

"""``deploy doctor``: whether this machine has what builds need, and what to install where not."""

from __future__ import annotations

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from deploy.cli.options import CacheFolder, Json
from deploy.errors import ToolchainError

if TYPE_CHECKING:
    from deploy.adapter.protocol import Availability

_SPEAKING = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "fphp", "sve",
)  # fmt: skip
"""CPU features that decide how fast networks run, among the hundred that a CPU lists."""

_EXTRAS = {
    "images": ("PIL", "folders of images as data"),
    "micro": ("tflite_micro", "microcontrollers judged by TensorFlow Lite Micro itself"),
}
"""Extra -> the module it brings, and what for."""


@dataclass(frozen=True)
class Check:
    """One finding. ``remedy`` is empty where all is well; ``needed``: without it nothing can be built."""

    name: str
    found: str
    remedy: str = ""
    needed: bool = False


def doctor(cache: CacheFolder = None, json: Json = False) -> None:
    """Look at this machine: CPU, memory, backends, optional packages, cache, counters of energy.

    Ends with exit code 6 where something that builds need is missing.
    """
    from deploy.cli.terminal import write_json

    checks = [*_backends(), *_extras(), _cache(cache), _here(), _energy()]
    broken = any(check.needed and check.remedy for check in checks)
    if json:
        write_json({
            "ok": not broken,
            "machine": dict(_machine()),
            "checks": [
                {"name": c.name, "found": c.found, "remedy": c.remedy, "needed": c.needed} for c in checks
            ],
        })  # fmt: skip
    else:
        _show(checks, broken)
    if broken:
        raise typer.Exit(ToolchainError.exit_code)


def _show(checks: list[Check], broken: bool) -> None:
    from deploy.cli.terminal import Cell, write_facts, write_line

    if broken:
        write_line(("✗ something that builds need is missing", "bad"))
    else:
        write_line(("✓ ready to build", "good"))
    write_line()
    write_facts(_machine(), indent=2)
    write_line()
    rows: list[tuple[str, Cell]] = []
    for check in checks:
        rows.append((check.name, check.found))
        if check.remedy:
            rows.append(("", (check.remedy, "bad" if check.needed else "middling")))
    write_facts(rows, indent=2)


def _machine() -> list[tuple[str, str]]:
    from deploy import __version__
    from deploy.bundle.report import figures
    from deploy.measure.host import host

    here = host()
    features = [feature for feature in _SPEAKING if feature in here.features]
    return [
        ("deploy", __version__),
        ("python", f"{platform.python_version()}  {sys.executable}"),
        ("system", f"{platform.system()} {platform.release()}"),
        ("cpu", f"{here.cpu} ({here.arch})"),
        ("features", ", ".join(features) or "none that speed up networks"),
        ("cores", str(here.cores)),
        ("memory", figures.size(here.memory_bytes)),
    ]


def _backends() -> list[Check]:
    from deploy.adapter.discover import backend_names

    names = backend_names()
    if not names:
        remedy = "reinstall: pip install --force-reinstall deploy-compiler"
        return [Check("backends", "none found", remedy, needed=True)]
    found = [(name, _availability(name)) for name in names]
    usable = any(not isinstance(answer, str) and not answer.missing for _, answer in found)
    return [_backend(name, answer, needed=not usable) for name, answer in found]


def _availability(name: str) -> Availability | str:
    """What the backend says of itself, or why it cannot be asked."""
    from deploy.adapter.discover import find_backend

    try:
        return find_backend(name).available()
    except ToolchainError as e:
        return f"{e.message}; {e.hint}"


def _backend(name: str, found: Availability | str, *, needed: bool) -> Check:
    if isinstance(found, str):
        return Check(f"backend {name}", "cannot be loaded", found, needed)
    version = f"{found.runtime} {found.version}" if found.version else f"{found.runtime} not found"
    return Check(f"backend {name}", version, found.missing, needed and bool(found.missing))


def _extras() -> list[Check]:
    from importlib.util import find_spec

    return [
        Check(f"extra {extra}", f"installed: {use}")
        if find_spec(module)
        else Check(f"extra {extra}", f"not installed: {use}", f"pip install 'deploy-compiler[{extra}]'")
        for extra, (module, use) in _EXTRAS.items()
    ]


def _energy() -> Check:
    """Whether --objective energy can be had. Most machines that are virtual cannot, and lack nothing else."""
    from deploy.measure.energy import find_counters

    try:
        return Check("energy", f"counted by {', '.join(counter.name for counter in find_counters())}")
    except ToolchainError as e:
        return Check("energy", f"{e.message}: no --objective energy", e.hint)


def _cache(folder: Path | None) -> Check:
    from deploy.bundle.report import figures
    from deploy.cache import Cache, default_root

    root = folder or default_root()
    if not _writable(root):
        return Check("cache", f"{root} cannot be written", "set DEPLOY_CACHE or --cache to a writable folder")
    held = Cache(root).info()
    return Check("cache", f"{root}  {held['entries']} entries, {figures.size(held['bytes'])}")


def _here() -> Check:
    folder = Path.cwd()
    if _writable(folder):
        return Check("this folder", f"{folder}  writable")
    return Check("this folder", f"{folder} cannot be written", "build with --out in a writable folder")


def _writable(folder: Path) -> bool:
    """Whether files can be made there, or the folder itself where it is not there yet."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)

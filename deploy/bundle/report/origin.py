"""What a bundle was made from and with, and the commands that check it and make it again."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from deploy.bundle.read import Bundle
from deploy.bundle.report import figures
from deploy.bundle.report.summary import Fact
from deploy.spec.manifest import Manifest


@dataclass(frozen=True)
class File:
    """A file of the bundle, as the manifest vouches for it; ``size`` is empty where it is missing."""

    name: str
    size: str
    sha256: str


@dataclass(frozen=True)
class Command:
    """A command line, to be given in the bundle's folder, and what it does."""

    what: str
    code: str


@dataclass(frozen=True)
class Origin:
    """Where a bundle comes from. ``digest`` stands for all of it but the measurements."""

    digest: str
    facts: tuple[Fact, ...]
    toolchain: tuple[Fact, ...]
    files: tuple[File, ...]
    commands: tuple[Command, ...]


def origin(bundle: Bundle) -> Origin:
    """Where the bundle comes from."""
    manifest = bundle.manifest
    source = manifest.source
    parameters = f"{figures.count(source.parameters)} parameters"
    macs = "" if source.macs is None else f", {figures.count(source.macs)} MACs"
    facts = [
        Fact("target", f"{manifest.target}, built by the profile {manifest.profile}"),
        Fact("runtime", manifest.runtime),
        Fact(
            "model",
            f"{source.name}: operator set {source.opset}, {parameters}{macs}",
        ),
        Fact("model's SHA-256", source.sha256),
        Fact("plan's digest", manifest.plan_sha256),
        Fact("seed", str(manifest.seed)),
    ]
    if source.made_by:
        made_by = ", ".join(f"{name} {number}" for name, number in source.made_by.items())
        facts.insert(4, Fact("captured with", made_by))
    if manifest.calibration is not None:
        facts.insert(4, Fact("calibration's SHA-256", manifest.calibration.sha256))
    return Origin(
        digest=bundle.digest,
        facts=tuple(facts),
        toolchain=tuple(Fact(name, number) for name, number in manifest.toolchain.items()),
        files=tuple(_file(bundle, name, sha256) for name, sha256 in sorted(manifest.files.items())),
        commands=(
            Command("check the files and run the self-test", "deploy verify ."),
            Command("make it again from the same model and data, with the same choices", _rebuild(manifest)),
        ),
    )


def _file(bundle: Bundle, name: str, sha256: str) -> File:
    path = bundle.folder / name
    return File(name, figures.size(path.stat().st_size) if path.is_file() else "", sha256)


def _rebuild(manifest: Manifest) -> str:
    """The build command; the paths of model and data are the reader's own."""
    words = ["deploy", "build", "MODEL", "--target", manifest.target]
    if manifest.calibration is not None and not manifest.calibration.random:
        words += ["--data", "CALIBRATION"]
    elif manifest.calibration is not None:
        words += ["--random-calibration"]
    if manifest.evaluation is not None and manifest.evaluation.role in ("eval", "validation"):
        words += [f"--{manifest.evaluation.role}", manifest.evaluation.role.upper()]
    threads = manifest.options.get("threads")
    if isinstance(threads, int) and threads != 1:
        words += ["--threads", str(threads)]
    words += ["--seed", str(manifest.seed), "--lock", "deploy.lock", "--out", "again"]
    return shlex.join(words)

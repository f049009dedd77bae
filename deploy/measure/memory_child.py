"""The child process that measures one artifact's peak memory: ``python -m`` this, a folder and a request."""

from __future__ import annotations

import gc

gc.disable()  # a third of what a child takes is looking for garbage among what it imports

from deploy.adapter.later import import_later

import_later()  # before anything imports onnx_ir: half of what a child takes

# ruff: noqa: E402
import json
import sys
from pathlib import Path

import numpy as np

from deploy.adapter.child import die_with
from deploy.adapter.discover import find_backend
from deploy.measure.memory import ARTIFACT, FEEDS, INPUT
from deploy.spec.artifact import Artifact
from deploy.spec.document import parse

_RUNS = 3


def _peak_bytes() -> int:
    """High-water mark of this process's resident memory.

    Not getrusage on Linux: there a child starts with the mark of the process that forked it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _child(scratch: Path, request: str) -> None:
    asked = json.loads(request)
    die_with(asked["parent"])
    artifact = parse(Artifact, (scratch / ARTIFACT).read_text(), origin=scratch / ARTIFACT)
    artifact = artifact.model_copy(update={"folder": Path(asked["folder"])})
    backend = find_backend(artifact.backend)
    with np.load(scratch / FEEDS, allow_pickle=False) as archive:
        feeds = {name.removeprefix(INPUT): archive[name] for name in archive.files}
    backend.available()  # loads the runtime's libraries, which every artifact needs alike
    gc.freeze()
    gc.enable()
    before = _resident_bytes()
    with backend.open(artifact, backend.options_type.model_validate(asked["options"])) as runner:
        for _ in range(_RUNS):
            runner.run(feeds)
    # Peaks below what was resident before opening belong to start-up.
    sys.stdout.write(f"{max(0, _peak_bytes() - before)}\n")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2])

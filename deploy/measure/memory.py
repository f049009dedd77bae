"""Peak memory of an artifact, measured in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from deploy.adapter.protocol import Arrays, Options
from deploy.errors import BackendError
from deploy.spec.artifact import Artifact
from deploy.spec.document import parse, render

_RUNS = 3
_TIMEOUT_S = 300


def start_peak_memory(
    artifact: Artifact, options: Options, feeds: Arrays, scratch: Path
) -> subprocess.Popen[str]:
    """Start a child that opens and runs ``artifact``; several may run side by side. See :func:`finish`."""
    scratch.mkdir(parents=True, exist_ok=True)
    np.savez(scratch / "feeds.npz", allow_pickle=False, **dict(feeds))
    (scratch / "artifact.json").write_text(render(artifact))
    request = json.dumps({"folder": str(artifact.folder.resolve()), "options": dict(options)})
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.measure.memory", str(scratch), request],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child: subprocess.Popen[str]) -> int:
    """Bytes that opening and running the artifact added to the child's peak resident memory."""
    out, err = child.communicate(timeout=_TIMEOUT_S)
    if child.returncode != 0:
        last = (err.strip().splitlines() or ["no message"])[-1]
        raise BackendError(
            f"measuring memory failed in a child process: {last}", hint="try again with --no-measure"
        )
    return int(out.split()[-1])


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
    from deploy.adapter.discover import find_backend

    asked = json.loads(request)
    artifact = parse(Artifact, (scratch / "artifact.json").read_text(), origin=scratch / "artifact.json")
    artifact = artifact.model_copy(update={"folder": Path(asked["folder"])})
    backend = find_backend(artifact.backend)
    with np.load(scratch / "feeds.npz", allow_pickle=False) as archive:
        feeds = {name: archive[name] for name in archive.files}
    backend.available()  # loads the runtime's libraries, which every artifact needs alike
    before = _resident_bytes()
    with backend.open(artifact, asked["options"]) as runner:
        for _ in range(_RUNS):
            runner.run(feeds)
    # Peaks below what was resident before opening belong to start-up.
    sys.stdout.write(f"{max(0, _peak_bytes() - before)}\n")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2])

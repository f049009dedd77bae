"""Peak memory of an artifact, measured in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from deploy.adapter.child import die_with
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.artifact import Artifact, Options
from deploy.spec.document import parse, render

_FEEDS, _ARTIFACT = "feeds.npz", "artifact.json"
_INPUT = "input/"  # an input may be called ``file``, as an argument of numpy.savez is
_RUNS = 3
_TIMEOUT_S = 300


def peak_memory(
    contenders: Mapping[str, tuple[Artifact, Options]], feeds: Arrays, scratch: Path
) -> dict[str, int]:
    """Bytes that opening and running each artifact adds to the peak resident memory of a child process.

    The children run side by side. Raises BackendError where one fails or takes longer than five minutes.
    """
    with ExitStack() as stack:
        children = {}
        for name, (artifact, options) in contenders.items():
            children[name] = _start(artifact, options, feeds, scratch / name)
            stack.enter_context(children[name])  # waits for its end and closes its pipes
            stack.callback(children[name].kill)  # before that, if we end early
        return {name: _finish(child) for name, child in children.items()}


def _start(artifact: Artifact, options: Options, feeds: Arrays, scratch: Path) -> subprocess.Popen[str]:
    scratch.mkdir(parents=True, exist_ok=True)
    np.savez(scratch / _FEEDS, allow_pickle=False, **{f"{_INPUT}{name}": a for name, a in feeds.items()})
    (scratch / _ARTIFACT).write_text(render(artifact))
    request = json.dumps(
        {
            "folder": str(artifact.folder.resolve()),
            "options": options.model_dump(mode="json"),
            "parent": os.getpid(),
        }
    )
    return subprocess.Popen(
        # -P: what lies in the working folder is not imported, were it called deploy or json.
        [sys.executable, "-P", "-m", "deploy.measure.memory", str(scratch), request],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(child: subprocess.Popen[str]) -> int:
    try:
        out, err = child.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired as e:
        raise BackendError(
            f"measuring memory took longer than {_TIMEOUT_S} s", hint="try again with --no-measure"
        ) from e
    if child.returncode != 0:
        last = (err.strip().splitlines() or [f"ended with {child.returncode}"])[-1]
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
    die_with(asked["parent"])
    artifact = parse(Artifact, (scratch / _ARTIFACT).read_text(), origin=scratch / _ARTIFACT)
    artifact = artifact.model_copy(update={"folder": Path(asked["folder"])})
    backend = find_backend(artifact.backend)
    with np.load(scratch / _FEEDS, allow_pickle=False) as archive:
        feeds = {name.removeprefix(_INPUT): archive[name] for name in archive.files}
    backend.available()  # loads the runtime's libraries, which every artifact needs alike
    before = _resident_bytes()
    with backend.open(artifact, backend.options_type.model_validate(asked["options"])) as runner:
        for _ in range(_RUNS):
            runner.run(feeds)
    # Peaks below what was resident before opening belong to start-up.
    sys.stdout.write(f"{max(0, _peak_bytes() - before)}\n")


if __name__ == "__main__":
    _child(Path(sys.argv[1]), sys.argv[2])

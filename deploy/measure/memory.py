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

from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError
from deploy.spec.artifact import Artifact, Options
from deploy.spec.document import render

FEEDS, ARTIFACT = "feeds.npz", "artifact.json"
INPUT = "input/"  # an input may be called ``file``, as an argument of numpy.savez is
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
    np.savez(scratch / FEEDS, allow_pickle=False, **{f"{INPUT}{name}": a for name, a in feeds.items()})
    (scratch / ARTIFACT).write_text(render(artifact))
    request = json.dumps(
        {
            "folder": str(artifact.folder.resolve()),
            "options": options.model_dump(mode="json"),
            "parent": os.getpid(),
        }
    )
    return subprocess.Popen(
        # -P: what lies in the working folder is not imported, were it called deploy or json.
        [sys.executable, "-P", "-m", "deploy.measure.memory_child", str(scratch), request],
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

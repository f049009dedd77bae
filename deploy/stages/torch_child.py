"""A PyTorch model captured as an ONNX file, in a process of its own.

Started by `capture.py`; the only place where PyTorch is imported. It answers on what was its stdout with one
JSON object a line: {"digest", "notes"} once the model is there, {"done", "notes"} once everything is written,
{"error", "message", "hint"} instead of either. Between the two it waits for a line with the
folder to write into, or for the end of its stdin.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TextIO

from deploy.adapter.child import die_with
from deploy.errors import DeployError, ModelError, missing_extra
from deploy.stages.torch_factory import find_function, make_program

ONNX, TRIALS = "model.onnx", "trial-{}.npz"
CAPTURES = {"torch": "PyTorch", "onnxscript": "onnxscript"}
"""The packages that capture a model, and what they are called."""


def main(request: dict[str, object], answers: TextIO) -> None:
    """``request`` has path (of a .pt2) or reference (of a function), root, shapes, seed and memory."""
    for package, called in CAPTURES.items():
        if importlib.util.find_spec(package) is None:
            raise missing_extra(called, "torch")
    name, seed, root = str(request["name"]), int(str(request["seed"])), Path(str(request["root"]))
    function = find_function(name, root) if request["path"] is None else None  # before what takes seconds
    import numpy as np
    import torch

    from deploy.frontend import torch_export, torch_program

    torch.set_num_threads(1)
    notes: list[tuple[str, str]] = []
    if request["path"] is not None:
        _limit_memory(int(str(request["memory"])))
        program = torch_program.load(Path(str(request["path"])))
        digest = ""
    else:
        shapes = request["shapes"]
        assert function is not None and isinstance(shapes, dict)
        program = make_program(name, function, shapes, seed, notes)
        digest = torch_program.digest(program)
    notes += torch_program.check(name, program)
    _answer(answers, digest=digest, notes=notes)
    line = sys.stdin.readline().removesuffix("\n")
    if not line:
        return
    folder = Path(line)
    inputs = torch_export.write_onnx(name, program, folder / ONNX)
    for number, arrays in enumerate(torch_export.trials(program, inputs, seed)):
        np.savez(folder / TRIALS.format(number), allow_pickle=False, **arrays)
    _answer(answers, done=True, notes=[])


def _limit_memory(size: int) -> None:
    """What this process may allocate; beyond it PyTorch and Python raise MemoryError."""
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _answer(answers: TextIO, **said: object) -> None:
    answers.write(json.dumps(said) + "\n")
    answers.flush()


def _start() -> int:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the user's code prints goes where messages go
    name = "the model"
    try:
        request = json.loads(sys.argv[1])
        die_with(request["parent"])  # the user's code may run for hours yet
        name = request["name"]
        main(request, answers)
    except DeployError as e:
        _answer(answers, error=type(e).__name__, message=e.message, hint=e.hint)
    except SystemExit as e:
        _answer(
            answers,
            error="ModelError",
            message=f"{name} called sys.exit({e.code})",
            hint="return the model instead",
        )
    except MemoryError:
        error = ModelError(
            f"{name}: reading it takes more memory than its size justifies", hint="export it again"
        )
        _answer(answers, error="ModelError", message=error.message, hint=error.hint)
    return 0


if __name__ == "__main__":
    sys.exit(_start())

"""Exported PyTorch programs: loaded from a ``.pt2`` file, checked, told apart by content.

Runs in a child process only (`deploy/stages/torch_child.py`): the process that builds never imports PyTorch.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.errors import ModelError, UnsupportedError
from deploy.frontend.torch_archive import check_names, check_records

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

_STARTS_SOMETHING = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
)
_BANNED = (*_STARTS_SOMETHING, "pickle.find_class", "socket.connect", "socket.bind")
_FLOAT32 = "deploy chooses precisions itself and starts from float32: call module.float() before the export"


def load(path: Path) -> ExportedProgram:
    """The program in a ``.pt2`` file whose members were admitted by `torch_archive.check_archive`.

    From here on nothing in this process can be unpickled by name, started, or reached over the network: what
    the checks might have missed ends there. Raises ModelError.
    """
    import torch
    import torch.onnx  # what loads lazily would be refused below
    from torch.export.pt2_archive._package import PT2ArchiveReader, load_pt2

    try:
        with PT2ArchiveReader(str(path)) as reader:
            check_names(str(path), reader.get_file_names())
            check_records(str(path), reader.read_bytes)
    except (RuntimeError, AssertionError) as e:
        raise ModelError(f"{path}: a damaged .pt2 file: {brief(e)}", hint="copy it again") from e
    sys.addaudithook(_forbid)
    try:
        with Quiet():
            contents = load_pt2(str(path))
    except Exception as e:  # PyTorch's loader raises whatever a file makes it raise
        raise ModelError(
            f"{path}: PyTorch {torch.__version__} cannot load it: {brief(e)}",
            hint="export it with this version of PyTorch, or export it to ONNX where it was made",
        ) from e
    return contents.exported_programs["model"]


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    if event in _BANNED:
        raise RuntimeError(f"refused: the file led to {event}{arguments[:2]}")


def check(name: str, program: ExportedProgram) -> list[tuple[str, str]]:
    """What to warn of. Raises ModelError or UnsupportedError for what no artifact can do justice to."""
    import torch

    refuse_changes(sorted(program.graph_signature.buffers_to_mutate.values()))
    for parameter, tensor in program.state_dict.items():
        if tensor.device.type == "meta":
            raise ModelError(
                f"{name}: '{parameter}' has no values (device meta)",
                hint="load the weights before the export",
            )
        if tensor.dtype in (torch.float64, torch.bfloat16) or tensor.is_complex():
            raise UnsupportedError(f"{name}: '{parameter}' is {_dtype(tensor)}", hint=_FLOAT32)
    for spec, tensor in zip(input_names(program), placeholders(program), strict=True):
        if isinstance(tensor, torch.Tensor) and tensor.dtype in (torch.float64, torch.bfloat16):
            raise UnsupportedError(f"{name}: input '{spec}' is {_dtype(tensor)}", hint=_FLOAT32)
    if any(tensor.dtype == torch.float16 for tensor in program.state_dict.values()):
        return [
            ("warn", f"{name}: what is float16 stays so and is not quantized: module.float() changes that")
        ]
    return []


def digest(program: ExportedProgram) -> str:
    """SHA-256 (hex) over everything that the program computes with: its graph, its weights, its interface."""
    import torch

    found = hashlib.sha256(f"torch {torch.__version__}".encode())
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            value = node.meta.get("val")
            shape = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, torch.Tensor) else ""
            found.update(f"{node.op} {node.name} {node.target} {node.args} {node.kwargs} {shape}\n".encode())
    ranges = sorted(f"{size} {bounds}" for size, bounds in program.range_constraints.items())
    found.update(f"{program.graph_signature}\n{ranges}\n{program.call_spec}\n".encode())
    tensors = {**program.state_dict, **program.constants}
    for name, tensor in sorted(tensors.items()):
        if isinstance(tensor, torch.Tensor):
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def refuse_changes(buffers: Sequence[str]) -> None:
    """Raises ModelError where running the model changes ``buffers`` of its own."""
    if buffers:
        raise ModelError(
            f"running the model changes its own buffer '{buffers[0]}'"
            + (f" and {len(buffers) - 1} more" if len(buffers) > 1 else ""),
            hint="export it in evaluation mode, model.eval(); what it remembers must be inputs and outputs",
        )


def brief(error: BaseException) -> str:
    """The first line that says something, of a message that may have hundreds."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {said}"[:300] if said else type(error).__name__


class Quiet:
    """PyTorch's warnings and log lines go to the user's eyes only where they are ours to pass on."""

    def __enter__(self) -> None:
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(self._level)
        self._caught.__exit__(None, None, None)


def input_names(program: ExportedProgram) -> list[str]:
    """The arguments that the user feeds, in order; those that are no tensors too."""
    specs = program.graph_signature.input_specs
    return [spec.arg.name for spec in specs if spec.kind.name == "USER_INPUT"]


def placeholders(program: ExportedProgram) -> list[object]:
    """The values that stand for the user's inputs, in order; symbolic sizes in their shapes."""
    wanted = set(input_names(program))
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and n.name in wanted]
    return [n.meta.get("val") for n in nodes]


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")

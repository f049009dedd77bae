"""The model that a command looks at: an ONNX file as it is, a PyTorch model captured as a build does it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.frontend.onnx_file import Source

MODEL_HELP = "An ONNX file, a .pt2 file (torch.export), or package.module:function that makes a PyTorch model"


def open_model(model: Path, shapes: Mapping[str, tuple[int, ...]], cache: Path | None) -> Source:
    """Raises what a build raises while it reads its model."""
    from deploy.frontend.onnx_file import read
    from deploy.frontend.source import kind_of
    from deploy.progress import SILENT

    if kind_of(model) == "onnx":
        return read(model)
    from deploy.stages.capture import open_source
    from deploy.stages.record import open_cache

    with open_cache(cache, SILENT) as store:
        return open_source(model, root=None, shapes=shapes, seed=0, cache=store, progress=SILENT).source

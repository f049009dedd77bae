"""What executes a TensorRT artifact where there is no TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Arrays
from deploy.execute.reference import Session, open_graph


class OnnxRuntimeStandIn(Session):
    """ONNX Runtime on the CPU, node by node in the file's own types. It is not TensorRT.

    Each operation is computed as ONNX defines it, float16 rounded after every node; TensorRT's fused kernels
    round less often. Its speed and memory say nothing of the device. ``executed_by`` is for the manifest.
    """

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        super().__init__(model, optimised=False, threads=threads)
        self.executed_by = f"ONNX Runtime {version('onnxruntime')} on the CPU, standing in for TensorRT"
        self._model = model

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The outputs, and inner values in the type they have in the file.

        Raises KeyError for an inner value that the file lacks.
        """
        inner = [name for name in want if name not in self._names]
        if not inner:
            return super().run(feeds)
        with open_graph(ir.load(self._model), optimised=False, expose=inner) as opened:
            return opened.run(feeds, inner)

"""What executes a TensorRT artifact where there is no TensorRT."""

from __future__ import annotations

from pathlib import Path

from deploy.execute.reference import Session


class OnnxRuntimeStandIn(Session):
    """ONNX Runtime on the CPU, node by node in the file's own types. It is not TensorRT.

    Each operation is computed as ONNX defines it, float16 rounded after every node; TensorRT's fused kernels
    round less often. Its speed and memory say nothing of the device.
    """

    def __init__(self, model: Path, *, threads: int = 1) -> None:
        super().__init__(model, optimised=False, threads=threads)
        self.executed_by += " on the CPU, standing in for TensorRT"

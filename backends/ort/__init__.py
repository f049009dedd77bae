"""ONNX Runtime, on x86 and ARM alike: what differs between them is in the profile."""

from backends.ort.backend import OnnxRuntime

__all__ = ["OnnxRuntime"]

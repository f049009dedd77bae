"""NVIDIA TensorRT: the artifact is an ONNX file and a script; the engine is built on the device itself."""

from backends.tensorrt.backend import TensorRT

__all__ = ["TensorRT"]

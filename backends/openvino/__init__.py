"""OpenVINO: Intel's runtime for x86 CPUs and for the NPU of Core Ultra processors."""

from backends.openvino.backend import OpenVino

__all__ = ["OpenVino"]

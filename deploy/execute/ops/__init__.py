"""Kernels in torch, one function for each ONNX operation; :data:`TABLE` is all there is."""

from __future__ import annotations

from deploy.execute.ops import conv, elementwise
from deploy.execute.optable import join

TABLE = join((conv.ops, elementwise.ops))
"""ONNX operation -> the function that makes its kernel."""

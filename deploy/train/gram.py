"""What a layer's inputs say about rounding its weights: their Gram matrix, and the error to make up for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.ops.conv import pad_spatial

LONGEST = 6144
"""Inputs of one output, up to which their Gram matrix is worth its memory and time."""
PLACES = 16384
"""Places looked at, or four times as many as there are inputs if that is more."""


@dataclass(frozen=True)
class Layer:
    """A node that multiplies by a constant weight: Conv, Gemm, MatMul. ``groups`` share no inputs."""

    node: ir.Node
    weight: str
    source: str
    groups: int
    rows_first: bool
    """Whether the weight's first axis counts outputs; else its last of two does."""

    def packed(self, weight: Tensor) -> Tensor:
        """The weight as (groups, outputs, inputs)."""
        flat = weight.reshape(len(weight), -1) if self.rows_first else weight.T
        return flat.reshape(self.groups, len(flat) // self.groups, -1).contiguous()

    def unpacked(self, packed: Tensor, like: Tensor) -> Tensor:
        """The inverse of `packed` for a weight of the shape of ``like``."""
        if self.rows_first:
            return packed.reshape(like.shape)
        return packed.reshape(like.shape[1], like.shape[0]).T.contiguous()

    def columns(self, x: Tensor, kernel: Sequence[int]) -> Tensor:
        """What one output is computed from, at every place of every sample: (groups, inputs, places)."""
        if self.node.op_type != "Conv":
            return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
        spatial = x.ndim - 2
        attributes = self.node.attributes
        strides = list(attributes.get_ints("strides", [1] * spatial))
        dilations = list(attributes.get_ints("dilations", [1] * spatial))
        x = pad_spatial(x, list(attributes.get_ints("pads", [0] * (2 * spatial))))
        if spatial == 1:
            x, kernel, strides, dilations = x[:, :, None], (1, *kernel), [1, *strides], [1, *dilations]
        found = functional.unfold(x, tuple(kernel), dilation=tuple(dilations), stride=tuple(strides))
        return found.transpose(0, 1).reshape(self.groups, found.shape[1] // self.groups, -1)


def layer_of(node: ir.Node, weight: str) -> Layer | None:
    """``node`` as a layer with this weight; None where its products are not of that form."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    source = node.inputs[0]
    if value is None or value.name != weight or source is None or value.shape is None:
        return None
    shape = value.shape.numpy()
    attributes = node.attributes
    if node.op_type == "Conv" and len(shape) in (3, 4):
        if attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return None
        if math.prod(shape[1:]) > LONGEST:
            return None
        return Layer(node, weight, source.name or "", attributes.get_int("group", 1), True)
    transposed = node.op_type == "Gemm" and attributes.get_int("transB", 0) != 0
    if node.op_type not in ("Gemm", "MatMul") or len(shape) != 2 or attributes.get_int("transA", 0) != 0:
        return None
    if shape[1 if transposed else 0] > LONGEST:
        return None
    return Layer(node, weight, source.name or "", 1, transposed)


def gram(
    layer: Layer, weight: Tensor, exact: Sequence[Tensor], given: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """H = E[x x'] (groups, n, n) of the inputs as they come, and r = E[W (exact - x) x'] (groups, rows, n).

    ``exact`` and ``given`` are the layer's inputs in batches, in float and as they come. Of many places some
    are drawn, the same in both.
    """
    rows = layer.packed(weight)
    length = rows.shape[2]
    share = -(-max(PLACES, 4 * length) // len(given))
    total = torch.zeros(layer.groups, length, length)
    missed = torch.zeros_like(rows)
    count = 0
    for wanted, found in zip(exact, given, strict=True):
        columns, aims = (layer.columns(x, weight.shape[2:]) for x in (found, wanted))
        if columns.shape[2] > share:
            drawn = torch.randperm(columns.shape[2], generator=generator)[:share]
            columns, aims = columns[:, :, drawn], aims[:, :, drawn]
        across = columns.transpose(1, 2)
        total += columns @ across
        missed += rows @ (aims - columns) @ across
        count += columns.shape[2]
    return total / count, missed / count

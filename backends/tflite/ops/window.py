"""Where the windows of a convolution or pooling lie: TFLite knows SAME and VALID; else it is padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter, Tensor
from backends.tflite.layout import NHWC
from backends.tflite.reading import Unsupported
from deploy.spec.plan import QuantParams


@dataclass(frozen=True)
class Window:
    """Height and width each; ``pads`` top, left, bottom, right, what SAME does not cover."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    same: bool

    @property
    def padding(self) -> str:
        return "SAME" if self.same else "VALID"

    @property
    def explicit(self) -> bool:
        """Whether zeros have to be put around the image first."""
        return not self.same and any(self.pads)


def window(node: ir.Node, out: Emitter, kernel: Sequence[int]) -> Window:
    """The windows of a node whose first input is an image. Raises Unsupported for one or three axes."""
    shape = out.shape(node.inputs[0])
    if len(shape) != 4 or len(kernel) != 2:
        raise Unsupported("only images (4 axes, a window over 2) are written")
    strides = node.attributes.get_ints("strides", (1, 1))
    dilations = node.attributes.get_ints("dilations", (1, 1))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    pads = _pads(node, shape[2:], reach, strides)
    made = tuple(
        size if size < 0 else (size + pads[i] + pads[i + 2] - reach[i]) // strides[i] + 1
        for i, size in enumerate(shape[2:])
    )
    if node.attributes.get_int("ceil_mode", 0) and made != out.shape(node.outputs[0])[2:]:
        raise Unsupported("ceil_mode makes a window here that reaches beyond the padded image")
    same = any(pads) and all(
        _is_same(size, reach[i], strides[i], pads[i], pads[i + 2]) for i, size in enumerate(shape[2:])
    )
    return Window(
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1], pads[2], pads[3]),
        same,
    )


def padded(out: Emitter, index: int, found: Window, params: QuantParams | None) -> int:
    """The tensor with zeros around it, where SAME does not say where they are; stored channels last."""
    if not found.explicit:
        return index
    top, left, bottom, right = found.pads
    if min(found.pads) < 0:
        raise Unsupported("negative pads")
    tensor = out.tensors[index]
    widths = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
    shape = tuple(
        size if size < 0 else size + int(low + high)
        for size, (low, high) in zip(tensor.shape, widths, strict=True)
    )
    made = Tensor(f"{tensor.name}/padded", shape, tensor.dtype, NHWC, params)
    given = out.numbers(widths, f"{tensor.name}/pads")
    return out.inner("PAD", [index, given], made, version=1 if params is None else 2)


def _pads(node: ir.Node, sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]) -> list[int]:
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto == "NOTSET":
        return list(node.attributes.get_ints("pads", (0, 0, 0, 0)))
    if auto == "VALID":
        return [0, 0, 0, 0]
    if -1 in sizes:
        raise Unsupported("auto_pad of an image of free size")
    totals = [max((-(-s // t) - 1) * t + r - s, 0) for s, t, r in zip(sizes, strides, reach, strict=True)]
    small = [total // 2 for total in totals]
    large = [total - half for total, half in zip(totals, small, strict=True)]
    return [*small, *large] if auto == "SAME_UPPER" else [*large, *small]


def _is_same(size: int, reach: int, stride: int, before: int, after: int) -> bool:
    """Whether TFLite's SAME puts the windows here: all that is missing, the smaller half before.

    For a free size it does where the stride is 1.
    """
    if size < 0:
        return stride == 1 and before == (reach - 1) // 2 and before + after == reach - 1
    total = max((-(-size // stride) - 1) * stride + reach - size, 0)
    return before == total // 2 and after == total - total // 2

"""Where the windows of a convolution or pooling lie: TFLite knows SAME and VALID; else it is padded first.

A signal is stored as an image of one row, so that windows always lie over two axes or three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import ONE_ROW, Order, channels_last
from backends.tflite.network import Tensor
from deploy.adapter.optable import Unsupported

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """By spatial axis as stored. ``begins`` and ``ends`` are what has to lie around the image of ``sizes``.

    ``declared`` are the pads at the end that the node names: ends can be less, where strides leave some out,
    or more, where ceil_mode lets a window reach beyond. With ``same`` TFLite finds them itself.
    """

    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    begins: Sizes
    ends: Sizes
    declared: Sizes
    sizes: Sizes
    made: Sizes
    same: bool

    @property
    def padding(self) -> str:
        return "SAME" if self.same else "VALID"

    @property
    def explicit(self) -> bool:
        """Whether numbers have to be put around the image first."""
        return not self.same and any((*self.begins, *self.ends))

    @property
    def around(self) -> bool:
        """Whether any window reaches beyond the image."""
        return self.same or self.explicit

    @property
    def reach(self) -> Sizes:
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def by_pads(self) -> Window:
        """The same windows, found without SAME. Raises Unsupported where a size is free."""
        if self.same and any(self.strides[i] > 1 for i, size in enumerate(self.sizes) if size < 0):
            raise Unsupported(
                f"how far its windows reach beyond an image of free size is unknown: {FIX_SIZES}"
            )
        return replace(self, same=False)

    def settings(self, activation: str = "NONE") -> dict[str, int | float | bool | str]:
        """Options that convolutions over two axes share."""
        return {
            "padding": self.padding,
            "strideH": self.strides[0],
            "strideW": self.strides[1],
            "dilationHFactor": self.dilations[0],
            "dilationWFactor": self.dilations[1],
            "fusedActivationFunction": activation,
        }


def image_order(rank: int) -> Order:
    """How what windows slide over is stored. Raises Unsupported for what is no signal, image or volume."""
    if not 3 <= rank <= 5:
        raise Unsupported("only signals, images and volumes (3 to 5 axes) have windows")
    return ONE_ROW if rank == 3 else channels_last(rank)


def window(node: ir.Node, out: Emitter, kernel: Sequence[int]) -> Window:
    """The windows of a node over its first input. Raises Unsupported where TFLite cannot lay them so."""
    shape = out.shape(node.inputs[0])
    count = len(kernel)
    image_order(len(shape))
    if len(shape) != count + 2:
        raise Unsupported("its windows have other axes than its input")
    strides = _given(node, "strides", count, 1)
    dilations = _given(node, "dilations", count, 1)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    auto = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    pads = _given(node, "pads", 2 * count, 0) if auto == "NOTSET" else (0,) * (2 * count)
    if min(pads) < 0:
        raise Unsupported("negative pads")
    made = out.shape(node.outputs[0])
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    axes = [
        _axis(shape[2 + i], made[2 + i], reach[i], strides[i], (pads[i], pads[count + i]), auto, ceil)
        for i in range(count)
    ]
    sizes, made = shape[2:], made[2:]
    if count == 1:
        axes.insert(0, _Axis(0, 0, 0, same=True))
        kernel, strides, dilations, sizes, made = (
            (1, *kernel),
            (1, *strides),
            (1, *dilations),
            (1, *sizes),
            (1, *made),
        )
    same = all(axis.same for axis in axes) and any(axis.begin or axis.end or not axis.known for axis in axes)
    if not same and not all(axis.known for axis in axes):
        raise Unsupported(f"auto_pad of an image of free size: {FIX_SIZES}")
    begins, ends, declared = (
        (axis.begin for axis in axes),
        (axis.end for axis in axes),
        (axis.declared for axis in axes),
    )
    return Window(
        tuple(kernel), strides, dilations, tuple(begins), tuple(ends), tuple(declared), sizes, made, same
    )


@dataclass(frozen=True)
class _Axis:
    """What lies around one axis, and whether TFLite's SAME puts the windows there; unknown if only it can."""

    begin: int
    end: int
    declared: int
    same: bool
    known: bool = True


def _axis(
    size: int, made: int, reach: int, stride: int, pads: tuple[int, int], auto: str, ceil: bool
) -> _Axis:
    begin, end = pads
    if auto.startswith("SAME"):
        if size < 0 and stride > 1:
            if auto == "SAME_LOWER":
                raise Unsupported(f"auto_pad SAME_LOWER of an image of free size: {FIX_SIZES}")
            return _Axis(0, 0, 0, same=True, known=False)
        total = reach - 1 if size < 0 else max((-(-size // stride) - 1) * stride + reach - size, 0)
        begin = total // 2 if auto == "SAME_UPPER" else total - total // 2
        end = total - begin
    if size < 0:
        if ceil and stride > 1:
            raise Unsupported(f"ceil_mode with an image of free size: {FIX_SIZES}")
        return _Axis(begin, end, end, stride == 1 and begin == (reach - 1) // 2 and begin + end == reach - 1)
    room = size + begin + end - reach
    count = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (count - 1) * stride >= size + begin:
        count -= 1  # a window that would begin in the padding behind
    if count < 1:
        raise Unsupported("the window is larger than the padded image")
    if made not in (-1, count):
        raise Unsupported(f"its result is said to have {made} places where its windows make {count}")
    made = count
    last = (made - 1) * stride + reach - size
    same = made == -(-size // stride) and begin == max(last, 0) // 2
    return _Axis(begin, max(last - begin, 0), end, same)


def _given(node: ir.Node, name: str, count: int, otherwise: int) -> tuple[int, ...]:
    given = tuple(node.attributes.get_ints(name, ())) or (otherwise,) * count
    if len(given) != count:
        raise Unsupported(f"{name} for other axes than its windows have")
    return given


def padded(out: Emitter, index: int, found: Window, *, lowest: bool = False) -> int:
    """The tensor with zeros around it, where SAME does not say where they are; stored channels last.

    With ``lowest`` the lowest number stands there, by PADV2, which XNNPACK does not take.
    """
    if not found.explicit:
        return index
    tensor = out.tensors[index]
    widths = np.array([(0, 0), *zip(found.begins, found.ends, strict=True), (0, 0)], np.int32)
    shape = [
        size if size < 0 else size + int(sum(pair)) for size, pair in zip(tensor.shape, widths, strict=True)
    ]
    read = [index, out.numbers(widths, f"{tensor.name}/pads")]
    if lowest:
        whole = tensor.dtype != "float32"
        number = np.array(np.iinfo(tensor.dtype).min if whole else -np.inf, tensor.dtype)
        fill = Tensor(f"{tensor.name}/lowest", (), tensor.dtype, (), tensor.params, number)
        read.append(out.add(fill))
    return out.step(
        "PADV2" if lowest else "PAD",
        read,
        shape,
        dtype=tensor.dtype,
        order=tensor.order,
        params=tensor.params,
        version=1 if tensor.params is None else 2,
    )

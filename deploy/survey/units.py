"""What a survey measures: for every kernel class the sizes that keyword, CIFAR and ImageNet networks have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir

from deploy.spec.overlay import KernelClass
from deploy.survey.unit import KEPT_FLOAT, Extend, Shape, Sketch, Unit


def units(*, quick: bool = False) -> list[Unit]:
    """All units, those that others need taken off first."""
    listed = [
        *_overhead(), *_elementwise(), *_windows(), *_products(), *_convolutions(), *_rows(), *_moves(),
        *_recurrent(), *_changes(),
    ]  # fmt: skip
    return [unit for unit in listed if unit.quick or not quick]


def _image(channels: int, size: int) -> Shape:
    return ("n", channels, size, size)


def _overhead() -> list[Unit]:
    return [
        Unit("overhead", "one tiny operation", ("n", 8), lambda s, v: s.node("LeakyRelu", [v]), quick=True)
    ]


def _conv(channels: int, kernel: int, groups: int = 1, *, name: str = "") -> Extend:
    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        depth = channels // groups * kernel * kernel
        weight = sketch.weight(channels, channels // groups, kernel, kernel, depth=depth)
        pads = [kernel // 2] * 4
        made = sketch.node(
            "Conv", [value, weight, sketch.weight(channels)], name=name, group=groups, pads=pads,
            kernel_shape=[kernel, kernel],
        )  # fmt: skip
        return sketch.node("Relu", [made], name=name)

    return extend


def _convolutions() -> list[Unit]:
    found = []
    # Channels, size, and whether the short survey has it: of keyword, CIFAR and ImageNet networks.
    for channels, size, quick in (
        (16, 32, True), (32, 16, False), (64, 8, True), (64, 32, True), (128, 16, False), (256, 8, False),
        (512, 4, True), (64, 56, False), (24, 24, False), (20, 12, False), (8, 32, False),
    ):  # fmt: skip
        text = f"3x3, {channels} channels, {size}x{size}"
        found.append(Unit("conv", text, _image(channels, size), _conv(channels, 3), quick))
    found.append(Unit("conv", "5x5, 32 channels, 14x14", _image(32, 14), _conv(32, 5)))
    for channels, size, quick in (
        (16, 48, True), (32, 24, False), (64, 12, True), (64, 32, False), (128, 14, True), (256, 7, False),
        (512, 7, True), (24, 28, True), (72, 12, False), (200, 6, False), (20, 20, False), (16, 1, False),
        (64, 1, False), (240, 1, False),
    ):  # fmt: skip
        text = f"1x1, {channels} channels, {size}x{size}"
        found.append(Unit("pointwise", text, _image(channels, size), _conv(channels, 1), quick))
    for channels, size, kernel, quick in (
        (16, 48, 3, True), (64, 12, 3, True), (64, 32, 3, False), (128, 14, 3, True), (256, 7, 3, False),
        (512, 7, 3, False), (24, 28, 3, False), (72, 12, 5, False), (200, 6, 5, False), (64, 12, 5, True),
    ):  # fmt: skip
        text = f"{kernel}x{kernel}, {channels} channels, {size}x{size}"
        extend = _conv(channels, kernel, channels)
        found.append(Unit("depthwise", text, _image(channels, size), extend, quick))
    for channels, size, groups in ((64, 16, 4), (128, 14, 32), (256, 7, 8)):
        text = f"3x3, {groups} groups, {channels} channels, {size}x{size}"
        found.append(Unit("grouped", text, _image(channels, size), _conv(channels, 3, groups)))
    for channels, size, quick in ((16, 32, True), (64, 16, False), (128, 8, False)):
        text = f"4x4 by 2, {channels} channels, to {size}x{size}"
        found.append(Unit("transposed", text, _image(channels, size), _transposed(channels), quick))
    # Input channels and sizes, output channels, kernel, stride: of images, then of spectrograms and digits.
    for read, made, window, stride, quick in (
        ((3, 32, 32), 16, (3, 3), 1, True), ((3, 64, 64), 32, (3, 3), 2, False),
        ((3, 32, 32), 64, (3, 3), 1, False), ((3, 96, 96), 8, (3, 3), 2, False),
        ((3, 112, 112), 64, (7, 7), 2, True), ((1, 22, 22), 64, (10, 10), 2, True),
        ((1, 49, 10), 64, (10, 4), 1, False), ((1, 28, 28), 32, (3, 3), 1, False),
    ):  # fmt: skip
        text = f"{_by(window)} by {stride}, {read[0]} to {made} channels, {_by(read[1:])}"
        found.append(Unit("stem", text, ("n", *read), _stem(read[0], made, window, stride), quick))
    return found


def _transposed(channels: int) -> Extend:
    """To half the size by pooling and back."""

    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        small = sketch.node("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
        weight = sketch.weight(channels, channels, 4, 4, depth=channels * 4)
        return sketch.node(
            "ConvTranspose", [small, weight, sketch.weight(channels)], kernel_shape=[4, 4], strides=[2, 2],
            pads=[1, 1, 1, 1],
        )  # fmt: skip

    return extend


def _stem(read: int, made: int, kernel: tuple[int, int], stride: int) -> Extend:
    """Side by side on the image, their results added up."""

    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        weight = sketch.weight(made, read, *kernel, depth=read * kernel[0] * kernel[1])
        result = sketch.node(
            "Conv", [sketch.first, weight, sketch.weight(made)], strides=[stride] * 2,
            pads=[kernel[0] // 2, kernel[1] // 2] * 2, kernel_shape=kernel,
        )  # fmt: skip
        result = sketch.node("Relu", [result])
        return result if value is sketch.first else sketch.node("Add", [value, result])

    return extend


def _by(sizes: tuple[int, int]) -> str:
    return f"{sizes[0]}x{sizes[1]}"


def _products() -> list[Unit]:
    found = []
    for rows, size, quick in (
        (1, 64, True), (1, 76, False), (1, 128, False), (1, 256, True), (1, 1024, True), (1, 2048, False),
        (20, 76, False), (49, 128, False), (98, 64, True), (98, 256, False), (128, 512, True),
        (16, 32, False),
    ):  # fmt: skip
        text = f"{rows} rows, {size} by {size}"
        found.append(Unit("gemm", text, _rows_of(rows, size), _gemm(rows, size, size), quick))
    for rows, narrow, wide in ((98, 64, 256), (1, 512, 10)):
        text = f"{rows} rows, {narrow} to {wide} and back"
        found.append(Unit("gemm", text, _rows_of(rows, narrow), _expand(rows, narrow, wide)))
    for heads, size, quick in ((1, 64, False), (1, 98, True), (4, 64, False), (8, 196, False)):
        text = f"{heads} heads, {size} by {size}"
        found.append(Unit("batched", text, ("n", heads, size, size), _batched, quick))
    return found


def _rows_of(rows: int, width: int) -> Shape:
    return ("n", width) if rows == 1 else ("n", rows, width)


def _gemm(rows: int, before: int, after: int) -> Extend:
    """A classifier's Gemm, or a transformer's MatMul with its bias."""

    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        weight, bias = sketch.weight(before, after, depth=before), sketch.weight(after)
        if rows == 1:
            return sketch.node("Relu", [sketch.node("Gemm", [value, weight, bias])])
        return sketch.node("Add", [sketch.node("MatMul", [value, weight]), bias])

    return extend


def _expand(rows: int, narrow: int, wide: int) -> Extend:
    there, back = _gemm(rows, narrow, wide), _gemm(rows, wide, narrow)
    return lambda s, v: back(s, there(s, v))


def _batched(sketch: Sketch, value: ir.Value) -> ir.Value:
    return sketch.node("MatMul", [value, sketch.first])


_SIZES: tuple[tuple[int, int, bool], ...] = ((16, 8, True), (64, 12, False), (64, 32, True), (128, 56, False))
"""Channels and extent of images for what costs by the byte: 4 KB to 1.6 MB."""
_ROW = (64, 1, True)
"""A row, as each step of a recurrent layer has some: what an operation costs whatever its size."""


def _elementwise() -> list[Unit]:
    found = []
    kinds: tuple[tuple[KernelClass, str, Extend], ...] = (
        ("elementwise", "Add", lambda s, v: s.node("Add", [v, s.first])),
        ("activation", "LeakyRelu", lambda s, v: s.node("LeakyRelu", [v])),
        ("hard", "HardSwish", lambda s, v: s.node("HardSwish", [v])),
        ("transcendental", "Tanh", lambda s, v: s.node("Tanh", [v])),
        ("transcendental", "Gelu", lambda s, v: s.node("Gelu", [v])),
    )
    for op, word, extend in kinds:
        for channels, size, quick in (_ROW, *_SIZES):
            text = f"{word}, {channels} channels, {size}x{size}"
            found.append(Unit(op, text, _image(channels, size), extend, quick and word != "Gelu"))
    for channels, size in ((16, 24), (72, 12)):
        text = f"Mul by one number a channel, {channels} channels, {size}x{size}"
        found.append(Unit("elementwise", text, _image(channels, size), _scaled))
    return found


def _scaled(sketch: Sketch, value: ir.Value) -> ir.Value:
    """As squeeze-and-excite does it."""
    return sketch.node("Mul", [value, sketch.node("GlobalAveragePool", [value])])


def _windows() -> list[Unit]:
    found = []
    for channels, size, quick in _SIZES[:3]:
        where = f"{channels} channels, {size}x{size}"
        image = _image(channels, size)
        found.append(Unit("pool", f"MaxPool 3x3, {where}", image, _pool("MaxPool"), quick))
        found.append(Unit("pool", f"AveragePool 3x3, {where}", image, _pool("AveragePool")))
        found.append(Unit("reduce", f"GlobalAveragePool, {where}", image, _reduced, quick, _not_reduced))
        found.append(
            Unit("resize", f"nearest by 2, to {where}", (1, *image[1:]), _resized, quick, also=("pool",))
        )
    return found


def _pool(op: str) -> Extend:
    return lambda s, v: s.node(op, [v], kernel_shape=[3, 3], pads=[1] * 4)


def _reduced(sketch: Sketch, value: ir.Value) -> ir.Value:
    mean = sketch.node("GlobalAveragePool", [value])
    return _pool("MaxPool")(sketch, sketch.node("Add", [value, mean]))


def _not_reduced(sketch: Sketch, value: ir.Value) -> ir.Value:
    """The means are the same each time, and so computed once."""
    if "mean" not in sketch.once:
        sketch.once["mean"] = sketch.node("GlobalAveragePool", [sketch.first])
    return _pool("MaxPool")(sketch, sketch.node("Add", [value, sketch.once["mean"]]))


def _resized(sketch: Sketch, value: ir.Value) -> ir.Value:
    small = sketch.node("MaxPool", [value], kernel_shape=[2, 2], strides=[2, 2])
    empty = sketch.constant(np.zeros(0, np.float32))
    scales = sketch.constant(np.array([1, 1, 2, 2], np.float32))
    return sketch.node(
        "Resize", [small, empty, scales], mode="nearest", coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )  # fmt: skip


def _rows() -> list[Unit]:
    found = []
    for rows, width, quick in ((98, 64, True), (98, 98, False), (196, 196, False), (64, 768, True)):
        where = f"{rows} rows of {width}"
        shape: Shape = ("n", rows, width)
        found.append(Unit("softmax", where, shape, lambda s, v: s.node("Softmax", [v], axis=-1), quick))
        found.append(Unit("norm", f"LayerNormalization, {where}", shape, _normed(width), quick))
    return found


def _normed(width: int) -> Extend:
    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        scale = sketch.constant(np.ones(width, np.float32))
        return sketch.node("LayerNormalization", [value, scale, sketch.weight(width)], axis=-1)

    return extend


def _moves() -> list[Unit]:
    found = []
    for channels, size, quick in (_ROW, (16, 16, True), (64, 16, False), (128, 28, False)):
        text = f"halves of {channels} channels swapped, {size}x{size}"
        image = _image(channels, size)
        found.append(Unit("concat", text, image, _swapped(channels // 2), quick, also=("move",)))
    for size, quick in ((64, True), (98, False), (256, False)):
        unit = Unit("transpose", f"{size} by {size}", ("n", size, size), _turned(size), quick, _product(size))
        found.append(unit)
    return found


def _swapped(half: int) -> Extend:
    """Two slices and a Concat."""

    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        parts = []
        for start in (half, 0):
            ends = [sketch.constant(np.array([n], np.int64)) for n in (start, start + half, 1)]
            parts.append(sketch.node("Slice", [value, *ends]))
        return sketch.node("Concat", parts, axis=1)

    return extend


def _turned(size: int) -> Extend:
    """Transpose in front of a product: alone it would be merged with the next."""

    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        return _product(size)(sketch, sketch.node("Transpose", [value], perm=[0, 2, 1]))

    return extend


def _product(size: int) -> Extend:
    return lambda s, v: s.node("MatMul", [v, s.weight(size, size, depth=size)])


def _recurrent() -> list[Unit]:
    found = []
    for op, gates, steps, size, quick in (
        ("GRU", 3, 20, 76, True), ("LSTM", 4, 20, 64, False), ("GRU", 3, 50, 128, False),
        ("LSTM", 4, 50, 256, False),
    ):  # fmt: skip
        text = f"{op}, {steps} steps, {size} wide"
        found.append(Unit("recurrent", text, (steps, 1, size), _layer(op, gates, size, after=1), quick))
    for steps, size, quick in ((20, 76, True), (50, 128, False)):
        text = f"GRU, reset before the product, {steps} steps, {size} wide"
        found.append(Unit("gru", text, (steps, 1, size), _layer("GRU", 3, size, after=0), quick))
    return found


def _layer(op: str, gates: int, size: int, *, after: int) -> Extend:
    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        weights = [sketch.weight(1, gates * size, size, depth=size) for _ in range(2)]
        operands = [value, *weights, sketch.weight(1, 2 * gates * size)]
        if op == "GRU":
            made = sketch.node(op, operands, hidden_size=size, linear_before_reset=after)
        else:
            made = sketch.node(op, operands, hidden_size=size)
        return sketch.node("Squeeze", [made, sketch.constant(np.array([1], np.int64))])

    return extend


def _changes() -> list[Unit]:
    """INT8 and float convolutions in turn: a change of form behind each."""
    found = []
    for channels, size, quick in ((16, 32, True), (64, 12, False), (64, 32, True), (24, 24, False)):
        text = f"{channels} channels, {size}x{size}"
        image, plain = _image(channels, size), _conv(channels, 1)
        found.append(Unit("convert", text, image, _changing(channels), quick, _twice(plain)))
    return found


def _changing(channels: int) -> Extend:
    def extend(sketch: Sketch, value: ir.Value) -> ir.Value:
        value = _conv(channels, 1)(sketch, value)
        return _conv(channels, 1, name=KEPT_FLOAT)(sketch, value)

    return extend


def _twice(unit: Extend) -> Extend:
    return lambda s, v: unit(s, unit(s, v))


def separated(unit: Unit) -> Unit:
    """The unit with a pool behind it, which no runtime merges with it."""
    pool = _pool("MaxPool")
    return replace(unit, extend=lambda s, v: pool(s, unit.extend(s, v)), without=pool)

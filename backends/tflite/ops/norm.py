"""Normalisations, spelled out in operators that XNNPACK takes, over axes as they are stored.

They stay float: as INT8 their steps would split the delegated graph.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES
from backends.tflite.layout import Order, channels_last, plain
from backends.tflite.network import Options
from backends.tflite.ops.elementwise import elementwise, numbers_of, operand, term
from backends.tflite.optable import OpTable
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported

ops = OpTable()

_TINY = float(np.finfo(np.float32).tiny)


@ops.lower("BatchNormalization")
def batch_normalization(node: ir.Node, out: Emitter) -> None:
    """A product and a sum for each channel, where no convolution took it in."""
    arrays = [numbers_of(out, value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays):
        raise Unsupported("its parameters must be constants")
    if node.attributes.get_int("training_mode", 0) or any(value.name for value in node.outputs[1:]):
        raise Unsupported("it normalises by the batch, as in training")
    scale, shift, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    x = Term(out, out.read(node.inputs[0], _image_order(node, out)))
    factors, shifts = (_of_channels(out, x, array) for array in (factor, shift - mean * factor))
    _last(node, out, "ADD", x * factors, shifts)


@ops.lower("LayerNormalization")
def layer_normalization(node: ir.Node, out: Emitter) -> None:
    x, order, places = _trailing(node, out)
    normal, mean, inverse = _normal(x, places, node.attributes.get_float("epsilon", 1e-5))
    for result, made in zip(node.outputs[1:], (mean, inverse), strict=False):
        if result.name:
            made.becomes(result)
    _scaled(node, out, normal, order)


@ops.lower("RMSNormalization")
def rms_normalization(node: ir.Node, out: Emitter) -> None:
    x, order, places = _trailing(node, out)
    power = x.square().reduced("MEAN", places) + node.attributes.get_float("epsilon", 1e-5)
    _scaled(node, out, x * power.apply("RSQRT"), order)


@ops.lower("InstanceNormalization")
def instance_normalization(node: ir.Node, out: Emitter) -> None:
    order = _image_order(node, out)
    x = Term(out, out.read(node.inputs[0], order))
    places = [place for place, axis in enumerate(order) if axis > 1]
    normal, _, _ = _normal(x, places, node.attributes.get_float("epsilon", 1e-5))
    _by_channel(node, out, normal)


@ops.lower("GroupNormalization")
def group_normalization(node: ir.Node, out: Emitter) -> None:
    """The channels of a group lie together: (N, groups, all). Channels last they do not: there each channel's
    mean is taken, and the mean of these in each group is a product with a constant matrix."""
    value = node.inputs[0]
    order = _image_order(node, out)
    rank = len(order)
    x = Term(out, out.read(value, order))
    sizes = out.shape(value)
    groups = node.attributes.get_int("num_groups", 1)
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    if sizes[1] < 0:
        raise Unsupported(f"the number of its channels is free: {FIX_SIZES}")
    if order != plain(rank):
        _by_groups(node, out, x, groups, epsilon)
        return
    pixels = int(np.prod(sizes[2:])) if min(sizes[2:], default=1) > 0 else -1
    split = (sizes[0], groups, sizes[1] // groups * pixels if pixels > 0 else -1)
    if split.count(-1) > 1 or x.shape.count(-1) > 1:
        raise Unsupported("more than one size of it is free")
    normal, _, _ = _normal(x.reshaped(split), (2,), epsilon)
    _by_channel(node, out, normal.reshaped(x.shape, order))


def _by_groups(node: ir.Node, out: Emitter, x: Term, groups: int, epsilon: float) -> None:
    """Of what is stored channels last. The scale is put to the standard deviation, which is small."""
    scale, bias = (numbers_of(out, value) for value in node.inputs[1:3])
    if scale is None or bias is None:
        raise Unsupported("its scale and bias must be constants")
    channels = x.shape[-1]
    member = np.repeat(np.eye(groups, dtype=np.float32), channels // groups, axis=0)
    pixels = range(1, len(x.shape) - 1)

    def averaged(term: Term, added: float) -> Term:
        """The mean over pixels and group, by channel."""
        small = term.reduced("MEAN", pixels)
        order = out.tensors[small.index].order
        for name, matrix, shift in (
            ("groups", member.T * (groups / channels), 0.0), ("channels", member, added)
        ):  # fmt: skip
            weights = out.numbers(np.ascontiguousarray(matrix, np.float32), f"{out.node}/{name}")
            bias = out.numbers(np.full(len(matrix), shift, np.float32), f"{out.node}/{name}/bias")
            options: Options = (
                "FullyConnectedOptions", {"fusedActivationFunction": "NONE", "keepNumDims": True}
            )  # fmt: skip
            shape = (*small.shape[:-1], len(matrix))
            given = [small.index, weights, bias]
            small = Term(out, out.step("FULLY_CONNECTED", given, shape, options, order=order, version=5))
        return small

    centred = x - averaged(x, 0.0)
    inverse = averaged(centred.square(), epsilon).apply("RSQRT")
    scaled = centred * (inverse * _of_channels(out, inverse, scale))
    _last(node, out, "ADD", scaled, _of_channels(out, scaled, bias))


@ops.lower("MeanVarianceNormalization")
def mean_variance_normalization(node: ir.Node, out: Emitter) -> None:
    """By the standard deviation and 1e-9, as ONNX's own function has it."""
    x = term(node, out)
    order = out.tensors[x.index].order
    axes = node.attributes.get_ints("axes", (0, 2, 3))
    places = [order.index(axis % len(order)) for axis in axes]
    centred = x - x.reduced("MEAN", places)
    deviation = centred.square().reduced("MEAN", places).sqrt()
    (centred / (deviation + 1e-9)).becomes(node.outputs[0])


@ops.lower("LpNormalization")
def lp_normalization(node: ir.Node, out: Emitter) -> None:
    """Nothing but zeros stays zeros."""
    x = term(node, out)
    order = out.tensors[x.index].order
    places = [order.index(node.attributes.get_int("axis", -1) % len(order))]
    if node.attributes.get_int("p", 2) == 1:
        norm = x.abs().reduced("SUM", places).at_least(_TINY)
    else:
        norm = x.square().reduced("SUM", places).at_least(_TINY).sqrt()
    (x / norm).becomes(node.outputs[0])


@ops.lower("LRN")
def lrn(node: ir.Node, out: Emitter) -> None:
    """Over neighbouring channels, as many on either side."""
    rank, size = len(out.shape(node.inputs[0])), node.attributes.get_int("size", 1)
    if rank != 4 or size % 2 == 0:
        raise Unsupported("TFLite has it for images only, over an odd number of channels")
    options: dict[str, int | float | bool | str] = {
        "radius": size // 2,
        "bias": node.attributes.get_float("bias", 1.0),
        "alpha": node.attributes.get_float("alpha", 1e-4) / size,
        "beta": node.attributes.get_float("beta", 0.75),
    }
    order = channels_last(4)
    source = out.read(node.inputs[0], order)
    table = "LocalResponseNormalizationOptions"
    out.emit("LOCAL_RESPONSE_NORMALIZATION", [source], node.outputs[0], (table, options), order=order)


# ------------------------------------------------------------------------------------------------ their parts


def _image_order(node: ir.Node, out: Emitter) -> Order:
    """Channels last for images, where they meet convolutions; others as they lie."""
    rank = len(out.shape(node.inputs[0]))
    return channels_last(rank) if rank == 4 else out.tensors[out.read(node.inputs[0])].order


def _trailing(node: ir.Node, out: Emitter) -> tuple[Term, Order, list[int]]:
    """The operand, its order, and where the axes from attribute ``axis`` on are stored."""
    x = term(node, out)
    order = out.tensors[x.index].order
    first = node.attributes.get_int("axis", -1) % len(order)
    return x, order, [place for place, axis in enumerate(order) if axis >= first]


def _normal(x: Term, places: Collection[int], epsilon: float) -> tuple[Term, Term, Term]:
    """With mean 0 and variance 1 over axes; the mean; the inverse of the standard deviation."""
    mean = x.reduced("MEAN", places)
    centred = x - mean
    inverse = (centred.square().reduced("MEAN", places) + epsilon).apply("RSQRT")
    return centred * inverse, mean, inverse


def _scaled(node: ir.Node, out: Emitter, normal: Term, order: Order) -> None:
    """Times the scale, plus the bias if there is one: operands of trailing axes."""
    scale = Term(out, operand(out, node.inputs[1], order))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        _last(node, out, "MUL", normal, scale)
    else:
        _last(node, out, "ADD", normal * scale, Term(out, operand(out, bias, order)))


def _by_channel(node: ir.Node, out: Emitter, normal: Term) -> None:
    scale, bias = (numbers_of(out, value) for value in node.inputs[1:3])
    if scale is None or bias is None:
        raise Unsupported("its scale and bias must be constants")
    scaled = normal * _of_channels(out, normal, scale)
    _last(node, out, "ADD", scaled, _of_channels(out, normal, bias))


def _of_channels(out: Emitter, x: Term, array: np.ndarray) -> Term:
    """A number for each channel, lined up with them."""
    order = out.tensors[x.index].order
    behind = len(order) - 1 - order.index(1)
    shaped = array.astype(np.float32).reshape(-1, *(1,) * behind)
    return Term(out, out.numbers(shaped, f"{out.node}/channels"))


def _last(node: ir.Node, out: Emitter, code: str, one: Term, other: Term) -> None:
    """The operator that makes the node's result, with the activation behind it."""
    result, activation = out.activation(node)
    order = out.tensors[one.index].order
    elementwise(code, [one.index, other.index], result, out, order, activation)

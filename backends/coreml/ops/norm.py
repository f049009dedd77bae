"""Normalisations: MIL's own where it has them, else their definition in its arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.optable import OpTable
from deploy.adapter.optable import Unsupported

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

ops = OpTable()


def _epsilon(node: ir.Node) -> np.float32:
    return np.float32(node.attributes.get_float("epsilon", 1e-5))


@ops.lower("BatchNormalization")
def batch_norm(node: ir.Node, out: Emitter) -> None:
    """With running statistics; MIL's is written for signals, images and volumes, others are an affine map."""
    if node.attributes.get_int("training_mode", 0):
        raise Unsupported("in training mode")
    scale, beta, mean, variance = (
        out.numbers(value, "statistics").astype(np.float32) for value in node.inputs[1:5]
    )
    x = out.read(node.inputs[0])
    if 3 <= out.rank(node.inputs[0]) <= 5:
        given = {"gamma": scale, "beta": beta, "mean": mean, "variance": variance}
        out.emit(node, "batch_norm", x=x, epsilon=_epsilon(node), **given)
        return
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + _epsilon(node))
    shift = (beta - mean * factor).astype(np.float32)
    out.emit(node, "add", x=out.op("mul", x=x, y=factor.astype(np.float32)), y=shift)


@ops.lower("InstanceNormalization")
def instance_norm(node: ir.Node, out: Emitter) -> None:
    """For each sample and channel, over all that is spatial."""
    scale, beta = (out.numbers(value, "scale and bias").astype(np.float32) for value in node.inputs[1:3])
    x, rank = out.read(node.inputs[0]), out.rank(node.inputs[0])
    if rank in (3, 4):
        out.emit(node, "instance_norm", x=x, gamma=scale, beta=beta, epsilon=_epsilon(node))
        return
    normed = normalised(out, x, tuple(range(2, rank)), _epsilon(node))
    along = (-1, *(1,) * (rank - 2))
    scaled = out.op("mul", x=normed, y=scale.reshape(along))
    out.emit(node, "add", x=scaled, y=beta.reshape(along))


@ops.lower("LayerNormalization")
def layer_norm(node: ir.Node, out: Emitter) -> None:
    """Over the last axes from ``axis`` on."""
    x = node.inputs[0]
    rank = out.rank(x)
    axis = node.attributes.get_int("axis", -1) % rank
    if any(value.uses() for value in node.outputs[1:]):
        raise Unsupported("its mean or deviation is read, too; MIL gives neither")
    shape = out.shape(x)[axis:]
    scale, beta = (out.array(out.operand(node, index)) for index in (1, 2))
    constant = all(
        given is not None or out.operand(node, index) is None for index, given in ((1, scale), (2, beta))
    )
    sizes = [size for size in shape if size is not None]
    if constant and len(sizes) == len(shape):
        given = {
            name: np.broadcast_to(array, sizes).astype(np.float32)
            for name, array in (("gamma", scale), ("beta", beta))
            if array is not None
        }
        axes = np.arange(axis, rank, dtype=np.int32)
        out.emit(node, "layer_norm", x=out.read(x), axes=axes, epsilon=_epsilon(node), **given)
        return
    found = normalised(out, out.read(x), tuple(range(axis, rank)), _epsilon(node))
    if out.operand(node, 1) is not None:
        found = out.op("mul", x=found, y=out.read(node.inputs[1]))
    if out.operand(node, 2) is not None:
        found = out.op("add", x=found, y=out.read(node.inputs[2]))
    out.emit(node, "identity", x=found)


@ops.lower("RMSNormalization")
def rms_norm(node: ir.Node, out: Emitter) -> None:
    """x over the root of the mean of its squares."""
    x, rank = out.read(node.inputs[0]), out.rank(node.inputs[0])
    axes = np.arange(node.attributes.get_int("axis", -1) % rank, rank, dtype=np.int32)
    power = out.op("reduce_mean", x=out.op("mul", x=x, y=x), axes=axes, keep_dims=True)
    root = out.op("sqrt", x=out.op("add", x=power, y=_epsilon(node)))
    out.emit(node, "mul", x=out.op("real_div", x=x, y=root), y=out.read(node.inputs[1]))


@ops.lower("GroupNormalization")
def group_norm(node: ir.Node, out: Emitter) -> None:
    """Over channels in groups and all that is spatial, in one axis for each."""
    x = node.inputs[0]
    shape, groups = out.fixed(x), node.attributes.get_int("num_groups", 1)
    apart = out.op("reshape", x=out.read(x), shape=np.array([shape[0], groups, -1], np.int32))
    normed = normalised(out, apart, (2,), _epsilon(node))
    back = out.op("reshape", x=normed, shape=np.array(shape, np.int32))
    scale, beta = (out.numbers(value, "scale and bias").astype(np.float32) for value in node.inputs[1:3])
    along = (-1, *(1,) * (len(shape) - 2))
    scaled = out.op("mul", x=back, y=scale.reshape(along))
    out.emit(node, "add", x=scaled, y=beta.reshape(along))


@ops.lower("MeanVarianceNormalization")
def mean_variance(node: ir.Node, out: Emitter) -> None:
    """Over batch and space unless said; its epsilon stands outside the root."""
    x = out.read(node.inputs[0])
    axes = np.array(node.attributes.get_ints("axes", ()) or (0, 2, 3), np.int32)
    centred = out.op("sub", x=x, y=out.op("reduce_mean", x=x, axes=axes, keep_dims=True))
    power = out.op("reduce_mean", x=out.op("mul", x=centred, y=centred), axes=axes, keep_dims=True)
    root = out.op("add", x=out.op("sqrt", x=power), y=np.float32(1e-9))
    out.emit(node, "real_div", x=centred, y=root)


@ops.lower("LRN")
def local_response(node: ir.Node, out: Emitter) -> None:
    """Over neighbouring channels; ONNX's window of even size reaches one further up, which MIL's does not."""
    size, x = node.attributes.get_int("size", 1), node.inputs[0]
    if x is None or x.shape is None or len(x.shape) != 4:
        raise Unsupported("other than of rank 4: Core ML looks for channels three axes from the end")
    if size % 2 == 0:
        raise Unsupported("a window of an even number of channels; MIL's are odd")
    out.emit(
        node,
        "local_response_norm",
        x=out.read(x),
        size=np.int32(size),
        alpha=np.float32(node.attributes.get_float("alpha", 1e-4)),
        beta=np.float32(node.attributes.get_float("beta", 0.75)),
        k=np.float32(node.attributes.get_float("bias", 1.0)),
    )


@ops.lower("LpNormalization")
def lp_norm(node: ir.Node, out: Emitter) -> None:
    """x over its norm along an axis; 0 where that is 0."""
    x, p = out.read(node.inputs[0]), node.attributes.get_int("p", 2)
    axis = np.array([node.attributes.get_int("axis", -1)], np.int32)
    kind = {1: "reduce_l1_norm", 2: "reduce_l2_norm"}.get(p)
    if kind is None:
        raise Unsupported(f"with p = {p}; there are 1 and 2")
    norm = out.op(kind, x=x, axes=axis, keep_dims=True)
    zero = out.op("equal", x=norm, y=np.float32(0))
    out.emit(node, "real_div", x=x, y=out.op("select", cond=zero, a=np.float32(1), b=norm))


def normalised(out: Emitter, x: Var, axes: tuple[int, ...], epsilon: np.float32) -> Var:
    """(x - mean) / sqrt(variance + epsilon) over ``axes``."""
    along = np.array(axes, np.int32)
    centred = out.op("sub", x=x, y=out.op("reduce_mean", x=x, axes=along, keep_dims=True))
    power = out.op("reduce_mean", x=out.op("mul", x=centred, y=centred), axes=along, keep_dims=True)
    return out.op("real_div", x=centred, y=out.op("sqrt", x=out.op("add", x=power, y=epsilon)))

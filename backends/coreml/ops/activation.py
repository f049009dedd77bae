"""Activations: MIL has most of them; the others are said in its arithmetic."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.ops.elementwise import is_float
from backends.coreml.optable import NUMBERS, OpTable
from deploy.adapter.optable import Unsupported

ops = OpTable()

_PLAIN = {"Sigmoid": "sigmoid", "Softplus": "softplus", "Softsign": "softsign"}
_SELU_ALPHA, _SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875


def _register(name: str, kind: str) -> None:
    @ops.lower(name)
    def lower(node: ir.Node, out: Emitter) -> None:
        out.emit(node, kind, x=out.read(node.inputs[0]))


for _name, _kind in _PLAIN.items():
    _register(_name, _kind)


@ops.lower("Relu", types=NUMBERS)
def relu(node: ir.Node, out: Emitter) -> None:
    """Of integers as the larger one of two."""
    x = out.read(node.inputs[0])
    if is_float(node.inputs[0]):
        out.emit(node, "relu", x=x)
    else:
        out.emit(node, "maximum", x=x, y=np.int32(0))


@ops.lower("LeakyRelu")
def leaky_relu(node: ir.Node, out: Emitter) -> None:
    """One slope below 0."""
    alpha = node.attributes.get_float("alpha", 0.01)
    out.emit(node, "leaky_relu", x=out.read(node.inputs[0]), alpha=np.float32(alpha))


@ops.lower("PRelu")
def prelu(node: ir.Node, out: Emitter) -> None:
    """A slope for every channel is MIL's; others are max(x, 0) + slope min(x, 0)."""
    x, slope = out.read(node.inputs[0]), out.array(node.inputs[1])
    rank = out.rank(node.inputs[0])
    channels = out.shape(node.inputs[0])[1] if rank > 1 else None
    per_channel = slope is not None and slope.ndim in (rank - 1, rank) and slope.size == channels
    if slope is not None and per_channel and slope.shape[slope.ndim - rank + 1] == channels and rank > 2:
        out.emit(node, "prelu", x=x, alpha=slope.reshape(-1).astype(np.float32))
        return
    low = out.op("minimum", x=x, y=np.float32(0))
    bent = out.op("mul", x=low, y=out.read(node.inputs[1]))
    out.emit(node, "add", x=out.op("relu", x=x), y=bent)


@ops.lower("Elu")
def elu(node: ir.Node, out: Emitter) -> None:
    """alpha (exp(x) - 1) below 0."""
    alpha = node.attributes.get_float("alpha", 1.0)
    out.emit(node, "elu", x=out.read(node.inputs[0]), alpha=np.float32(alpha))


@ops.lower("Selu")
def selu(node: ir.Node, out: Emitter) -> None:
    """gamma times an ELU."""
    alpha = node.attributes.get_float("alpha", _SELU_ALPHA)
    gamma = node.attributes.get_float("gamma", _SELU_GAMMA)
    bent = out.op("elu", x=out.read(node.inputs[0]), alpha=np.float32(alpha))
    out.emit(node, "mul", x=bent, y=np.float32(gamma))


@ops.lower("Celu")
def celu(node: ir.Node, out: Emitter) -> None:
    """alpha times an ELU of x / alpha, which has no factor of its own."""
    alpha = np.float32(node.attributes.get_float("alpha", 1.0))
    scaled = out.op("real_div", x=out.read(node.inputs[0]), y=alpha)
    out.emit(node, "mul", x=out.op("elu", x=scaled, alpha=np.float32(1)), y=alpha)


@ops.lower("ThresholdedRelu")
def thresholded_relu(node: ir.Node, out: Emitter) -> None:
    """x above alpha, 0 elsewhere."""
    alpha = np.float32(node.attributes.get_float("alpha", 1.0))
    x = out.read(node.inputs[0])
    out.emit(node, "select", cond=out.op("greater", x=x, y=alpha), a=x, b=np.float32(0))


@ops.lower("HardSigmoid")
def hard_sigmoid(node: ir.Node, out: Emitter) -> None:
    """clip(alpha x + beta, 0, 1)."""
    alpha = np.float32(node.attributes.get_float("alpha", 0.2))
    beta = np.float32(node.attributes.get_float("beta", 0.5))
    out.emit(node, "sigmoid_hard", x=out.read(node.inputs[0]), alpha=alpha, beta=beta)


@ops.lower("HardSwish")
def hard_swish(node: ir.Node, out: Emitter) -> None:
    """x times a hard sigmoid of 1/6 and 1/2."""
    x = out.read(node.inputs[0])
    gate = out.op("sigmoid_hard", x=x, alpha=np.float32(1 / 6), beta=np.float32(0.5))
    out.emit(node, "mul", x=x, y=gate)


@ops.lower("Mish")
def mish(node: ir.Node, out: Emitter) -> None:
    """x tanh(softplus(x))."""
    x = out.read(node.inputs[0])
    out.emit(node, "mul", x=x, y=out.op("tanh", x=out.op("softplus", x=x)))


@ops.lower("Gelu")
def gelu(node: ir.Node, out: Emitter) -> None:
    """By the error function, or by its approximation with tanh."""
    how = node.attributes.get_string("approximate", "none")
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}.get(how)
    if mode is None:
        raise Unsupported(f"approximated by '{how}'; there are none and tanh")
    out.emit(node, "gelu", x=out.read(node.inputs[0]), mode=mode)


@ops.lower("Shrink")
def shrink(node: ir.Node, out: Emitter) -> None:
    """Towards 0 by ``bias``, and 0 between -lambd and lambd."""
    bias, lambd = (
        np.float32(node.attributes.get_float(key, value)) for key, value in (("bias", 0.0), ("lambd", 0.5))
    )
    x = out.read(node.inputs[0])
    above = out.op(
        "select", cond=out.op("greater", x=x, y=lambd), a=out.op("sub", x=x, y=bias), b=np.float32(0)
    )
    below = out.op("add", x=x, y=bias)
    out.emit(node, "select", cond=out.op("less", x=x, y=np.float32(-lambd)), a=below, b=above)


@ops.lower("Softmax")
def softmax(node: ir.Node, out: Emitter) -> None:
    """Along one axis."""
    axis = node.attributes.get_int("axis", -1) % out.rank(node.inputs[0])
    out.emit(node, "softmax", x=out.read(node.inputs[0]), axis=np.int32(axis))


@ops.lower("LogSoftmax")
def log_softmax(node: ir.Node, out: Emitter) -> None:
    """x less the logarithm of the sum of exponentials."""
    axis = node.attributes.get_int("axis", -1) % out.rank(node.inputs[0])
    x = out.read(node.inputs[0])
    total = out.op("reduce_log_sum_exp", x=x, axes=np.array([axis], np.int32), keep_dims=True)
    out.emit(node, "sub", x=x, y=total)


@ops.lower("Hardmax")
def hardmax(node: ir.Node, out: Emitter) -> None:
    """1 at the first largest, 0 elsewhere."""
    axis = node.attributes.get_int("axis", -1) % out.rank(node.inputs[0])
    size = out.fixed(node.inputs[0])[axis]
    place = out.op("reduce_argmax", x=out.read(node.inputs[0]), axis=np.int32(axis), keep_dims=False)
    hot = out.op(
        "one_hot",
        indices=place,
        one_hot_vector_size=np.int32(size),
        axis=np.int32(axis),
        on_value=np.float32(1),
        off_value=np.float32(0),
    )
    out.emit(node, "identity", x=hot)

"""Activations that stand alone; those behind a convolution, product or sum are part of it.

Those that TFLite lacks are spelled out in operators that XNNPACK takes, so that the delegated graph stays
whole.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.network import Options
from backends.tflite.ops.elementwise import common_order, formula, numbers_of, operand, term
from backends.tflite.optable import NUMBERS, OpTable
from backends.tflite.reading import activation_of
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported

ops = OpTable()

_FIXED = {"LOGISTIC": (1 / 256, -128), "TANH": (1 / 128, 0)}
"""Scale and zero point that these kernels always write."""


# ------------------------------------------------------------------------------------- operators of TFLite


@ops.lower("HardSwish")
def hard_swish(node: ir.Node, out: Emitter) -> None:
    """Its INT8 kernel is LiteRT's own: XNNPACK has it in float only."""
    _emit(node, out, "HARD_SWISH", ("HardSwishOptions", {}), _integer(node, out), version=1)


@ops.lower("Relu", types=NUMBERS)
def relu(node: ir.Node, out: Emitter) -> None:
    """RELU knows floats only."""
    x = term(node, out)
    (x.relu() if x.dtype == "float32" else x.at_least(0)).becomes(node.outputs[0])


@ops.lower("Clip", types=NUMBERS)
def clip(node: ir.Node, out: Emitter) -> None:
    """As one operator where TFLite has one for these bounds that XNNPACK takes: not from 0 to 1."""
    x = term(node, out)
    code = activation_of(node)
    if code != "NONE" and x.dtype == "float32":
        x.apply(code).becomes(node.outputs[0])
        return
    made = x
    for place, operator in ((1, "MAXIMUM"), (2, "MINIMUM")):
        bound = node.inputs[place] if len(node.inputs) > place else None
        if bound is None:
            continue
        numbers = numbers_of(out, bound)
        number = None if numbers is None else float(numbers.reshape(()))
        if number is None:
            made = made.apply(operator, Term(out, out.read(bound)))
        elif math.isnan(number):
            raise Unsupported("a bound that is no number")
        elif number != (-math.inf if place == 1 else math.inf):
            made = made.apply(operator, number)
    made.becomes(node.outputs[0])


@ops.lower("Sigmoid")
def sigmoid(node: ir.Node, out: Emitter) -> None:
    _saturating(node, out, "LOGISTIC")


@ops.lower("Tanh")
def tanh(node: ir.Node, out: Emitter) -> None:
    _saturating(node, out, "TANH")


def _saturating(node: ir.Node, out: Emitter, code: str) -> None:
    params = out.stored(node.outputs[0]) if _integer(node, out) else None
    if params is not None and (params.scale[0], params.zero_point[0]) != _FIXED[code]:
        params = None
    _emit(node, out, code, ("", {}), params is not None)


@ops.lower("LeakyRelu")
def leaky_relu(node: ir.Node, out: Emitter) -> None:
    options: Options = ("LeakyReluOptions", {"alpha": node.attributes.get_float("alpha", 0.01)})
    _emit(node, out, "LEAKY_RELU", options, _integer(node, out))


@ops.lower("Gelu")
def gelu(node: ir.Node, out: Emitter) -> None:
    tanh_form = node.attributes.get_string("approximate", "none") == "tanh"
    _emit(node, out, "GELU", ("GeluOptions", {"approximate": tanh_form}), False)


@ops.lower("Elu")
def elu(node: ir.Node, out: Emitter) -> None:
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha == 1:
        _emit(node, out, "ELU", ("", {}), _integer(node, out), version=1)
    else:
        _bent(term(node, out), 1.0, alpha).becomes(node.outputs[0])


def _integer(node: ir.Node, out: Emitter) -> bool:
    return out.listed(node) and out.integer(node.outputs[0], node.inputs[:1]) is not None


def _emit(
    node: ir.Node, out: Emitter, code: str, options: Options, integer: bool, version: int | None = None
) -> None:
    source = out.read(node.inputs[0], integer=integer)
    params = out.stored(node.outputs[0]) if integer else None
    order = out.tensors[source].order
    out.emit(code, [source], node.outputs[0], options, order=order, params=params, version=version)


@ops.lower("PRelu")
def prelu(node: ir.Node, out: Emitter) -> None:
    """PRELU with a slope a channel is delegated; other slopes: what is above zero and, scaled, below."""
    value, slope = node.inputs[:2]
    rank = len(out.shape(value))
    order = common_order(out, [value], rank)
    x, slopes = (Term(out, operand(out, v, order)) for v in (value, slope))
    sizes = slopes.shape
    array = numbers_of(out, slope)
    if array is not None and rank > 1 and sizes[-1] == x.shape[-1] and max((1, *sizes[:-1])) == 1:
        # The kernel wants the slopes without the batch.
        shape = (*(1,) * (rank - 2), sizes[-1])
        given = out.numbers(array.reshape(shape), f"{node.name}/slopes")
        out.emit("PRELU", [x.index, given], node.outputs[0], order=order)
        return
    (x.relu() + x.at_most(0) * slopes).becomes(node.outputs[0])


# --------------------------------------------------------------------------------------------- spelled out


def _bent(x: Term, above: float, below: float) -> Term:
    """``above * x`` from 0 on, ``below * (exp(x) - 1)`` under it."""
    upper = x.relu() if above == 1 else x.relu() * above
    return upper + x.at_most(0).apply("ELU") * below


@ops.lower("Selu")
def selu(node: ir.Node, out: Emitter) -> None:
    alpha = node.attributes.get_float("alpha", 1.67326319217681884765625)
    gamma = node.attributes.get_float("gamma", 1.05070102214813232421875)
    _bent(term(node, out), gamma, gamma * alpha).becomes(node.outputs[0])


@ops.lower("Celu")
def celu(node: ir.Node, out: Emitter) -> None:
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha <= 0:
        raise Unsupported("alpha must be above zero")
    x = term(node, out)
    made = x.apply("ELU") if alpha == 1 else (x * (1 / alpha)).apply("ELU") * alpha
    made.becomes(node.outputs[0])


@ops.lower("ThresholdedRelu")
def thresholded_relu(node: ir.Node, out: Emitter) -> None:
    x = term(node, out)
    above = x.apply("GREATER", node.attributes.get_float("alpha", 1.0), dtype="bool")
    x.where(above, 0).becomes(node.outputs[0])


@ops.lower("Shrink")
def shrink(node: ir.Node, out: Emitter) -> None:
    bias, width = node.attributes.get_float("bias", 0.0), node.attributes.get_float("lambd", 0.5)
    x = term(node, out)
    above, below = x.apply("GREATER", width, dtype="bool"), x.apply("LESS", -width, dtype="bool")
    (x - bias).where(above, (x + bias).where(below, 0)).becomes(node.outputs[0])


@ops.lower("HardSigmoid")
def hard_sigmoid(node: ir.Node, out: Emitter) -> None:
    """relu6(6 (alpha x + beta)) / 6, which XNNPACK takes whole, where TFLite has no operation of its own."""
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    x = term(node, out)
    slope = 6 * alpha
    scaled = x if abs(slope - 1) < 1e-6 else x * slope
    (scaled.apply("ADD", 6 * beta, activation="RELU6") * (1 / 6)).becomes(node.outputs[0])


@ops.lower("Softsign")
def softsign(node: ir.Node, out: Emitter) -> None:
    x = term(node, out)
    (x / (x.abs() + 1.0)).becomes(node.outputs[0])


def _softplus(x: Term) -> Term:
    """``log(1 + exp(x))``, whose exponential does not overflow so. Off by 2e-7 at most."""
    return x.relu() + ((-x.abs()).exp() + 1.0).log()


def _mish(x: Term) -> Term:
    """``x tanh(softplus(x))``: with e = exp(x), tanh(log(1 + e)) is n / (n + 2) for n = e (e + 2).

    From 20 on it is 1 in float32.
    """
    e = x.at_most(20).exp()
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


ops.lower("Softplus")(formula(_softplus))
ops.lower("Mish")(formula(_mish))


@ops.lower("Swish")
def swish(node: ir.Node, out: Emitter) -> None:
    x = term(node, out)
    alpha = node.attributes.get_float("alpha", 1.0)
    inner = x if alpha == 1 else x * alpha
    (x * inner.apply("LOGISTIC")).becomes(node.outputs[0])

"""Functions spelled out in small operations, recognised and written as the one operation that they are.

An activation is recognised by what it computes, not by how it is spelled: a few elementwise operations of one
value and some numbers that agree with GELU at many points are GELU. The new node takes the name of the last
node of the composition, and its output the last value's. All steps work in place and return how often.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx_ir as ir

from deploy.graph import symbolic
from deploy.graph.edit import (
    add_initializer,
    constant,
    made_by,
    remove_dead,
    replace_node,
    scalar,
    sole_consumer,
)

_Numbers = np.ndarray
_FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE}
_DEEPEST = 12
"""Nodes. The longest spelling of GELU in use has ten."""
_POINTS = np.concatenate([np.linspace(-8, 8, 129), [-1e3, -50.0, 50.0, 1e3], [0.1234567, -2.3456789]])


def recognise_activations(model: ir.Model) -> int:
    """HardSwish, HardSigmoid, Gelu (with erf or tanh) in place of what spells them."""
    found = 0
    for node in reversed(list(model.graph)):
        if node.graph is None or node.op_type not in _LAST or node.domain != "":
            continue
        match = _match(node)
        if match is not None:
            source, (op_type, attributes) = match
            inner = [v.producer() for v in node.inputs if v is not None and v is not source]
            replace_node(node, op_type, [source], attributes)
            remove_dead(n for n in inner if n is not None)
            found += 1
    return found


_Operation = tuple[str, Mapping[str, float | str]]
_LAST = ("Mul", "Div", "Clip")
_TELLING = {"Clip", "Erf", "Tanh", "HardSigmoid"}
"""No composition without one of them is looked for."""


def _match(last: ir.Node) -> tuple[ir.Value, _Operation] | None:
    cone = _cone(last)
    if not any(n.op_type in _TELLING for n in cone):
        return None
    output = last.outputs[0]
    best: tuple[int, ir.Value, _Operation] | None = None
    for source in dict.fromkeys(v for n in cone for v in n.inputs if v is not None and scalar(v) is None):
        if source.dtype not in _FLOATS or source.shape is None or output.shape is None:
            continue
        if source.shape.rank() != output.shape.rank():
            continue
        inside = _between(source, last, cone)
        if len(inside) < 2 or any(n is not last and not _only_read_by(n, inside) for n in inside):
            continue
        y = _compute(last, source, inside)
        operation = None if y is None else _named(y)
        if operation is not None and (best is None or len(inside) > best[0]):
            best = len(inside), source, operation
    return best and best[1:]


def _cone(last: ir.Node) -> list[ir.Node]:
    """The elementwise operations behind ``last``, nearest first."""
    cone: list[ir.Node] = []
    pending = [last]
    while pending and len(cone) < _DEEPEST:
        node = pending.pop(0)
        if node in cone or node.op_type not in _COMPUTE or node.domain != "":
            continue
        cone.append(node)
        pending += [p for v in node.inputs if v is not None and (p := v.producer()) is not None]
    return cone


def _between(source: ir.Value, last: ir.Node, cone: list[ir.Node]) -> set[ir.Node]:
    """What ``last`` needs of the cone once ``source`` is given."""
    inside, pending = set(), [last]
    while pending:
        node = pending.pop()
        if node in inside or node not in cone:
            continue
        inside.add(node)
        for v in node.inputs:
            producer = v.producer() if v is not None and v is not source else None
            if producer is not None:
                pending.append(producer)
    return inside


def _only_read_by(node: ir.Node, inside: set[ir.Node]) -> bool:
    return not node.outputs[0].is_graph_output() and all(c in inside for c in node.outputs[0].consumers())


def _compute(last: ir.Node, source: ir.Value, inside: set[ir.Node]) -> _Numbers | None:
    """The values at `_POINTS`, in float64; None if something besides ``source`` and numbers is read."""
    known: dict[ir.Value, _Numbers] = {source: _POINTS}

    def value(v: ir.Value | None) -> _Numbers | None:
        if v is None:
            return None
        if v not in known:
            number, node = scalar(v), v.producer()
            if number is not None:
                known[v] = np.array(number)
            elif node is None or node not in inside:
                raise LookupError
            else:
                known[v] = _COMPUTE[node.op_type](node, [value(i) for i in node.inputs])
        return known[v]

    with np.errstate(all="ignore"):
        try:
            return value(last.outputs[0])
        except LookupError:
            return None


def _clip(_: ir.Node, inputs: list[_Numbers | None]) -> _Numbers:
    low, high = (*inputs[1:], None, None)[:2]
    above = _given(inputs[0]) if low is None else np.maximum(_given(inputs[0]), low)
    return above if high is None else np.minimum(above, high)


def _given(x: _Numbers | None) -> _Numbers:
    assert x is not None
    return x


def _unary(function: Callable[[_Numbers], _Numbers]) -> Callable[[ir.Node, list[_Numbers | None]], _Numbers]:
    return lambda _, inputs: function(_given(inputs[0]))


def _binary(
    function: Callable[[_Numbers, _Numbers], _Numbers],
) -> Callable[[ir.Node, list[_Numbers | None]], _Numbers]:
    return lambda _, inputs: function(_given(inputs[0]), _given(inputs[1]))


def _hard_sigmoid(node: ir.Node, inputs: list[_Numbers | None]) -> _Numbers:
    alpha, beta = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return np.clip(alpha * _given(inputs[0]) + beta, 0, 1)


def _erf(x: _Numbers) -> _Numbers:
    return np.array([math.erf(number) for number in x.flat]).reshape(x.shape)


_COMPUTE: dict[str, Callable[[ir.Node, list[_Numbers | None]], _Numbers]] = {
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _binary(np.divide),
    "Pow": _binary(np.power),
    "Clip": _clip,
    "Relu": _unary(lambda x: np.maximum(x, 0)),
    "Erf": _unary(_erf),
    "Tanh": _unary(np.tanh),
    "HardSigmoid": _hard_sigmoid,
}


def _named(y: _Numbers) -> _Operation | None:
    """The operation that has these values at `_POINTS`."""
    if y.shape != _POINTS.shape:
        return None
    x = _POINTS
    if _agree(y, x * np.clip(x / 6 + 0.5, 0, 1)):
        return "HardSwish", {}
    if _agree(y, 0.5 * x * (1 + _erf(x / math.sqrt(2)))):
        return "Gelu", {"approximate": "none"}
    if _agree(y, 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))):
        return "Gelu", {"approximate": "tanh"}
    beta, near = float(y[x == 0][0]), float(y[x == 0.125][0])
    alpha = (near - beta) / 0.125
    if 0 < beta < 1 and alpha > 0 and _agree(y, np.clip(alpha * x + beta, 0, 1)):
        return "HardSigmoid", {"alpha": alpha, "beta": beta}
    return None


def _agree(y: _Numbers, wanted: _Numbers) -> bool:
    """Within what constants stored as float32 make of it."""
    return bool(np.allclose(y, wanted, rtol=1e-6, atol=1e-6))


def recognise_layer_norm(model: ir.Model) -> int:
    """``(x - mean) / sqrt(variance + epsilon) * scale + bias`` over the last axes > LayerNormalization."""
    found = 0
    for node in list(model.graph):
        if node.graph is None or node.op_type not in ("Div", "Mul") or node.domain != "":
            continue
        normal = _normalised(node)
        if normal is None:
            continue
        source, axes, epsilon = normal
        dims = symbolic.sizes(source.shape)
        if dims is None or sorted(a % len(dims) for a in axes) != list(
            range(len(dims) - len(axes), len(dims))
        ):
            continue
        trailing = [s.number if s is not None else None for s in dims[len(dims) - len(axes) :]]
        scaled = sole_consumer(node.outputs[0])
        scale = _parameter(model, scaled, node.outputs[0], "Mul", trailing)
        if scaled is None or scale is None:
            continue
        shifted = sole_consumer(scaled.outputs[0])
        bias = _parameter(model, shifted, scaled.outputs[0], "Add", trailing)
        last = shifted if shifted is not None and bias is not None else scaled
        inner = [v.producer() for n in (last, scaled) for v in n.inputs if v is not None and v is not source]
        replace_node(
            last,
            "LayerNormalization",
            [source, scale] if bias is None else [source, scale, bias],
            {"axis": -len(axes), "epsilon": epsilon},
        )
        remove_dead(n for n in inner if n is not None)
        found += 1
    return found


def _parameter(
    model: ir.Model, node: ir.Node | None, value: ir.Value, op_type: str, trailing: list[int | None]
) -> ir.Value | None:
    """The constant that ``node`` combines ``value`` with, in the shape of the normalised axes."""
    if node is None or node.op_type != op_type or node.domain != "":
        return None
    other = node.inputs[1] if node.inputs[0] is value else node.inputs[0]
    array = constant(other)
    if other is None or array is None:
        return None
    lead = array.ndim - len(trailing)
    if list(array.shape) == trailing:
        return other
    if lead > 0 and set(array.shape[:lead]) == {1} and list(array.shape[lead:]) == trailing:
        return add_initializer(model, f"{other.name}_flat", array.reshape(array.shape[lead:]))
    return None


def _normalised(node: ir.Node) -> tuple[ir.Value, list[int], float] | None:
    """Input, axes and epsilon if ``node`` is ``(x - mean) / sqrt(variance + epsilon)``."""
    for centred, spread in _operands(node):
        centre = made_by(centred, "Sub")
        if centre is None:
            continue
        source = centre.inputs[0]
        mean = made_by(centre.inputs[1], "ReduceMean")
        variance = _variance(node, spread)
        if source is None or mean is None or variance is None or mean.inputs[0] is not source:
            continue
        squared, epsilon = variance
        averaged = made_by(squared, "ReduceMean")
        square = (
            averaged.inputs[0].producer() if averaged is not None and averaged.inputs[0] is not None else None
        )
        axes = _mean_axes(mean)
        if averaged is None or square is None or axes is None or axes != _mean_axes(averaged):
            continue
        powered = square.op_type == "Pow" and scalar(square.inputs[1]) == 2 and square.inputs[0] is centred
        multiplied = square.op_type == "Mul" and list(square.inputs) == [centred, centred]
        if powered or multiplied:
            return source, axes, epsilon
    return None


def _operands(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    left, right = node.inputs
    if left is not None and right is not None:
        yield left, right
        if node.op_type == "Mul":
            yield right, left


def _variance(node: ir.Node, spread: ir.Value) -> tuple[ir.Value, float] | None:
    """Variance and epsilon behind the divisor sqrt(v + e), or behind the factor 1 / sqrt(v + e)."""
    root = made_by(spread, "Sqrt")
    if node.op_type == "Mul":
        inverse = made_by(spread, "Reciprocal") or made_by(spread, "Div")
        power = made_by(spread, "Pow")
        if power is not None and scalar(power.inputs[1]) == -0.5:
            root = power
        elif inverse is not None and (inverse.op_type == "Reciprocal" or scalar(inverse.inputs[0]) == 1):
            root = made_by(inverse.inputs[-1], "Sqrt")
        else:
            return None
    added = made_by(root.inputs[0], "Add") if root is not None else None
    if added is None:
        return None
    for squared, number in (tuple(added.inputs), tuple(reversed(added.inputs))):
        epsilon = scalar(number)
        if epsilon is not None and squared is not None:
            return squared, epsilon
    return None


def _mean_axes(node: ir.Node) -> list[int] | None:
    """The axes of a ReduceMean that keeps them, counted from the end; None if they are not constant."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    source = node.inputs[0]
    if axes is None or source is None or source.shape is None or node.attributes.get_int("keepdims", 1) == 0:
        return None
    return sorted(int(a) % source.shape.rank() - source.shape.rank() for a in axes.ravel())

"""LSTM and RNN as Core ML's own layers. A GRU is written out step by step before: MIL's has one bias less."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.coreml.emitter import Emitter
from backends.coreml.ops.shape import ints
from backends.coreml.optable import OpTable
from deploy.adapter.optable import Unsupported

if TYPE_CHECKING:
    from coremltools.converters.mil.mil import Var

ops = OpTable()

_ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "relu"}
_DIRECTIONS = {"forward": "forward", "reverse": "reverse", "bidirectional": "bidirectional"}
_IFOZ = (0, 2, 1, 3)
"""MIL's gates (input, forget, output, cell) by their places in ONNX's (input, output, forget, cell)."""
_WHERE = {"initial_h": 5, "initial_c": 6}


@ops.lower("LSTM")
def lstm(node: ir.Node, out: Emitter) -> None:
    if node.attributes.get_int("input_forget", 0):
        raise Unsupported("with its input and forget gates coupled")
    functions = _functions(node, ("sigmoid", "tanh", "tanh"))
    weights = _weights(node, out, 4, _IFOZ)
    peepholes = out.array(out.operand(node, 7))
    if peepholes is not None and peepholes.any():
        hidden = _hidden(node)
        for at, suffix in enumerate(("", "_back")[: len(peepholes)]):
            given = peepholes[at].reshape(3, hidden)[[0, 2, 1]]
            weights[f"peephole{suffix}"] = given.reshape(-1).astype(np.float32)
    if "clip" in node.attributes:
        raise Unsupported("with clip: Core ML's clips the cell alone")
    found = out.op(
        "lstm",
        node.outputs[0].name or "",
        x=_sequence(node, out),
        initial_h=_initial(node, out, "initial_h"),
        initial_c=_initial(node, out, "initial_c"),
        direction=_direction(node),
        output_sequence=True,
        recurrent_activation=functions[0],
        cell_activation=functions[1],
        activation=functions[2],
        **weights,
    )
    _results(node, out, found)


@ops.lower("RNN")
def rnn(node: ir.Node, out: Emitter) -> None:
    direction = _direction(node)
    if direction == "bidirectional":
        raise Unsupported("in both directions; Core ML's goes one way")
    if "clip" in node.attributes:
        raise Unsupported("with clip")
    found = out.op(
        "rnn",
        node.outputs[0].name or "",
        x=_sequence(node, out),
        initial_h=_initial(node, out, "initial_h"),
        direction=direction,
        output_sequence=True,
        activation=_functions(node, ("tanh",))[0],
        **_weights(node, out, 1, (0,)),
    )
    _results(node, out, found)


def _hidden(node: ir.Node) -> int:
    return node.attributes.get_int("hidden_size", 0)


def _direction(node: ir.Node) -> str:
    return _DIRECTIONS[node.attributes.get_string("direction", "forward")]


def _functions(node: ir.Node, default: tuple[str, ...]) -> tuple[str, ...]:
    given = tuple(name.lower() for name in node.attributes.get_strings("activations", ())) or default
    count = len(default)
    if any(given[at : at + count] != given[:count] for at in range(0, len(given), count)):
        raise Unsupported("with other activations in each direction")
    odd = [name for name in given if name not in _ACTIVATIONS]
    if odd:
        raise Unsupported(f"with {odd[0]}; there are {', '.join(_ACTIVATIONS)}")
    return given[:count]


def _sequence(node: ir.Node, out: Emitter) -> Var:
    lengths = out.array(out.operand(node, 4))
    steps = out.shape(node.inputs[0])[1 if node.attributes.get_int("layout", 0) else 0]
    if out.operand(node, 4) is not None and (lengths is None or not (lengths == steps).all()):
        raise Unsupported("with a length for each sequence")
    x = out.read(node.inputs[0])
    return out.op("transpose", x=x, perm=ints([1, 0, 2])) if node.attributes.get_int("layout", 0) else x


def _weights(node: ir.Node, out: Emitter, gates: int, order: tuple[int, ...]) -> dict[str, object]:
    """Weights and biases by MIL's names, its gates in MIL's order."""
    hidden, found = _hidden(node), {}
    w, r = (out.numbers(value, "weights").astype(np.float32) for value in node.inputs[1:3])
    b = out.array(out.operand(node, 3))
    for at, suffix in enumerate(("", "_back")[: len(w)]):
        found[f"weight_ih{suffix}"] = _ordered(w[at], gates, hidden, order)
        found[f"weight_hh{suffix}"] = _ordered(r[at], gates, hidden, order)
        if b is not None:
            both = b[at].reshape(2, gates * hidden).sum(axis=0, dtype=np.float32)
            found[f"bias{suffix}"] = _ordered(both, gates, hidden, order)
    return dict(found)


def _ordered(array: np.ndarray, gates: int, hidden: int, order: tuple[int, ...]) -> np.ndarray:
    apart = array.reshape(gates, hidden, *array.shape[1:])[list(order)]
    return np.ascontiguousarray(apart.reshape(array.shape))


def _initial(node: ir.Node, out: Emitter, what: str) -> Var | np.ndarray:
    """(directions, batch, hidden) as (batch, directions * hidden); zeros where it is left out."""
    value = out.operand(node, _WHERE[what])
    batch = out.shape(node.inputs[0])[0 if node.attributes.get_int("layout", 0) else 1]
    directions = 2 if _direction(node) == "bidirectional" else 1
    width = directions * _hidden(node)
    if value is None:
        if batch is None:
            raise Unsupported("its batch is free: fix it (--shape)")
        return np.zeros((batch, width), np.float32)
    given = out.read(value)
    if not node.attributes.get_int("layout", 0):
        given = out.op("transpose", x=given, perm=ints([1, 0, 2]))
    return out.op("reshape", x=given, shape=ints([-1, width]))


def _results(node: ir.Node, out: Emitter, found: tuple[Var, ...]) -> None:
    """Y as (steps, directions, batch, hidden), states as (directions, batch, hidden), as ONNX has them."""
    directions = 2 if _direction(node) == "bidirectional" else 1
    batch_first = bool(node.attributes.get_int("layout", 0))
    hidden = _hidden(node)
    for at, value in enumerate(node.outputs):
        if not value.name:
            continue
        steps = at == 0
        batch = out.fixed(node.inputs[0])[0 if batch_first else 1]
        shape = [-1, batch, directions, hidden] if steps else [batch, directions, hidden]
        result = found[at]
        if (
            steps and _direction(node) == "reverse"
        ):  # Core ML gives states in the order in which it makes them
            result = out.op("reverse", x=result, axes=ints([0]))
        apart = out.op("reshape", x=result, shape=ints(shape))
        turned = {True: [1, 0, 2, 3], False: [0, 2, 1, 3]} if steps else {True: [0, 1, 2], False: [1, 0, 2]}
        perm = turned[batch_first]
        out.give(value, out.op("transpose", value.name, x=apart, perm=ints(perm)))

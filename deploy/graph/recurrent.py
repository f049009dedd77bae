"""What a recurrent node says: its gates, its weights by direction, and whether it can be written out.

    Y, Y_h, Y_c = LSTM | GRU | RNN(X, W, R, B, lengths, initial_h, initial_c, P)

The order of gates is that of ONNX (operators LSTM-14, GRU-14, RNN-14).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant

_MOST_STEPS = 128
"""Of all directions: a graph of some 1,600 nodes. With four times as many a build took minutes."""
_ACTIVATIONS = ("Sigmoid", "Tanh", "Relu", "Softsign", "Softplus")
"""Those of ONNX's that have no parameters."""
_OF_ZEROS = frozenset((
    "ConstantOfShape", "Expand", "Slice", "Split", "Gather", "Reshape", "Squeeze", "Unsqueeze", "Transpose",
    "Identity", "Tile", "Cast",
))  # fmt: skip
"""Operations that make zeros of zeros."""


@dataclass(frozen=True)
class Group:
    """Gates from ``start`` to before ``stop``, that are computed together."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Kind:
    """One of the three operations.

    ``most_copies`` are the bytes of float weights, each counted as often as it is read, up to which it is
    written out: XNNPACK packs a copy for each product, of a quarter of that in INT8. A whole LSTM in float is
    as fast as its steps at 25 MB and 1.08 times faster at 100 MB; in INT8 the steps are 8.6 and 4.2 times
    faster than that (LiteRT 2.3.0 on x86-64, one thread).
    """

    gates: int
    activations: tuple[str, ...]
    groups: tuple[Group, ...]
    most_copies: int


KINDS: Mapping[str, Kind] = {
    "GRU": Kind(3, ("Sigmoid", "Tanh"), (Group("gates", 0, 2), Group("hidden", 2, 3)), 128 << 20),
    "LSTM": Kind(4, ("Sigmoid", "Tanh", "Tanh"), (Group("gates", 0, 3), Group("cell", 3, 4)), 32 << 20),
    "RNN": Kind(1, ("Tanh",), (Group("state", 0, 1),), 128 << 20),
}
"""By operation. Update, reset and hidden; input, output, forget and cell."""


@dataclass(frozen=True)
class Weights:
    """Of one direction. Arrays hold one gate below the other: ``w`` is (gates * hidden, inputs).

    ``before`` is added to the products with the inputs, ``within`` to those with the state.
    """

    hidden: int
    w: np.ndarray
    r: np.ndarray
    before: np.ndarray
    within: np.ndarray
    peepholes: np.ndarray | None
    activations: tuple[str, ...]

    def rows(self, array: np.ndarray, group: Group) -> np.ndarray:
        """What belongs to some gates."""
        return array[group.start * self.hidden : group.stop * self.hidden]


def kind_of(node: ir.Node) -> Kind | None:
    """The kind of a recurrent node; None for every other."""
    return KINDS.get(node.op_type) if node.domain == "" else None


def can_be_written_out(node: ir.Node) -> bool:
    """Whether a layer's weights are constants and its steps known, alike for all samples, and not too many.

    Coupled gates and activations with parameters of their own are not written out either.
    """
    kind = kind_of(node)
    if kind is None:
        return False
    weights, recurrent = (constant(input_of(node, position)) for position in (1, 2))
    if weights is None or recurrent is None or weights.dtype != np.float32:
        return False
    if any(v is not None and constant(v) is None for v in (input_of(node, 3), input_of(node, 7))):
        return False
    steps = steps_of(node)
    if steps is None or not 0 < steps * len(recurrent) <= _MOST_STEPS:
        return False
    if steps * recurrent.nbytes > kind.most_copies:
        return False
    lengths = input_of(node, 4)
    if lengths is not None:
        given = constant(lengths)
        if given is None or (given != steps).any():
            return False
    if node.attributes.get_int("input_forget", 0):
        return False
    return set(_functions(node, kind, len(weights))) <= set(_ACTIVATIONS)


def time_axis(node: ir.Node) -> int:
    """Of the input: 0, or 1 where the batch comes first."""
    return 1 if node.attributes.get_int("layout", 0) else 0


def steps_of(node: ir.Node) -> int | None:
    """The length of a recurrent layer's sequence where that is known."""
    x = input_of(node, 0)
    size = None if x is None or x.shape is None else x.shape[time_axis(node)]
    return size if isinstance(size, int) else None


def weights_of(node: ir.Node, kind: Kind) -> list[Weights]:
    """The weights of each direction of a node that can be written out."""
    w, r, bias, peepholes = (constant(input_of(node, position)) for position in (1, 2, 3, 7))
    assert w is not None and r is not None
    count, hidden, rows = len(w), r.shape[2], kind.gates * r.shape[2]
    functions, each = _functions(node, kind, count), len(kind.activations)
    apart = resets_afterwards(node)
    made = []
    for number in range(count):
        both = np.zeros(2 * rows, np.float32) if bias is None else bias[number]
        before, within = (half.copy() for half in np.split(both, 2))
        joined = 2 * hidden if apart else rows
        before[:joined] += within[:joined]
        within[:joined] = 0
        made.append(
            Weights(
                hidden=hidden,
                w=w[number],
                r=r[number],
                before=before,
                within=within,
                peepholes=None if peepholes is None else peepholes[number],
                activations=functions[number * each : (number + 1) * each],
            )
        )
    return made


def resets_afterwards(node: ir.Node) -> bool:
    """Whether a GRU's reset gate is multiplied with what the state's product gives."""
    return node.op_type == "GRU" and node.attributes.get_int("linear_before_reset", 0) != 0


def input_of(node: ir.Node, position: int) -> ir.Value | None:
    """An operand that may be left out."""
    return node.inputs[position] if position < len(node.inputs) else None


def is_zeros(value: ir.Value) -> bool:
    """Whether all numbers of a value are zero, even where its sizes are computed."""
    array = constant(value)
    if array is not None:
        return not array.any()
    node = value.producer()
    if node is None or node.domain != "" or node.op_type not in _OF_ZEROS:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get_tensor("value", None)
        return fill is None or not fill.numpy().any()
    source = node.inputs[0]
    return source is not None and is_zeros(source)


def _functions(node: ir.Node, kind: Kind, count: int) -> tuple[str, ...]:
    """The activations of all directions, as ONNX calls them; what has parameters is called otherwise."""
    if any(node.attributes.get_floats(f"activation_{name}", None) for name in ("alpha", "beta")):
        return ("",)
    given = tuple(name.capitalize() for name in node.attributes.get_strings("activations", None) or ())
    whole = given or kind.activations
    return whole * (count if len(whole) == len(kind.activations) else 1)

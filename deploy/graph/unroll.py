"""Recurrent layers written out step by step: products with constant weights, and arithmetic on gates.

No runtime has an integer kernel for a whole layer that takes a plan's parameters; all have one for a product.
The products with the inputs of all steps are one MatMul for each group of gates, and so a block of their own
(``gru/inputs``); all steps read the same constants and are a second one (``gru/steps``). Gates that one
activation follows are one group, for one range has to serve what is computed together.

The axis of the steps stays, of size 1, so a step has the form of Y_h and no value is reshaped. Formulas are
those of ONNX (operators LSTM-14, GRU-14, RNN-14).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import Attribute, add_initializer, constant, fresh_name, names, substitute
from deploy.graph.origin import mark
from deploy.graph.recurrent import (
    Group,
    Kind,
    Weights,
    can_be_written_out,
    input_of,
    is_zeros,
    kind_of,
    resets_afterwards,
    steps_of,
    time_axis,
    weights_of,
)


@dataclass(frozen=True)
class State:
    """What a step leaves to the next, of the form of one step; None stands for zeros."""

    h: ir.Value | None
    c: ir.Value | None = None


@dataclass
class Layer:
    """A recurrent node being written out before itself."""

    model: ir.Model
    node: ir.Node
    taken: set[str]
    kind: Kind
    steps: int
    time: int
    """The axis of the steps: 0, or 1 where the batch comes first."""
    blocks: dict[str, str] = field(default_factory=dict)
    """Names of its blocks by what they hold."""

    def add(
        self,
        part: str,
        op_type: str,
        inputs: Sequence[ir.Value],
        attributes: dict[str, Attribute] | None = None,
        *,
        outputs: int = 1,
        block: str = "steps",
    ) -> list[ir.Value]:
        """A node more, ``<layer>/<part>``; its results are called alike."""
        name = fresh_name(self.model, f"{self.node.name}/{part}", self.taken)
        made = [
            ir.Value(name=name if outputs == 1 else fresh_name(self.model, f"{name}/{i}", self.taken))
            for i in range(outputs)
        ]
        node = ir.node(op_type, inputs, attributes=attributes, name=name, outputs=made)
        if block not in self.blocks:
            self.blocks[block] = fresh_name(self.model, f"{self.node.name}/{block}", self.taken)
        mark(node, self.node, self.blocks[block])
        assert self.node.graph is not None
        self.node.graph.insert_before(self.node, node)
        return made

    def store(self, part: str, array: np.ndarray) -> ir.Value:
        """A constant more."""
        return add_initializer(self.model, f"{self.node.name}/{part}", array, self.taken)


@dataclass
class Direction:
    """One direction of a layer, on its way through the steps."""

    layer: Layer
    prefix: str
    weights: Weights
    clip: float
    at: int = 0
    """The step that is being written."""
    _stored: dict[str, ir.Value] = field(default_factory=dict)

    def op(self, part: str, op_type: str, *inputs: ir.Value) -> ir.Value:
        """The result of a node of this step."""
        return self.layer.add(f"{self.prefix}step{self.at}/{part}", op_type, inputs)[0]

    def parts(self, part: str, value: ir.Value, count: int) -> list[ir.Value]:
        """Gates that were computed together, one by one."""
        if count == 1:
            return [value]
        split: dict[str, Attribute] = {"axis": -1, "num_outputs": count}
        return self.layer.add(f"{self.prefix}step{self.at}/{part}", "Split", [value], split, outputs=count)

    def constant(self, part: str, array: np.ndarray) -> ir.Value:
        """A constant that all steps share."""
        if part not in self._stored:
            self._stored[part] = self.layer.store(f"{self.prefix}{part}", np.ascontiguousarray(array))
        return self._stored[part]

    def product(self, h: ir.Value, group: Group) -> ir.Value:
        """A state times the weights of some gates. A bias is stored for each step, where its scale is
        another one: it follows from the range of the state."""
        weights = self.constant(f"r/{group.name}", self.weights.rows(self.weights.r, group).T)
        made = self.op(f"{group.name}/product", "MatMul", h, weights)
        within = self.weights.rows(self.weights.within, group)
        if not within.any():
            return made
        bias = self.layer.store(f"{self.prefix}step{self.at}/{group.name}/bias", within.copy())
        return self.op(f"{group.name}/biased", "Add", made, bias)

    def within_alone(self, group: Group) -> ir.Value | None:
        """What a state of zeros gives: the bias, where there is one."""
        within = self.weights.rows(self.weights.within, group)
        return self.constant(f"within/{group.name}", within) if within.any() else None

    def activated(self, number: int, value: ir.Value, part: str) -> ir.Value:
        """By the first, second or third activation, behind the clipping where there is some."""
        if self.clip:
            bounds = {"least": -self.clip, "most": self.clip}
            limits = [self.constant(name, np.array(bound, np.float32)) for name, bound in bounds.items()]
            value = self.op(f"{part}/clip", "Clip", value, *limits)
        return self.op(part, self.weights.activations[number], value)

    def peeped(self, number: int, part: str, value: ir.Value, c: ir.Value | None) -> ir.Value:
        """A gate that sees the state of the cell through its peephole."""
        holes, hidden = self.weights.peepholes, self.weights.hidden
        if holes is None or c is None:
            return value
        hole = self.constant(f"peephole/{part}", holes[number * hidden :][:hidden])
        return self.op(f"{part}/sum", "Add", value, self.op(f"{part}/peephole", "Mul", c, hole))


def unroll_recurrent(model: ir.Model) -> int:
    """Write out every layer that can be (`graph/recurrent.py`); the others are left as they are."""
    taken: set[str] | None = None
    done = 0
    for node in list(model.graph):
        kind = kind_of(node)
        if kind is None or not can_be_written_out(node):
            continue
        taken, steps = taken or names(model), steps_of(node)
        assert steps is not None
        _write_out(Layer(model, node, taken, kind, steps, time_axis(node)))
        done += 1
    return done


# --- a layer ------------------------------------------------------------------------------------------------


def _write_out(layer: Layer) -> None:
    node, steps, time = layer.node, layer.steps, layer.time
    x = node.inputs[0]
    assert x is not None
    directions = _directions(layer)
    starts = _starts(layer, len(directions))
    sequences: list[list[ir.Value]] = []
    ends: list[State] = []
    for number, (direction, state) in enumerate(zip(directions, starts, strict=True)):
        groups = [_at_all_steps(direction, x, group) for group in layer.kind.groups]
        backward = number == 1 or node.attributes.get_string("direction", "forward") == "reverse"
        made: list[ir.Value] = []
        for at in reversed(range(steps)) if backward else range(steps):
            direction.at = at
            state = _STEPS[node.op_type](direction, [group[at] for group in groups], state)
            assert state.h is not None
            made.append(state.h)
        sequences.append(made[::-1] if backward else made)
        ends.append(state)
    y, y_h, y_c = (*node.outputs, None, None, None)[:3]
    if y is not None and _is_read(y):
        _whole(layer, y, sequences)
    for value, last in ((y_h, [end.h for end in ends]), (y_c, [end.c for end in ends])):
        if value is not None and _is_read(value):
            found = [state for state in last if state is not None]
            # (directions, batch, hidden), or with the batch first (batch, directions, hidden)
            _becomes(layer, value, _joined(layer, "ends", found, time))
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _at_all_steps(direction: Direction, x: ir.Value, group: Group) -> list[ir.Value]:
    """The inputs of each step times the weights of some gates: one product."""
    layer, prefix = direction.layer, direction.prefix
    part = f"{prefix}inputs/{group.name}"
    w = np.ascontiguousarray(direction.weights.rows(direction.weights.w, group).T)
    weights = layer.store(f"{prefix}w/{group.name}", w)
    made = layer.add(part, "MatMul", [x, weights], block="inputs")[0]
    before = direction.weights.rows(direction.weights.before, group)
    if before.any():
        bias = layer.store(f"{prefix}b/{group.name}", before.copy())
        made = layer.add(f"{part}/biased", "Add", [made, bias], block="inputs")[0]
    if layer.steps == 1:
        return [made]
    split: dict[str, Attribute] = {"axis": layer.time, "num_outputs": layer.steps}
    return layer.add(f"{part}/steps", "Split", [made], split, outputs=layer.steps)


def _whole(layer: Layer, y: ir.Value, sequences: Sequence[Sequence[ir.Value]]) -> None:
    """Y: (time, directions, batch, hidden), or with the batch first (batch, time, directions, hidden).

    Who only takes the axis of one direction away again reads the sequence itself.
    """
    place = layer.time + 1
    whole = [_joined(layer, "sequence", states, layer.time) for states in sequences]
    if len(whole) == 1:
        for reader in [reader for reader, _ in y.uses() if reader.op_type == "Squeeze"]:
            given = constant(input_of(reader, 1))
            if given is not None and [int(axis) % 4 for axis in given] == [place]:
                _becomes(layer, reader.outputs[0], whole[0])
                assert reader.graph is not None
                reader.graph.remove(reader, safe=True)
        if not _is_read(y):
            return
    axis = layer.store("axis", np.array([place], np.int64))
    apart = [layer.add("whole", "Unsqueeze", [sequence, axis])[0] for sequence in whole]
    _becomes(layer, y, _joined(layer, "directions", apart, place))


def _joined(layer: Layer, part: str, values: Sequence[ir.Value], axis: int) -> ir.Value:
    return values[0] if len(values) == 1 else layer.add(part, "Concat", values, {"axis": axis})[0]


def _becomes(layer: Layer, old: ir.Value, new: ir.Value) -> None:
    """Let who reads ``old`` read ``new``; by a node that does nothing where both are known outside."""
    if new.shape is None:  # the next layer asks for it
        new.shape, new.type = old.shape, old.type
    if not substitute(old, new):
        substitute(old, layer.add("same", "Identity", [new])[0])


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _starts(layer: Layer, count: int) -> list[State]:
    """The state before the first step, of each direction."""
    found: list[list[ir.Value | None]] = []
    for position, part in ((5, "initial_h"), (6, "initial_c")):
        value = input_of(layer.node, position)
        if value is None or is_zeros(value):
            found.append([None] * count)
        elif count == 1:
            found.append([value])
        else:
            split: dict[str, Attribute] = {"axis": layer.time, "num_outputs": count}
            found.append([*layer.add(part, "Split", [value], split, outputs=count)])
    return [State(h, c) for h, c in zip(*found, strict=True)]


def _directions(layer: Layer) -> list[Direction]:
    weights = weights_of(layer.node, layer.kind)
    prefixes = ("",) if len(weights) == 1 else ("forward/", "backward/")
    clip = layer.node.attributes.get_float("clip", 0.0)
    return [Direction(layer, prefix, own, clip) for prefix, own in zip(prefixes, weights, strict=True)]


# --- the steps ----------------------------------------------------------------------------------------------


def _sum(layer: Direction, x: ir.Value, h: ir.Value | None, group: Group) -> ir.Value:
    """What inputs and state give together."""
    return x if h is None else layer.op(f"{group.name}/sum", "Add", x, layer.product(h, group))


def _gru_step(layer: Direction, xs: Sequence[ir.Value], state: State) -> State:
    """Gates: update, reset, hidden. H = (1 - z) n + z H, as n + z (H - n)."""
    both, last = layer.layer.kind.groups
    h, x = state.h, xs[1]
    z, r = layer.parts("gate", layer.activated(0, _sum(layer, xs[0], h, both), "gates"), 2)
    if resets_afterwards(layer.layer.node):
        inner = layer.within_alone(last) if h is None else layer.product(h, last)
        if inner is not None:
            x = layer.op("hidden/sum", "Add", x, layer.op("reset", "Mul", r, inner))
    elif h is not None:
        x = _sum(layer, x, layer.op("reset", "Mul", r, h), last)
    n = layer.activated(1, x, "hidden")
    if h is None:
        return State(layer.op("state", "Sub", n, layer.op("kept", "Mul", z, n)))
    kept = layer.op("kept", "Mul", z, layer.op("difference", "Sub", h, n))
    return State(layer.op("state", "Add", n, kept))


def _lstm_step(layer: Direction, xs: Sequence[ir.Value], state: State) -> State:
    """Gates: input, output, forget, cell. C = f C + i c, H = o h(C)."""
    open_, last = layer.layer.kind.groups
    gates = _sum(layer, xs[0], state.h, open_)
    if layer.weights.peepholes is None:
        i, o, f = layer.parts("gate", layer.activated(0, gates, "gates"), 3)
    else:
        i, o, f = layer.parts("gate", gates, 3)
        i = layer.activated(0, layer.peeped(0, "input", i, state.c), "input")
        f = layer.activated(0, layer.peeped(2, "forget", f, state.c), "forget")
    c = layer.op("new", "Mul", i, layer.activated(1, _sum(layer, xs[1], state.h, last), "cell"))
    if state.c is not None:
        c = layer.op("state_c", "Add", layer.op("kept", "Mul", f, state.c), c)
    if layer.weights.peepholes is not None:
        o = layer.activated(0, layer.peeped(1, "output", o, c), "output")
    return State(layer.op("state", "Mul", o, layer.op("seen", layer.weights.activations[2], c)), c)


def _rnn_step(layer: Direction, xs: Sequence[ir.Value], state: State) -> State:
    return State(layer.activated(0, _sum(layer, xs[0], state.h, *layer.layer.kind.groups), "state"))


_STEPS: Mapping[str, Callable[[Direction, Sequence[ir.Value], State], State]] = {
    "GRU": _gru_step,
    "LSTM": _lstm_step,
    "RNN": _rnn_step,
}

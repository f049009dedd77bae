"""Recurrent layers, unrolled over their steps, which XNNPACK takes whole.

The products with the inputs of all steps are one FULLY_CONNECTED before the first step, and every step reads
the same constants. But XNNPACK packs a copy of its weights for each operator, so long sequences of large
states are slower than LiteRT's fused LSTM and take more memory (LiteRT 2.3.0 on x86-64, one thread: 49 steps
of 64 states 0.08 ms against 0.16; 300 steps of 256 states 14.7 ms and 314 MB against 9.7 ms).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from backends.tflite.emitter import Emitter
from backends.tflite.known import FIX_SIZES, known, zeros
from backends.tflite.layout import Order, plain
from backends.tflite.network import Options
from backends.tflite.ops.fused_lstm import fused_lstm
from backends.tflite.ops.join import cut_step, joined_step
from backends.tflite.optable import OpTable
from backends.tflite.terms import Term
from deploy.adapter.optable import Unsupported
from deploy.graph.edit import constant

ops = OpTable()

_LONGEST = 1024
"""Steps. A thousand make a file of some 4 MB beside the weights."""
_FUSED_FROM = 8 << 20
"""Bytes of all copies of a layer's weights, from which on the fused operator is taken."""
_LARGEST = 512 << 20
"""Bytes of copies beyond which a layer without a fused operator is refused."""
_ACTIVATIONS = {"sigmoid": "LOGISTIC", "tanh": "TANH", "relu": "RELU"}

Step = Callable[["Direction", Term, "State"], "State"]


@dataclass(frozen=True)
class State:
    """Of one step, shaped like one step of the input; None stands for zeros."""

    h: Term | None
    c: Term | None = None


@dataclass(frozen=True)
class Direction:
    """One direction of a layer. Arrays hold one gate below the other: ``w`` is (gates * hidden, inputs).

    ``before`` is added to the products with the inputs, ``within`` to those with the state.
    """

    out: Emitter
    name: str
    hidden: int
    w: np.ndarray
    r: np.ndarray
    before: np.ndarray
    within: np.ndarray
    peepholes: np.ndarray | None
    activations: tuple[str, ...]
    clip: float
    linear_before_reset: bool
    matrices: dict[tuple[int, int], tuple[int, int]]

    def recurrent(self, h: Term, start: int, stop: int) -> Term:
        """The product of a state with the weights of some gates."""
        if (start, stop) not in self.matrices:
            rows = slice(start * self.hidden, stop * self.hidden)
            self.matrices[start, stop] = (
                self.out.numbers(np.ascontiguousarray(self.r[rows]), f"{self.name}/r"),
                self.out.numbers(self.within[rows], f"{self.name}/within"),
            )
        shape = (*h.shape[:-1], (stop - start) * self.hidden)
        return Term(self.out, product(self.out, h.index, *self.matrices[start, stop], shape))

    def activated(self, number: int, term: Term) -> Term:
        """The layer's first, second or third activation."""
        if self.clip:
            term = term.at_most(self.clip).at_least(-self.clip)
        return term.apply(self.activations[number])

    def peeped(self, number: int, term: Term, c: Term | None) -> Term:
        """With the cell state seen through a peephole."""
        if self.peepholes is None or c is None:
            return term
        rows = self.peepholes[number * self.hidden : (number + 1) * self.hidden]
        return term + c * Term(self.out, self.out.numbers(rows, f"{self.name}/peephole"))


@ops.lower("LSTM")
def lstm(node: ir.Node, out: Emitter) -> None:
    """Gates: input, output, forget, cell."""
    if node.attributes.get_int("input_forget", 0):
        raise Unsupported("coupled input and forget gates: export it with separate ones")
    _unrolled(node, out, 4, ("Sigmoid", "Tanh", "Tanh"), _lstm_step)


@ops.lower("GRU")
def gru(node: ir.Node, out: Emitter) -> None:
    """Gates: update, reset, hidden."""
    _unrolled(node, out, 3, ("Sigmoid", "Tanh"), _gru_step)


@ops.lower("RNN")
def rnn(node: ir.Node, out: Emitter) -> None:
    _unrolled(node, out, 1, ("Tanh",), _rnn_step)


def _lstm_step(layer: Direction, x: Term, state: State) -> State:
    gates = x if state.h is None else x + layer.recurrent(state.h, 0, 4)
    if layer.peepholes is None:
        open_, cell = _parts(layer, gates, (3, 1))
        i, o, f = _equal_parts(layer, layer.activated(0, open_), 3)
    else:
        i, o, f, cell = _equal_parts(layer, gates, 4)
        i, f = (layer.activated(0, layer.peeped(n, gate, state.c)) for n, gate in ((0, i), (2, f)))
    c = i * layer.activated(1, cell)
    if state.c is not None:
        c = f * state.c + c
    if layer.peepholes is not None:
        o = layer.activated(0, layer.peeped(1, o, c))
    return State(o * c.apply(layer.activations[2]), c)


def _gru_step(layer: Direction, x: Term, state: State) -> State:
    gates, candidate = _parts(layer, x, (2, 1))
    if state.h is None:
        z, r = _equal_parts(layer, layer.activated(0, gates), 2)
        if layer.linear_before_reset and layer.within.any():
            rows = layer.within[2 * layer.hidden :]
            candidate = candidate + r * Term(layer.out, layer.out.numbers(rows, f"{layer.name}/within"))
        n = layer.activated(1, candidate)
        return State(n - z * n)
    z, r = _equal_parts(layer, layer.activated(0, gates + layer.recurrent(state.h, 0, 2)), 2)
    if layer.linear_before_reset:
        candidate = candidate + r * layer.recurrent(state.h, 2, 3)
    else:
        candidate = candidate + layer.recurrent(r * state.h, 2, 3)
    n = layer.activated(1, candidate)
    return State(n + z * (state.h - n))


def _rnn_step(layer: Direction, x: Term, state: State) -> State:
    return State(layer.activated(0, x if state.h is None else x + layer.recurrent(state.h, 0, 1)))


# --- a layer ------------------------------------------------------------------------------------------------


def _unrolled(node: ir.Node, out: Emitter, gates: int, activations: Sequence[str], step: Step) -> None:
    shape = out.shape(node.inputs[0])
    batch_first = node.attributes.get_int("layout", 0) != 0
    time, batch = (1, 0) if batch_first else (0, 1)
    steps = shape[time]
    _require_whole(node, out, steps)
    source = out.read(node.inputs[0])
    if out.tensors[source].order[-1] != 2:
        source = out.reordered(source, plain(3))
    order = out.tensors[source].order
    place = order.index(time)
    directions = _directions(node, out, gates, activations)
    starts = [_initial(node, out, number, place, batch_first) for number in range(len(directions))]
    ends: list[State] = []
    sequences: list[int] = []
    for number, layer in enumerate(directions):
        backward = number == 1 or node.attributes.get_string("direction", "forward") == "reverse"
        made, state = [], starts[number]
        if _is_fused(node, layer, steps, starts[number]) and shape[batch] > 0:
            whole = fused_lstm(
                out, source, place, layer.w, layer.r, layer.before, layer.peepholes, backward=backward
            )
            sequences.append(whole)
            ends.append(State(Term(out, _end(out, whole, place, 0 if backward else -1))))
            continue
        _require_small(layer, steps)
        products = _products(out, layer, source)
        for at in reversed(range(steps)) if backward else range(steps):
            state = step(layer, Term(out, _at(out, products, place, at)), state)
            assert state.h is not None
            made.append(state.h.index)
        ends.append(state)
        sequences.append(joined_step(out, made[::-1] if backward else made, place))
    _results(node, out, sequences, ends, (time, batch), order)


def _is_fused(node: ir.Node, layer: Direction, steps: int, start: State) -> bool:
    """Whether the fused operator computes a layer, and is the better one for it."""
    usual = layer.activations == ("LOGISTIC", "TANH", "TANH") and not layer.clip
    from_zeros = start.h is None and start.c is None
    reads_cell = len(node.outputs) > 2 and bool(node.outputs[2].name)
    large = steps < 0 or steps > _LONGEST or steps * layer.r.nbytes > _FUSED_FROM
    return node.op_type == "LSTM" and usual and from_zeros and not reads_cell and large


def _require_small(layer: Direction, steps: int) -> None:
    if steps < 0:
        raise Unsupported(f"a free number of steps: {FIX_SIZES}")
    if steps > _LONGEST:
        raise Unsupported(f"{steps} steps, and at most {_LONGEST} are unrolled: feed it in parts")
    if steps * layer.r.nbytes > _LARGEST:
        size = steps * layer.r.nbytes >> 20
        raise Unsupported(f"{steps} steps would hold {size} MB of copies of its weights: feed it in parts")


def _end(out: Emitter, source: int, place: int, at: int) -> int:
    """The first or last step of a sequence."""
    steps = out.tensors[source].shape[place]
    if at == 0:
        return cut_step(out, source, place, 0, 1)
    return cut_step(out, source, place, steps - 1 if steps > 0 else -1, steps if steps > 0 else None)


def _results(
    node: ir.Node,
    out: Emitter,
    sequences: Sequence[int],
    ends: Sequence[State],
    axes: tuple[int, int],
    order: Order,
) -> None:
    """Y with the directions beside each other before the last axis, as they are made; Y_h and Y_c."""
    y, y_h, y_c = (*node.outputs, None, None, None)[:3]
    time, _ = axes
    if y is not None and y.name:
        whole = joined_step(out, sequences, 2)
        # Y is (time, directions, batch, hidden), or with batch first (batch, time, directions, hidden).
        names = (
            ("batch", "time", "directions", "hidden") if time else ("time", "directions", "batch", "hidden")
        )
        x_names = ("batch", "time") if time else ("time", "batch")
        lies = [*(x_names[axis] for axis in order[:2]), "directions", "hidden"]
        kept = tuple(names.index(name) for name in lies)
        shape = out.shape(y)
        if shape[names.index("directions")] == 1:  # stands anywhere
            kept = _straight(kept, names.index("directions"))
        _reshaped_result(out, whole, y, kept)
    for value, states in ((y_h, [end.h for end in ends]), (y_c, [end.c for end in ends])):
        if value is not None and value.name:
            _last(out, value, [state.index for state in states if state is not None], time)


def _straight(order: Order, free: int) -> Order:
    """The order with an axis of size 1 where ONNX has it, if the others are in ONNX's order."""
    others = [axis for axis in order if axis != free]
    return plain(len(order)) if others == sorted(others) else order


def _last(out: Emitter, value: ir.Value, states: Sequence[int], time: int) -> None:
    """(directions, batch, hidden), or with batch first (batch, directions, hidden)."""
    batch, hidden = (size for axis, size in enumerate(out.shape(value)) if axis != time)
    axis = 1 if time else 0
    one = (batch, 1, hidden) if time else (1, batch, hidden)
    shape = out.numbers(np.array(one, np.int32), f"{out.node}/shape")
    parts = [out.step("RESHAPE", [index, shape], one) for index in states]
    _reshaped_result(out, joined_step(out, parts, axis), value, plain(3))


def _reshaped_result(out: Emitter, index: int, value: ir.Value, order: Order) -> None:
    stored = [out.shape(value)[axis] for axis in order]
    sizes = out.numbers(np.array(stored, np.int32), f"{out.node}/shape")
    out.emit("RESHAPE", [index, sizes], value, order=order, version=1)


def _products(out: Emitter, layer: Direction, source: int) -> int:
    """The inputs of all steps times the weights."""
    shape = (*out.tensors[source].shape[:-1], len(layer.w))
    w = out.numbers(np.ascontiguousarray(layer.w), f"{layer.name}/w")
    before = out.numbers(layer.before, f"{layer.name}/before")
    return product(out, source, w, before, shape)


def product(out: Emitter, source: int, weights: int, bias: int, shape: Sequence[int]) -> int:
    """Along the last axis, whatever the others."""
    options: Options = ("FullyConnectedOptions", {"fusedActivationFunction": "NONE", "keepNumDims": True})
    return out.step("FULLY_CONNECTED", [source, weights, bias], shape, options, version=5)


def _at(out: Emitter, source: int, place: int, step: int) -> int:
    """One step of a sequence; the axis stays, of size 1."""
    shape = list(out.tensors[source].shape)
    return cut_step(out, source, place, step, step + 1) if shape[place] != 1 else source


def _parts(layer: Direction, term: Term, gates: Sequence[int]) -> list[Term]:
    """Some gates each."""
    last, start, made = len(term.shape) - 1, 0, []
    for count in gates:
        stop = start + count * layer.hidden
        made.append(Term(layer.out, cut_step(layer.out, term.index, last, start, stop)))
        start = stop
    return made


def _equal_parts(layer: Direction, term: Term, count: int) -> list[Term]:
    return _parts(layer, term, (1,) * count)


# --- what the node says -------------------------------------------------------------------------------------


def _directions(node: ir.Node, out: Emitter, gates: int, activations: Sequence[str]) -> list[Direction]:
    w, r = (constant(node.inputs[position]) for position in (1, 2))
    if w is None or r is None or w.dtype != np.float32:
        raise Unsupported("its weights must be constants, float32")
    hidden, count = r.shape[2], len(w)
    given = node.inputs[3] if len(node.inputs) > 3 else None
    bias = np.zeros((count, 2 * gates * hidden), np.float32) if given is None else constant(given)
    seen = node.inputs[7] if len(node.inputs) > 7 else None
    peepholes = None if seen is None else constant(seen)
    if bias is None or (seen is not None and peepholes is None):
        raise Unsupported("its bias and peepholes must be constants")
    functions = [name.lower() for name in node.attributes.get_strings("activations", activations)] or [
        name.lower() for name in activations
    ]
    functions *= count if len(functions) == len(activations) else 1
    unknown = [name for name in functions if name not in _ACTIVATIONS]
    if unknown:
        raise Unsupported(f"the activation {unknown[0]}: Sigmoid, Tanh and Relu are written")
    linear = node.attributes.get_int("linear_before_reset", 0) != 0
    made = []
    for number in range(count):
        half = gates * hidden
        before, within = bias[number, :half].copy(), bias[number, half:].copy()
        joined = half if not (linear and gates == 3) else 2 * hidden
        before[:joined] += within[:joined]
        within[:joined] = 0
        own = functions[number * len(activations) : (number + 1) * len(activations)]
        made.append(
            Direction(
                out=out,
                name=out.node,
                hidden=hidden,
                w=w[number],
                r=r[number],
                before=before,
                within=within,
                peepholes=None if peepholes is None else peepholes[number],
                activations=tuple(_ACTIVATIONS[name] for name in own),
                clip=node.attributes.get_float("clip", 0.0),
                linear_before_reset=linear,
                matrices={},
            )
        )
    return made


def _require_whole(node: ir.Node, out: Emitter, steps: int) -> None:
    """Sequences of different lengths are no operation of TFLite's."""
    given = node.inputs[4] if len(node.inputs) > 4 else None
    if given is None:
        return
    lengths = known(out, given)
    if lengths is None or not np.array_equal(lengths, np.full_like(lengths, steps)):
        raise Unsupported("sequences that end before the last step: leave sequence_lens out")


def _initial(node: ir.Node, out: Emitter, number: int, place: int, batch_first: bool) -> State:
    """The state before the first step, shaped like one step."""
    found: list[Term | None] = []
    for position in (5, 6):
        value = node.inputs[position] if position < len(node.inputs) else None
        if value is None or zeros(out, value):
            found.append(None)
            continue
        index = out.read(value, plain(3))
        if out.tensors[index].shape[int(batch_first)] != 1:
            index = cut_step(out, index, int(batch_first), number, number + 1)
        sizes = [size for axis, size in enumerate(out.tensors[index].shape) if axis != int(batch_first)]
        sizes.insert(place, 1)
        shape = out.numbers(np.array(sizes, np.int32), f"{out.node}/shape")
        found.append(Term(out, out.step("RESHAPE", [index, shape], sizes)))
    return State(*found)

"""LSTM, GRU and plain recurrent layers, step by step; what the input adds is computed for all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused
from backends.coreml.interpret.ops.activation import relu, sigmoid

_Activation = Callable[[np.ndarray], np.ndarray]


def _hard_sigmoid(x: np.ndarray) -> np.ndarray:
    return np.clip(np.float32(0.2) * x + np.float32(0.5), 0, 1)


def _linear(x: np.ndarray) -> np.ndarray:
    return x


_ACTIVATIONS: Mapping[str, _Activation] = {
    "tanh": np.tanh, "sigmoid": sigmoid, "relu": relu, "linear": _linear, "hard_sigmoid": _hard_sigmoid,
    "sigmoid_hard": _hard_sigmoid, "scaled_tanh": np.tanh,
}  # fmt: skip
"""By the names of the parameters; what scales them stays at 1, so that one of them is a plain tanh."""


def _activation(call: Call, name: str, default: str) -> _Activation:
    kind = call.text(name, default)
    if kind not in _ACTIVATIONS:
        raise Refused(f"activation {kind}")
    return _ACTIVATIONS[kind]


def _weights(call: Call, gates: int, suffix: str = "") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the input, of the state, and the bias."""
    inputs, states = call.array(f"weight_ih{suffix}"), call.array(f"weight_hh{suffix}")
    if inputs.ndim != 2 or states.ndim != 2 or states.shape[0] != gates * states.shape[1]:
        raise Refused(f"weights {list(inputs.shape)} and {list(states.shape)}")
    bias = call.maybe(f"bias{suffix}")
    return inputs, states, np.zeros(len(states), np.float32) if bias is None else bias


def _steps(x: np.ndarray, reverse: bool) -> list[int]:
    if x.ndim != 3 or x.shape[0] < 1:
        raise Refused(f"a sequence {list(x.shape)}")
    order = list(range(x.shape[0]))
    return order[::-1] if reverse else order


def _sequence(call: Call, made: list[np.ndarray]) -> np.ndarray:
    """All states in the order in which they were made, or the last one alone.

    So a layer in reverse gives its sequence turned around (coremltools' tests have it so), a bidirectional
    one does not.
    """
    return np.stack(made) if call.flag("output_sequence") else made[-1][None]


def _reversed(call: Call) -> bool:
    direction = call.text("direction", "forward")
    if direction not in ("forward", "reverse"):
        raise Refused(f"direction {direction}")
    return direction == "reverse"


def lstm(call: Call) -> tuple[np.ndarray, ...]:
    x, h, c = call.array("x"), call.array("initial_h"), call.array("initial_c")
    if call.text("direction", "forward") != "bidirectional":
        return _lstm(call, x, h, c, "", _reversed(call))
    half = h.shape[-1] // 2
    ahead = _lstm(call, x, h[:, :half], c[:, :half], "", False)
    back = _lstm(call, x, h[:, half:], c[:, half:], "_back", True)
    turned = (back[0][::-1], *back[1:])
    return tuple(np.concatenate(pair, -1) for pair in zip(ahead, turned, strict=True))


def _lstm(
    call: Call, x: np.ndarray, h: np.ndarray, c: np.ndarray, suffix: str, reverse: bool
) -> tuple[np.ndarray, ...]:
    """Gates in the order input, forget, output, cell; ``clip`` bounds the state of the cell."""
    w, r, bias = _weights(call, 4, suffix)
    gate = _activation(call, "recurrent_activation", "sigmoid")
    cell, out = _activation(call, "cell_activation", "tanh"), _activation(call, "activation", "tanh")
    clip = call.number("clip", np.inf) if call.has("clip") else np.inf
    peephole = call.maybe(f"peephole{suffix}")
    peeps = [np.float32(0)] * 3 if peephole is None else np.split(peephole, 3)
    order, made = _steps(x, reverse), []
    given = np.matmul(x, w.T) + bias
    for step in order:
        i, f, o, z = np.split(given[step] + np.matmul(h, r.T), 4, axis=-1)
        i, f = gate(i + peeps[0] * c), gate(f + peeps[1] * c)
        c = f * c + i * cell(z)
        c = np.clip(c, -clip, clip) if np.isfinite(clip) else c
        h = gate(o + peeps[2] * c) * out(c)
        made.append(h)
    return _sequence(call, made), h, c


def gru(call: Call) -> tuple[np.ndarray, ...]:
    """Gates in the order reset, output, update. The reset gate acts on the state, or with ``reset_after`` on
    what the state adds."""
    x, h = call.array("x"), call.array("initial_h")
    w, r, bias = _weights(call, 3)
    gate, out = _activation(call, "recurrent_activation", "sigmoid"), _activation(call, "activation", "tanh")
    after, extra = call.flag("reset_after"), call.maybe("input_bias")
    reset, output, update = np.split(r, 3)
    br, bo, bz = np.split(bias, 3)
    given = np.matmul(x, w.T) + (np.float32(0) if extra is None else extra)
    order, made = _steps(x, _reversed(call)), []
    for step in order:
        gr, go, gz = np.split(given[step], 3, axis=-1)
        rt = gate(gr + np.matmul(h, reset.T) + br)
        zt = gate(gz + np.matmul(h, update.T) + bz)
        inner = rt * (np.matmul(h, output.T) + bo) if after else np.matmul(rt * h, output.T) + bo
        h = (1 - zt) * out(go + inner) + zt * h
        made.append(h)
    return _sequence(call, made), h


def rnn(call: Call) -> tuple[np.ndarray, ...]:
    x, h = call.array("x"), call.array("initial_h")
    w, r, bias = _weights(call, 1)
    out = _activation(call, "activation", "tanh")
    given = np.matmul(x, w.T) + bias
    order, made = _steps(x, _reversed(call)), []
    for step in order:
        h = out(given[step] + np.matmul(h, r.T))
        made.append(h)
    return _sequence(call, made), h


KERNELS: Mapping[str, Kernel] = {"lstm": lstm, "gru": gru, "rnn": rnn}

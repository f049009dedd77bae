"""UNIDIRECTIONAL_SEQUENCE_LSTM, for layers too large to be unrolled.

The kernel keeps its state in variable tensors from one call to the next, where ONNX starts every call from
zeros. So the sequence gets a first step that no output shows: a feature of its own closes the input, forget
and output gates there, which leaves zeros in the state whatever stood in it (except what is no number).
"""

from __future__ import annotations

import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.layout import plain
from backends.tflite.network import ABSENT, Options, Tensor
from backends.tflite.ops.join import cut_step

_CLOSED = -1e4
"""The logistic function of it is zero."""


def fused_lstm(
    out: Emitter,
    source: int,
    place: int,
    w: np.ndarray,
    r: np.ndarray,
    bias: np.ndarray,
    peepholes: np.ndarray | None,
    *,
    backward: bool,
) -> int:
    """The states of all steps of a sequence whose steps lie along axis ``place``; the batch has a fixed size.

    Gates are those of ONNX, one below the other: input, output, forget, cell.
    """
    hidden = r.shape[1]
    if backward:
        source = _reversed(out, source, place)
    steps = out.tensors[source].shape[place]
    batch = out.tensors[source].shape[1 - place]
    source = _with_reset(out, source, place)
    closing = np.full((len(w), 1), _CLOSED, np.float32)
    closing[3 * hidden :] = 0
    wide = np.concatenate([w, closing], axis=1)
    given = [source]
    for name, array in (("w", wide), ("r", r)):
        given += [_rows(out, array, gate, hidden, name) for gate in (0, 2, 3, 1)]
    given += [
        ABSENT if peepholes is None else _rows(out, peepholes, gate, hidden, "peephole") for gate in (0, 2, 1)
    ]
    given += [_rows(out, bias, gate, hidden, "bias") for gate in (0, 2, 3, 1)]
    given += [ABSENT, ABSENT]
    for name in ("h", "c"):
        state = Tensor(f"{out.node}/{name}", (batch, hidden), "float32", plain(2), variable=True)
        given.append(out.add(state))
    given += [ABSENT] * 4
    shape = list(out.tensors[source].shape)
    shape[2] = hidden
    options: Options = (
        "UnidirectionalSequenceLSTMOptions",
        {"fusedActivationFunction": "TANH", "timeMajor": place == 0},
    )
    made = out.step("UNIDIRECTIONAL_SEQUENCE_LSTM", given, shape, options)
    made = cut_step(out, made, place, 1, steps + 1 if steps > 0 else None)
    return _reversed(out, made, place) if backward else made


def _rows(out: Emitter, array: np.ndarray, gate: int, hidden: int, name: str) -> int:
    rows = np.ascontiguousarray(array[gate * hidden : (gate + 1) * hidden], np.float32)
    return out.numbers(rows, f"{out.node}/{name}")


def _with_reset(out: Emitter, source: int, place: int) -> int:
    """The sequence behind a step whose only number, in a feature of its own, is one."""
    shape = list(out.tensors[source].shape)
    widths = out.numbers(np.array([[0, 0], [0, 0], [0, 1]], np.int32), f"{out.node}/pads")
    shape[2] += 1
    padded = out.step("PAD", [source, widths], shape, ("PadOptions", {}))
    first = [1 if axis == place else size for axis, size in enumerate(shape)]
    row = np.zeros(first, np.float32)
    row[..., -1] = 1
    reset = out.numbers(row, f"{out.node}/reset")
    shape[place] = -1 if shape[place] < 0 else shape[place] + 1
    return out.step("CONCATENATION", [reset, padded], shape, ("ConcatenationOptions", {"axis": place}))


def _reversed(out: Emitter, source: int, place: int) -> int:
    axis = out.numbers(np.array([place], np.int32), f"{out.node}/axis")
    return out.step("REVERSE_V2", [source, axis], out.tensors[source].shape, ("ReverseV2Options", {}))

"""How much memory TensorFlow Lite Micro takes for a network, before it is on the device.

Its arena has two ends. At one lie the tensors, and what kernels need while they run, planned so that those
whose times do not overlap share memory: that part is computed as it computes it (GreedyMemoryPlanner) and is
exact. From the other grow the records of the interpreter, one for each tensor and operator, and what kernels
keep: that part is an estimate, of sizes measured on 64 bits and reckoned for 32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from backends.tflite.emitter import Emitter
from backends.tflite.micro.kernels import KERNELS
from backends.tflite.network import Operator

_ALIGNED = 16
"""Bytes, of every buffer."""


@dataclass(frozen=True)
class Buffer:
    """Memory that is needed from one operator to another, both included; inputs before the first."""

    size: int
    first: int
    last: int


@dataclass(frozen=True)
class Records:
    """Sizes of the interpreter's records in bytes, where a pointer has ``pointer`` bytes."""

    pointer: int
    base: int
    """The allocator, planner and interpreter themselves."""
    tensor: int
    operator: int
    port: int
    """An input or output, as the program sees it, with its parameters."""
    planning: int
    """For each tensor while planning, in memory that is free again when the network runs."""


BOARD = Records(pointer=4, base=352, tensor=12, operator=32, port=72, planning=28)
"""Boards have 32 bits."""
HERE = Records(pointer=8, base=488, tensor=24, operator=64, port=96, planning=40)
"""As the interpreter for this machine records them."""
_PLANNED = 40
"""Bytes for each planned buffer while planning: its needs, its place in two lists, its offset."""


@dataclass(frozen=True)
class Arena:
    """Bytes. ``tensors`` with the kernels' scratch memory, ``records`` of the interpreter and of kernels.

    ``scratch`` is what optimised kernels (CMSIS-NN) may want more while they run.
    """

    tensors: int
    records: int
    scratch: int

    @property
    def total(self) -> int:
        """An arena of this size holds the network."""
        return _up(self.tensors + self.records + self.scratch)

    def figures(self) -> dict[str, int]:
        """The sizes by name, as an artifact carries them."""
        return {
            "arena": self.total,
            "tensors": self.tensors,
            "records": self.records,
            "scratch": self.scratch,
        }


def arena(out: Emitter, records: Records = BOARD) -> Arena:
    """The memory that what was emitted needs; all of its sizes are fixed."""
    own = list(_tensors(out))
    scratch = [Buffer(size, i + 1, i + 1) for i, op in enumerate(out.operators) for size in _scratch(op, out)]
    optimised = [
        Buffer(size, i + 1, i + 1) for i, op in enumerate(out.operators) if (size := _cmsis_nn(op, out))
    ]
    planned = extent([*own, *scratch])
    kept = _kept(out, records)
    planning = records.planning * (len(out.tensors) + len(scratch)) + _PLANNED * (len(own) + len(scratch))
    return Arena(
        tensors=max(planned, planning),
        records=kept,
        scratch=extent([*own, *scratch, *optimised]) - planned if optimised else 0,
    )


def extent(buffers: Sequence[Buffer]) -> int:
    """The bytes that buffers take together, placed as the greedy planner does: the largest first, each into
    the lowest gap that is free as long as it is needed.

    >>> extent([Buffer(32, 0, 1), Buffer(16, 1, 2), Buffer(32, 2, 3)])
    48
    """
    order = sorted(range(len(buffers)), key=lambda i: (-_up(buffers[i].size), -i))
    placed: list[tuple[int, int, Buffer]] = []  # offset, order of placing
    for number, index in enumerate(order):
        wanted, size, offset = buffers[index], _up(buffers[index].size), 0
        for at, _, other in sorted(placed, key=lambda p: p[:2]):
            if other.first > wanted.last or wanted.first > other.last:
                continue
            if at - offset >= size:
                break
            offset = max(offset, at + _up(other.size))
        placed.append((offset, number, wanted))
    return max((offset + _up(buffer.size) for offset, _, buffer in placed), default=0)


def _tensors(out: Emitter) -> Iterator[Buffer]:
    first = dict.fromkeys((*out.inputs, *out.outputs), 0)
    last = dict(first)
    for time, operator in enumerate(out.operators, start=1):
        for index in operator.outputs:
            first[index] = last[index] = time
        for index in operator.inputs:
            last[index] = time
    last.update(dict.fromkeys(out.outputs, len(out.operators)))
    for index, tensor in enumerate(out.tensors):
        if index in first and tensor.data is None:
            yield Buffer(_bytes(out, index), first[index], last[index])


def _kept(out: Emitter, records: Records) -> int:
    total = records.base + records.tensor * len(out.tensors) + records.operator * len(out.operators)
    total += records.port * (len(out.inputs) + len(out.outputs))
    for operator in out.operators:
        total += KERNELS[operator.code].keeps
        total += records.pointer * max(len(operator.inputs) + len(operator.outputs) - 2, 0)
        if operator.code in ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"):
            total += 2 * _up(4 * _channels(operator, out))  # a multiplier and a shift each
        if operator.code == "BATCH_MATMUL":
            total += _transposed(operator, out)
        if operator.code == "SOFTMAX" and out.tensors[operator.inputs[0]].dtype == "int16":
            total += 2 * _up(2 * 513)  # tables
    return total


def _transposed(operator: Operator, out: Emitter) -> int:
    """Copies of operands that lie the other way round than the kernel of a matrix product reads them."""
    left, right = operator.inputs
    read = operator.options[1]
    copies = [left] * bool(read.get("adjX")) + [right] * (not read.get("adjY"))
    return sum(_up(_bytes(out, index)) for index in copies)


def _scratch(operator: Operator, out: Emitter) -> Iterator[int]:
    """What the reference kernels ask for while they run."""
    result = out.tensors[operator.outputs[0]]
    if operator.code in ("MEAN", "SUM", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"):
        yield 4 * len(out.tensors[operator.inputs[0]].shape)
        yield 4 * prod(out.tensors[operator.inputs[1]].shape)
        if operator.code in ("MEAN", "SUM"):
            yield 4 * prod(result.shape)
    elif operator.code == "TRANSPOSE_CONV" and result.dtype != "float32":
        yield (8 if result.dtype == "int16" else 4) * prod(result.shape)
    elif operator.code == "ADD_N":
        yield 8 * len(operator.inputs)


def _cmsis_nn(operator: Operator, out: Emitter) -> int:
    """What CMSIS-NN's integer kernels ask for at most, whatever the core (its get_buffer_size functions)."""
    result = out.tensors[operator.outputs[0]]
    if result.dtype not in ("int8", "int16"):
        return 0
    wide = result.dtype == "int16"
    if operator.code == "CONV_2D":
        kernel = out.tensors[operator.inputs[1]].shape
        return 4 * prod(kernel[1:]) if wide else 4 * _up(prod(kernel[1:])) + 4 * kernel[0]
    if operator.code == "DEPTHWISE_CONV_2D":
        _, height, width, channels = out.tensors[operator.inputs[1]].shape
        if wide:
            return 8 * channels * height * width + 8
        return max(2 * channels * height * width, 4 * 124 * height * width) + 4 * channels
    if operator.code == "FULLY_CONNECTED":
        return 0 if wide else 4 * result.shape[-1]
    if operator.code == "AVERAGE_POOL_2D":
        return 4 * result.shape[-1]
    return 0


def _channels(operator: Operator, out: Emitter) -> int:
    return out.tensors[operator.outputs[0]].shape[-1]


def _bytes(out: Emitter, index: int) -> int:
    tensor = out.tensors[index]
    return prod(tensor.shape) * np.dtype(tensor.dtype).itemsize


def _up(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED

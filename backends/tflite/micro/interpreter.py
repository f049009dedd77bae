"""TensorFlow Lite Micro's interpreter, spoken to as LiteRT's is."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np

from backends.tflite.sdk import schema

if TYPE_CHECKING:
    from types import ModuleType

    from ai_edge_litert import schema_py_generated as tfl

_ARENA = 1 << 20
_PER_TENSOR, _PER_NUMBER = 1 << 11, 8
"""Bytes: the arena of this machine is generous, what it takes is read back."""
_TOTAL = re.compile(r"Arena allocation total (\d+) bytes")
_Result = TypeVar("_Result")


class Port(TypedDict):
    """An input or output; ``index`` counts among the file's tensors."""

    index: int
    shape: np.ndarray


class MicroInterpreter:
    """The part of LiteRT's interface that is used here. A batch of several is as many runs.

    Raises RuntimeError where it refuses the file, with its own words.
    """

    def __init__(self, runtime: ModuleType, content: bytes, *, inner: bool) -> None:
        """``content`` is a whole .tflite file; with ``inner`` all tensors are kept."""
        graph = schema().ModelT.InitFromPackedBuf(content, 0).subgraphs[0]
        config = runtime.InterpreterConfig
        kind = config.kPreserveAllTensors if inner else config.kAllocationRecording
        arena = _ARENA + sum(_largest(tensor) for tensor in graph.tensors)
        self._content = content  # the interpreter points into it
        self._engine = _said(
            lambda: runtime.Interpreter.from_bytes(content, arena_size=arena, intrepreter_config=kind)
        )[0]
        self._inputs, self._outputs = list(map(int, graph.inputs)), list(map(int, graph.outputs))
        self._fed: dict[int, np.ndarray] = {}
        self._made: list[np.ndarray] = []
        self._runs = 1

    def arena_bytes(self) -> int:
        """What it takes of its arena on this machine, whose pointers have 64 bits, recording included."""
        found = _TOTAL.search(_said(self._engine.print_allocations)[1])
        return int(found[1]) if found else 0

    def get_input_details(self) -> list[Port]:
        """Inputs in the file's order."""
        return [
            {"index": index, "shape": self._engine.get_input_details(i)["shape"]}
            for i, index in enumerate(self._inputs)
        ]

    def get_output_details(self) -> list[Port]:
        """Outputs in the file's order."""
        return [
            {"index": index, "shape": self._engine.get_output_details(i)["shape"]}
            for i, index in enumerate(self._outputs)
        ]

    def resize_tensor_input(self, index: int, shape: list[int]) -> None:
        """Only the first axis can become longer. Raises ValueError for other shapes."""
        now = next(list(port["shape"]) for port in self.get_input_details() if port["index"] == index)
        if len(shape) != len(now) or shape[1:] != now[1:] or not now or shape[0] % now[0]:
            raise ValueError(f"shapes are fixed: {shape} is fed, {now} is taken")
        self._runs = shape[0] // now[0]

    def allocate_tensors(self) -> None:
        """Done when the file was opened."""

    def set_tensor(self, index: int, array: np.ndarray) -> None:
        """Feed an input."""
        self._fed[index] = array

    def invoke(self) -> None:
        """Run, as often as there are samples. Raises RuntimeError where a kernel fails, saying why."""
        parts: list[list[np.ndarray]] = []
        for run in range(self._runs):
            for place, index in enumerate(self._inputs):
                array, now = self._fed[index], self._engine.get_input_details(place)["shape"]
                if array.ndim and array.shape[0] != now[0]:
                    array = array[run * now[0] : (run + 1) * now[0]]
                self._engine.set_input(np.require(array, requirements="C"), place)
            _said(self._engine.invoke)
            parts.append([self._engine.get_output(place) for place in range(len(self._outputs))])
        self._made = (
            parts[0] if self._runs == 1 else [np.concatenate(made) for made in zip(*parts, strict=True)]
        )

    def get_tensor(self, index: int) -> np.ndarray:
        """An output, or any tensor where all are kept; of a batch of several the last sample's."""
        if index in self._outputs:
            return self._made[self._outputs.index(index)]
        return np.asarray(self._engine.GetTensor(index, 0)["tensor_data"])


def _largest(tensor: tfl.TensorT) -> int:
    return _PER_TENSOR + _PER_NUMBER * prod(map(int, () if tensor.shape is None else tensor.shape))


def _said(call: Callable[[], _Result]) -> tuple[_Result, str]:
    """The result, and what was written on standard error meanwhile, where alone the reasons are told."""
    try:
        kept = os.dup(2)
    except OSError:  # closed: nothing can be caught
        return call(), ""
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            result = call()
        except RuntimeError as e:
            raise RuntimeError(_read(file.fileno()) or str(e)) from e
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        return result, _read(file.fileno())


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 1 << 16).decode(errors="replace").strip()

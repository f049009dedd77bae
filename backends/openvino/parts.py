"""An IR file cut where the graph's values lie, each part compiled alone by the CPU plugin.

What is integer kernels in the whole is that here: a part begins with the integers that it reads, ends with
those that it makes, and has what the plugin would fuse into one kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backends.openvino.runner import OpenVinoOptions, read_file, settings
from backends.openvino.sdk import core, reason, sdk
from deploy.adapter.protocol import Arrays
from deploy.errors import BackendError

if TYPE_CHECKING:
    import openvino

_NAMES = """Add Clamp Divide Elu FakeQuantize Gelu HSigmoid HSwish Maximum Minimum Mish Multiply PRelu Relu
    Sigmoid SoftPlus Subtract Swish Tanh"""
_FUSED = frozenset(_NAMES.split())
"""Operations that the plugin computes at the end of the kernel before them."""


@dataclass(frozen=True)
class IrPart:
    """The operations between the values ``reads`` and the value ``result``. Implements the Piece protocol."""

    node: str
    reads: tuple[str, ...]
    result: str
    model: openvino.Model
    options: OpenVinoOptions

    def run(self, feeds: Arrays) -> np.ndarray:
        model = self.model.clone()
        try:
            model.reshape({port: list(feeds[name].shape) for port, name in _ports(model, self.reads)})
            compiled = core().compile_model(model, "CPU", settings(self.options, "CPU"))
            given = [np.asarray(feeds[name], order="C") for _, name in _ports(model, self.reads)]
            return np.array(compiled(given)[0])
        except Exception as e:
            raise BackendError(
                f"OpenVINO cannot run the part that makes '{self.result}': {reason(e)}",
                hint="build with this version of OpenVINO",
            ) from e


def _ports(model: openvino.Model, reads: tuple[str, ...]) -> list[tuple[openvino.Output, str]]:
    by_name = {port.get_node().get_friendly_name(): port for port in model.inputs}
    return [(by_name[name], name) for name in reads]


def parts(path: Path, known: Collection[str], options: OpenVinoOptions) -> Iterator[IrPart]:
    """The parts of a file in the order in which they run; ``known`` are values that can be fed."""
    ov = sdk()
    model = read_file(path)
    cuts: list[tuple[str, openvino.Output]] = []
    for op in model.get_ordered_ops():
        for out in op.outputs():
            names = sorted(set(out.get_names()) & set(known))
            if names and _is_border(op, out):
                cuts.append((names[0], out))
    made: list[tuple[str, openvino.Output]] = []
    fed: dict[str, openvino.op.Parameter] = {}
    for name, out in cuts:
        readers = list(out.get_target_inputs())
        parameter = ov.op.Parameter(out.get_element_type(), out.get_partial_shape())
        parameter.set_friendly_name(name)
        for reader in readers:
            reader.replace_source_output(parameter.output(0))
        fed[name] = parameter
        if out.get_node().get_type_name() != "Parameter":
            made.append((name, out))
    for name, out in made:
        reads = _read(out, fed)
        if reads:
            result = ov.op.Result(out)
            part = ov.Model([result], [fed[read] for read in reads], "part")
            yield IrPart("", reads, name, part, options)


def _is_border(op: openvino.Node, out: openvino.Output) -> bool:
    """Whether a kernel may end here: it makes integers, or floats that no operation at its end would take."""
    if op.get_type_name() in ("Constant", "Result") or _constant(op):
        return False
    readers = [target.get_node() for target in out.get_target_inputs()]
    fused = len(readers) == 1 and readers[0].get_type_name() in _FUSED
    return not fused or bool(op.get_type_name() == "Parameter")


def _constant(op: openvino.Node) -> bool:
    """Whether everything that leads to an operation is constants."""
    if op.get_type_name() == "Constant":
        return True
    inputs = [port.get_node() for port in op.input_values()]
    return bool(inputs) and all(_constant(node) for node in inputs)


def _read(out: openvino.Output, fed: dict[str, openvino.op.Parameter]) -> tuple[str, ...]:
    """The values in ``fed`` from which something is made."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [out.get_node()]
    while waiting:
        op = waiting.pop()
        name = op.get_friendly_name()
        if op.get_type_name() == "Parameter":
            found.update({name} & fed.keys())
        elif name not in seen:
            seen.add(name)
            waiting += [port.get_node() for port in op.input_values()]
    return tuple(sorted(found))

"""If, Loop and Scan: programs inside a program. Gradients flow through whatever was run.

What a body reads from around it stands behind the node's own inputs (see :class:`Program`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()


@ops.kernel("If")
def if_(node: Node) -> Kernel:
    then, other = node.body("then_branch"), node.body("else_branch")
    border = len(then.captured)

    def run(condition: Tensor, *outer: object) -> tuple[object, ...]:
        if bool(condition):
            return tuple(then.run((), outer[:border]))
        return tuple(other.run((), outer[border:]))

    return run


@ops.kernel("Loop")
def loop(node: Node) -> Kernel:
    body, own = node.body("body"), len(node.ir.inputs)
    carried = max(0, own - 2)
    empty = _Empty(node, "body", carried + 1)

    def run(*given: object) -> tuple[object, ...]:
        trips, condition = (*given[: min(own, 2)], None, None)[:2]
        outer, states = given[own:], list(given[2:own])
        most = None if trips is None else int(cast(Tensor, trips))
        going: object = torch.tensor(True) if condition is None else condition
        rounds: list[Sequence[object]] = []
        while (most is None or len(rounds) < most) and bool(going):
            going, *results = body.run((torch.tensor(len(rounds)), going, *states), outer)
            states = results[:carried]
            rounds.append(results[carried:])
        columns = zip(*rounds, strict=True) if rounds else empty.columns()
        return (*states, *(empty.stack(i, cast("tuple[Tensor, ...]", c)) for i, c in enumerate(columns)))

    return run


@ops.kernel("Scan")
def scan(node: Node) -> Kernel:
    body, own, scanned = node.body("body"), len(node.ir.inputs), node.integer("num_scan_inputs")
    batched = node.version < 9
    if batched and node.has(0):
        raise node.unsupported("sequence lengths, an input up to operator set 8")
    first = 1 if batched else 0
    carried = own - first - scanned
    made = len(body.outputs) - carried
    axes_in = node.integers("scan_input_axes") or [0] * scanned
    axes_out = node.integers("scan_output_axes") or [0] * made
    turned_in = node.integers("directions" if batched else "scan_input_directions") or [0] * scanned
    turned_out = node.integers("scan_output_directions") or [0] * made
    empty = _Empty(node, "body", carried)

    def once(given: Sequence[object], outer: Sequence[object]) -> tuple[object, ...]:
        states = list(given[:carried])
        elements = [
            cast(Tensor, x).unbind(axis)[:: -1 if turned else 1]
            for x, axis, turned in zip(given[carried:], axes_in, turned_in, strict=True)
        ]
        rounds: list[Sequence[object]] = []
        for step in zip(*elements, strict=True):
            results = body.run((*states, *step), outer)
            states = results[:carried]
            rounds.append(results[carried:])
        columns = zip(*rounds, strict=True) if rounds else empty.columns()
        stacked = [
            empty.stack(i, cast("tuple[Tensor, ...]", parts)[:: -1 if turned else 1], axis)
            for i, (parts, axis, turned) in enumerate(zip(columns, axes_out, turned_out, strict=True))
        ]
        return (*states, *stacked)

    def run(*given: object) -> tuple[object, ...]:
        if not batched:
            return once(given[:own], given[own:])
        samples = zip(*(cast(Tensor, x).unbind(0) for x in given[first:own]), strict=True)
        results = [once(sample, given[own:]) for sample in samples]
        return tuple(torch.stack(cast("tuple[Tensor, ...]", parts)) for parts in zip(*results, strict=True))

    return run


class _Empty:
    """The values that a body makes in each round; of no rounds only their types are known."""

    def __init__(self, node: Node, body: str, first: int) -> None:
        self._values: list[ir.Value] = list(node.ir.attributes[body].as_graph().outputs)[first:]

    def columns(self) -> list[tuple[Tensor, ...]]:
        return [()] * len(self._values)

    def stack(self, index: int, parts: tuple[Tensor, ...], axis: int = 0) -> Tensor:
        if parts:
            return torch.stack(parts, axis)
        value = self._values[index]
        sizes = [d if isinstance(d, int) else 0 for d in value.shape or ()]
        sizes.insert(axis if axis >= 0 else len(sizes) + 1 + axis, 0)
        dtype = torch.float32 if value.dtype is None else to_torch_dtype(value.dtype)
        return torch.empty(sizes, dtype=dtype)

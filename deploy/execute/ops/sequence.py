"""Sequences, which are lists of tensors here, and optional values, which are None where they are empty."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploy.execute.ops.shape import integers
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

ops.row("SequenceConstruct", lambda *parts: list(parts))
ops.row("SequenceEmpty", list)
ops.row("SequenceLength", lambda parts: torch.tensor(len(parts)))
ops.row("OptionalHasElement", lambda value=None: torch.tensor(value is not None))
ops.row("Optional", lambda value=None: value)


@ops.kernel("SequenceAt")
def sequence_at(node: Node) -> Kernel:
    read = integers(node, 1)

    def run(parts: list[Tensor], position: Tensor) -> Tensor:
        return parts[(read(position) or [0])[0]]

    return run


@ops.kernel("SequenceInsert")
def sequence_insert(node: Node) -> Kernel:
    read = integers(node, 2)

    def run(parts: list[Tensor], new: Tensor, position: Tensor | None = None) -> list[Tensor]:
        (place,) = read(position) or [len(parts)]
        return [*parts[:place], new, *parts[place:]]

    return run


@ops.kernel("SequenceErase")
def sequence_erase(node: Node) -> Kernel:
    read = integers(node, 1)

    def run(parts: list[Tensor], position: Tensor | None = None) -> list[Tensor]:
        rest = list(parts)
        del rest[(read(position) or [-1])[0]]
        return rest

    return run


@ops.kernel("SplitToSequence")
def split_to_sequence(node: Node) -> Kernel:
    axis, keep, read = node.integer("axis"), bool(node.integer("keepdims", 1)), integers(node, 1)

    def run(x: Tensor, split: Tensor | None = None) -> list[Tensor]:
        if split is None:
            return list(torch.split(x, 1, axis) if keep else x.unbind(axis))
        sizes = read(split) or []
        return list(torch.split(x, sizes[0] if split.ndim == 0 else sizes, axis))

    return run


@ops.kernel("ConcatFromSequence")
def concat_from_sequence(node: Node) -> Kernel:
    axis, join = node.integer("axis"), torch.stack if node.flag("new_axis") else torch.cat

    def run(parts: list[Tensor]) -> Tensor:
        return join(parts, axis)

    return run


@ops.kernel("SequenceMap")
def sequence_map(node: Node) -> Kernel:
    body, own = node.body("body"), len(node.ir.inputs)

    def run(*given: object) -> tuple[list[object], ...]:
        arguments, outer = given[:own], given[own:]
        first = arguments[0]
        rounds: list[Sequence[object]] = [
            body.run([a[i] if isinstance(a, list) else a for a in arguments], outer)
            for i in range(len(first) if isinstance(first, list) else 0)
        ]
        return tuple([results[i] for results in rounds] for i in range(len(body.outputs)))

    return run


@ops.kernel("OptionalGetElement")
def optional_get_element(_: Node) -> Kernel:
    def run(value: object = None) -> object:
        if value is None:
            raise ValueError("the optional value is empty")
        return value

    return run

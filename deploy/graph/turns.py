"""Transposes around an attention, done with fewer: each may rewrite a whole tensor.

    T(T(x))                        one, or none where they undo each other
    A^T B^T                     =  (B A)^T, and a Softmax of what is turned is one along the other axis
    x (B, C, S) -> T -> Reshape (B, S, H, D) -> T    =  Reshape (B, H, D, S) -> T
    x (B, H, S, D) -> T -> Reshape (B, S, C) -> T    =  T -> Reshape (B, C, S)

Where channels come second (`graph/pointwise.py`), heads are split off without moving anything, and an
attention whose scores have the queries last, as Apple's "Deploying Transformers on the Apple Neural Engine"
(2022) has them, needs one transpose. A product is turned over only where that saves one in the end.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import ACTIVATION
from deploy.graph.edit import (
    Attribute,
    add_initializer,
    constant_tensor,
    fresh_name,
    insert_before,
    made_by,
    names,
    remove_dead,
    replace_node,
    sole_consumer,
    substitute,
)

_UNARY = ACTIVATION - {"PRelu"}
_WITH_NUMBER = ("Mul", "Div", "Add", "Sub")
_ROUNDS = 50
"""One change makes room for another; each takes a transpose away or moves it towards the outputs."""

Perm = tuple[int, ...]
_Sizes = list[int | ir.SymbolicDim]


def fewer_transposes(model: ir.Model) -> int:
    """Transposes that follow each other, or stand around products of two activations > fewer of them."""
    turns = _Turns(model)
    before = turns.count()
    for _ in range(_ROUNDS):
        if not sum(turns.once(node) for node in list(model.graph)):
            break
    return max(0, before - turns.count())


class _Turns:
    """One run over a graph."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken = names(model)

    def count(self) -> int:
        return sum(node.op_type == "Transpose" for node in self._model.graph)

    def once(self, node: ir.Node) -> bool:
        """Whether something was done about a node."""
        if node.graph is None or node.domain != "":
            return False
        if node.op_type == "Transpose":
            return self._composed(node) or self._split(node) or self._joined(node)
        if node.op_type == "MatMul":
            return self._product(node)
        return self._behind(node)

    # ------------------------------------------------------------------------------------ two transposes

    def _composed(self, node: ir.Node) -> bool:
        first = _known(made_by(node.inputs[0], "Transpose"))
        if first is None:
            return False
        p, q = _perm(first), _perm(node)
        return self._turn_instead(node, first.inputs[0], tuple(p[i] for i in q))

    def _split(self, node: ir.Node) -> bool:
        """(B, C, S) turned, split into heads and turned again: split where it lies."""
        reshape = _known(made_by(node.inputs[0], "Reshape"))
        first = None if reshape is None else _known(made_by(reshape.inputs[0], "Transpose"))
        if reshape is None or first is None or not _alone(reshape) or not _alone(first):
            return False
        before, heads = _shape(first.outputs[0]), _shape(reshape.outputs[0])
        if _perm(first) != (0, 2, 1) or len(heads) != 4 or not _same(heads[:2], before[:2]):
            return False
        h, d = heads[2:]
        if not isinstance(h, int) or not isinstance(d, int):
            return False
        split = self._reshape(node, first.inputs[0], [0, h, d, -1], [before[0], h, d, before[1]])
        place = {0: 0, 1: 3, 2: 1, 3: 2}
        return self._turn_instead(node, split, tuple(place[i] for i in _perm(node)))

    def _joined(self, node: ir.Node) -> bool:
        """Heads turned, joined and turned again: joined where channels are to come second."""
        reshape = _known(made_by(node.inputs[0], "Reshape"))
        first = None if reshape is None else _known(made_by(reshape.inputs[0], "Transpose"))
        if reshape is None or first is None or not _alone(reshape) or not _alone(first):
            return False
        heads, joined = _shape(first.outputs[0]), _shape(reshape.outputs[0])
        if _perm(node) != (0, 2, 1) or len(heads) != 4 or not _same(joined[:2], heads[:2]):
            return False
        channels = joined[2]
        if not isinstance(channels, int) or not isinstance(heads[2], int) or not isinstance(heads[3], int):
            return False
        p = _perm(first)
        perm = (p[0], p[2], p[3], p[1])
        value = first.inputs[0]
        if perm != (0, 1, 2, 3):
            value = self._transpose(node, value, perm, [heads[0], heads[2], heads[3], heads[1]])
        replace_node(node, "Reshape", [value, self._numbers(node, [0, channels, -1])])
        remove_dead([reshape])
        return True

    def _turn_instead(self, node: ir.Node, value: ir.Value | None, perm: Perm) -> bool:
        """``value`` turned in the place of ``node``, or as it is where nothing moves."""
        assert value is not None
        old = node.inputs[0]
        if perm == tuple(range(len(perm))):
            if not substitute(node.outputs[0], value):
                return False
            remove_dead([node])
        else:
            node.replace_input_with(0, value)
            node.attributes["perm"] = ir.AttrInt64s("perm", perm)
        if old is not None and (maker := old.producer()) is not None:
            remove_dead([maker])
        return True

    # ------------------------------------------------------------------------------------------ products

    def _product(self, node: ir.Node) -> bool:
        """A^T B^T as (B A)^T where that saves a transpose, at once or behind the Softmax."""
        turned = [_swap(value) for value in node.inputs]
        ranks = [0 if value is None else len(_shape(value)) for value in (*node.inputs, *node.outputs)]
        if not any(turned) or min(ranks) < 2 or any(constant_tensor(v) is not None for v in node.inputs):
            return False
        alone = sum(swap is not None and _alone(swap) for swap in turned)
        added = turned.count(None) + 1
        if added - alone >= 0 and added - alone >= self._saved_behind(node):
            return False
        right, left = (
            swap.inputs[0] if swap is not None else self._swapped(node, value)
            for swap, value in zip(turned, node.inputs, strict=True)
        )
        self._turned_result(node, "MatMul", [left, right], {})
        remove_dead([swap for swap in turned if swap is not None])
        return True

    def _behind(self, node: ir.Node) -> bool:
        """What stands behind a turned product stands before the transpose instead."""
        swap = _swap(node.inputs[0]) if node.inputs else None
        if swap is None or not _alone(swap) or not _may_follow(node) or self._saved_behind(swap) <= 0:
            return False
        attributes: dict[str, Attribute | ir.Attr] = dict(node.attributes)
        if node.op_type == "Softmax":
            rank = len(_shape(node.outputs[0]))
            axis = node.attributes.get_int("axis", -1) % rank
            attributes["axis"] = {rank - 1: rank - 2, rank - 2: rank - 1}.get(axis, axis)
        self._turned_result(node, node.op_type, [swap.inputs[0], *node.inputs[1:]], attributes)
        remove_dead([swap])
        return True

    def _saved_behind(self, node: ir.Node) -> int:
        """How many transposes go if what ``node`` makes is turned: those that it meets further on."""
        saved = 0
        value = node.outputs[0]
        while (reader := sole_consumer(value)) is not None:
            if reader.op_type == "MatMul" and saved == 0:
                other = [v for v in reader.inputs if v is not value]
                swap = _swap(other[0]) if len(other) == 1 else None
                if swap is None or not _alone(swap):
                    return saved
                saved, value = 1, reader.outputs[0]
            elif _may_follow(reader) and reader.inputs[0] is value:
                value = reader.outputs[0]
            elif reader.op_type == "Transpose":
                return saved + (2 if _is_swap(_perm(reader)) else 1)
            else:
                return saved
        return saved

    def _swapped(self, at: ir.Node, value: ir.Value | None) -> ir.Value:
        assert value is not None
        shape = _shape(value)
        return self._transpose(at, value, _swap_of(len(shape)), [*shape[:-2], shape[-1], shape[-2]])

    def _turned_result(
        self,
        node: ir.Node,
        op_type: str,
        inputs: list[ir.Value | None],
        attributes: dict[str, Attribute | ir.Attr],
    ) -> None:
        """The operation of what is not turned, under its name, and a transpose in the place of ``node``."""
        shape = _shape(node.outputs[0])
        name = fresh_name(self._model, f"{node.name}/turned", self._taken)
        made = ir.node(op_type, inputs, attributes=attributes, name=node.name, outputs=[ir.Value(name=name)])
        made.metadata_props.update(node.metadata_props)
        assert node.graph is not None
        node.graph.insert_before(node, made)
        made.outputs[0].type = node.outputs[0].type
        made.outputs[0].shape = ir.Shape([*shape[:-2], shape[-1], shape[-2]])
        perm = {"perm": _swap_of(len(shape))}
        replace_node(node, "Transpose", [made.outputs[0]], perm, name=name)

    # --------------------------------------------------------------------------------------------- nodes

    def _numbers(self, node: ir.Node, numbers: list[int]) -> ir.Value:
        return add_initializer(self._model, f"{node.name}/shape", np.array(numbers, np.int64), self._taken)

    def _reshape(self, at: ir.Node, value: ir.Value | None, sizes: list[int], shape: _Sizes) -> ir.Value:
        assert value is not None
        made = self._add(at, "Reshape", [value, self._numbers(at, sizes)], {})
        made.shape = ir.Shape(shape)
        return made

    def _transpose(self, at: ir.Node, value: ir.Value | None, perm: Perm, shape: _Sizes) -> ir.Value:
        assert value is not None
        made = self._add(at, "Transpose", [value], {"perm": perm})
        made.shape = ir.Shape(shape)
        return made

    def _add(
        self, at: ir.Node, op_type: str, inputs: list[ir.Value], attributes: dict[str, Attribute]
    ) -> ir.Value:
        name = fresh_name(self._model, f"{at.name}/{op_type}", self._taken)
        made = insert_before(at, op_type, inputs, attributes, name=name, output=name)
        made.metadata_props.update(at.metadata_props)
        made.outputs[0].type = inputs[0].type
        return made.outputs[0]


def _known(node: ir.Node | None) -> ir.Node | None:
    """A node that reads something, and of whose result the shape is known."""
    known = node is not None and node.inputs[0] is not None and bool(_shape(node.outputs[0]))
    return node if known else None


def _swap(value: ir.Value | None) -> ir.Node | None:
    """The transpose of just the last two axes that made a value."""
    made = _known(made_by(value, "Transpose"))
    return made if made is not None and _is_swap(_perm(made)) else None


def _is_swap(perm: Perm) -> bool:
    return len(perm) >= 2 and perm == _swap_of(len(perm))


def _swap_of(rank: int) -> Perm:
    return (*range(rank - 2), rank - 1, rank - 2)


def _perm(node: ir.Node) -> Perm:
    rank = len(_shape(node.outputs[0]))
    return tuple(node.attributes.get_ints("perm", ()) or range(rank - 1, -1, -1))


def _shape(value: ir.Value) -> _Sizes:
    return [] if value.shape is None else list(value.shape)


def _same(one: _Sizes, other: _Sizes) -> bool:
    """Whether sizes are known to be equal."""
    known = all(isinstance(size, int) or size.value is not None for size in (*one, *other))
    return known and one == other


def _alone(node: ir.Node) -> bool:
    """Whether one node alone reads what this one makes."""
    return sole_consumer(node.outputs[0]) is not None


def _may_follow(node: ir.Node) -> bool:
    """Whether a node computes the same of a tensor whose last two axes have changed places."""
    if node.domain != "" or len(node.outputs) != 1:
        return False
    if node.op_type == "Softmax":
        return bool(_shape(node.outputs[0]))
    rest = [constant_tensor(value) for value in node.inputs[1:] if value is not None]
    numbers = all(tensor is not None and tensor.size == 1 for tensor in rest)
    ranks = all(tensor is not None and len(tensor.shape) <= 1 for tensor in rest)
    if node.op_type in _UNARY:
        return numbers
    return node.op_type in _WITH_NUMBER and len(rest) == 1 and numbers and ranks

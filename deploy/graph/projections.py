"""Products with constants around an attention that can be one product less.

    (x Wq) (z Wk)^T c  =  (x (c Wq Wk^T)) z^T         the number behind goes into the constants before
    (p (z Wv)) Wo      =  p (z (Wv Wo))

The first holds for any attention as far as the number ``c`` goes. The constants become one where heads are
not narrower than what they are made of, which is attention of a single head: there two projections of four,
and in INT8 the rounding of what they make, are saved. Biases go along: what they add to a whole row of scores
does not change the Softmax behind it, and rows of a Softmax sum to 1, so a bias behind it may as well stand
before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import (
    add_initializer,
    constant,
    fresh_name,
    insert_before,
    is_constant,
    names,
    remove_dead,
    replace_node,
    replace_weight,
    scalar,
    sole_consumer,
    take_over,
)

_MOVES = ("Reshape", "Transpose")


@dataclass(frozen=True)
class _Projection:
    """``source`` times a constant matrix, and a number for each column added: a node each."""

    product: ir.Node
    sum: ir.Node | None

    @property
    def source(self) -> ir.Value:
        source = self.product.inputs[0]
        assert source is not None
        return source

    @property
    def weight(self) -> np.ndarray:
        """(inputs, outputs)."""
        found = constant(self.product.inputs[1])
        assert found is not None
        return found.astype(np.float64)

    @property
    def bias(self) -> np.ndarray | None:
        found = None if self.sum is None else constant(self.sum.inputs[_bias_place(self.sum)])
        return None if found is None else found.astype(np.float64)

    @property
    def last(self) -> ir.Node:
        return self.sum or self.product


def merge_projections(model: ir.Model) -> int:
    """Projections around products of two activations > one less for each that can go, and no scale behind."""
    done = 0
    for node in list(model.graph):
        if node.graph is None or not _of_two(node):
            continue
        done += _scale_before(model, node)
        done += _keys(model, node)
        done += _values(model, node)
    return done


def _of_two(node: ir.Node) -> bool:
    if node.op_type != "MatMul" or node.domain != "" or node.inputs[0] is node.inputs[1]:
        return False
    return all(not is_constant(value) and _rank(value) >= 2 for value in node.inputs)


def _scale_before(model: ir.Model, node: ir.Node) -> bool:
    """A number that multiplies the scores multiplies the constants that the left operand is made with."""
    behind = _scale(node)
    if behind is None:
        return False
    scaling, factor = behind
    value = node.inputs[0]
    while value is not None and (mover := value.producer()) is not None and mover.op_type in _MOVES:
        if sole_consumer(value) is None:
            return False
        value = mover.inputs[0]
    made = _projection(value)
    if made is None:
        return False
    replace_weight(model, made.product, 1, made.weight * factor)
    if made.sum is not None and made.bias is not None:
        replace_weight(model, made.sum, _bias_place(made.sum), made.bias * factor)
    take_over(node, scaling)
    return True


def _keys(model: ir.Model, node: ir.Node) -> bool:
    """Queries times keys, of projections that are not narrower than what the keys are made of."""
    turned = None if node.inputs[1] is None else node.inputs[1].producer()
    if turned is None or not _swaps(turned) or sole_consumer(turned.outputs[0]) is None:
        return False
    queries, keys = _projection(node.inputs[0]), _projection(turned.inputs[0])
    if queries is None or keys is None or keys.weight.shape[0] > keys.weight.shape[1]:
        return False
    if keys.bias is not None and not _softmax(sole_consumer(node.outputs[0])):
        return False
    weight = queries.weight @ keys.weight.T
    bias = None if queries.bias is None else queries.bias @ keys.weight.T
    left = _projected(model, node, queries, weight, bias)
    taken = names(model)
    right = insert_before(
        node,
        "Transpose",
        [keys.source],
        {"perm": [int(axis) for axis in turned.attributes.get_ints("perm")]},
        name=fresh_name(model, turned.name or "", taken),
        output=fresh_name(model, f"{keys.source.name}/turned", taken),
    )
    replace_node(node, "MatMul", [left, right.outputs[0]])
    remove_dead([queries.last, turned])
    return True


def _values(model: ir.Model, node: ir.Node) -> bool:
    """Shares times values, and a projection behind that is not wider than that of the values."""
    values, behind = _projection(node.inputs[1]), sole_consumer(node.outputs[0])
    if values is None or behind is None or behind.inputs[0] is not node.outputs[0]:
        return False
    after = _projection(behind.outputs[0], read_once=False) if behind.op_type == "MatMul" else None
    if after is None or after.weight.shape[0] < after.weight.shape[1]:
        return False
    shares = None if node.inputs[0] is None else node.inputs[0].producer()
    bias = None if values.bias is None else values.bias @ after.weight
    adding = sole_consumer(behind.outputs[0])
    whole = _projection(adding.outputs[0], read_once=False) if adding is not None else None
    last = behind
    if whole is not None and whole.sum is adding and whole.bias is not None and _softmax(shares):
        assert adding is not None
        bias = whole.bias if bias is None else bias + whole.bias
        last = adding
    right = _projected(model, node, values, values.weight @ after.weight, bias)
    replace_node(last, "MatMul", [node.inputs[0], right], name=node.name)
    remove_dead([n for n in (behind, node) if n.graph is not None and n is not last])
    return True


def _projected(
    model: ir.Model, anchor: ir.Node, like: _Projection, weight: np.ndarray, bias: np.ndarray | None
) -> ir.Value:
    """The source of a projection times other constants, made before ``anchor``."""
    taken = names(model)
    values = [node.outputs[0].name or "" for node in (like.product, like.last)]

    def put(old: ir.Node, op_type: str, read: ir.Value, array: np.ndarray, kind: str, stem: str) -> ir.Value:
        name = old.name or ""
        stored = add_initializer(model, f"{name}/{kind}", array.astype(np.float32), taken)
        if old.op_type == op_type:  # the name is that of the node that goes
            old.name = fresh_name(model, name, taken)
        else:
            name = fresh_name(model, f"{name}/{op_type}", taken)
        output = fresh_name(model, stem, taken)
        return insert_before(anchor, op_type, [read, stored], name=name, output=output).outputs[0]

    made = put(like.product, "MatMul", like.source, weight, "merged", values[0])
    return made if bias is None else put(like.last, "Add", made, bias, "merged_bias", values[1])


def _projection(value: ir.Value | None, *, read_once: bool = True) -> _Projection | None:
    """What made a value, if that is a projection whose result nobody else reads, or everybody may."""
    node = None if value is None else value.producer()
    if value is None or node is None or (read_once and sole_consumer(value) is None):
        return None
    added = None
    if node.op_type == "Add" and len(node.inputs) == 2:
        place = _bias_place(node)
        bias, read = constant(node.inputs[place]), node.inputs[1 - place]
        if bias is None or bias.ndim != 1 or read is None or sole_consumer(read) is None:
            return None
        added, node = node, read.producer()
    if node is None or node.op_type != "MatMul" or node.domain != "":
        return None
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or _rank(node.inputs[0]) < 2:
        return None
    made = _Projection(node, added)
    return made if added is None or (made.bias is not None and made.bias.shape == weight.shape[1:]) else None


def _bias_place(node: ir.Node) -> int:
    return 0 if constant(node.inputs[0]) is not None else 1


def _scale(node: ir.Node) -> tuple[ir.Node, float] | None:
    """The multiplication or division by a number behind a node, and by what it multiplies."""
    behind = sole_consumer(node.outputs[0])
    if behind is None or behind.op_type not in ("Mul", "Div"):
        return None
    place = 1 if behind.inputs[0] is node.outputs[0] else 0
    number = scalar(behind.inputs[place])
    if number is None or not np.isfinite(number) or _rank(behind.inputs[place]) > _rank(node.outputs[0]):
        return None
    if behind.op_type == "Mul":
        return behind, number
    return (behind, 1 / number) if place == 1 and number != 0 else None


def _swaps(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm", ()) if node.op_type == "Transpose" else ()
    rank = len(perm)
    return rank >= 2 and tuple(perm) == (*range(rank - 2), rank - 1, rank - 2)


def _softmax(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "Softmax":
        return False
    return node.attributes.get_int("axis", -1) in (-1, _rank(node.inputs[0]) - 1)


def _rank(value: ir.Value | None) -> int:
    return -1 if value is None or value.shape is None else len(value.shape)

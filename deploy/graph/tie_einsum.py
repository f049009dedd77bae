"""What Einsum does to the labels of channels, letter by letter.

btd,dhk->bthk     d is read, h and k are made (and come to be heads)
bhqd,bhkd->bhqk   h is of both: heads are units
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from deploy.graph.edit import constant_tensor, is_constant
from deploy.graph.labels import Found, sizes_of, varying
from deploy.graph.ties import Load, Ties


def einsum(ties: Ties, node: ir.Node) -> Found:
    """Of two operands, without ellipses and diagonals, and nothing summed that only one of them has."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(t)) != len(t) for t in (*terms, out)) or len(terms) != 2:
        return None
    if any(letter not in out and letter not in other for t, other in (terms, terms[::-1]) for letter in t):
        return None
    constants = [i for i, value in enumerate(node.inputs) if is_constant(value)]
    if len(constants) == 1:
        return _layer(ties, node, terms, out, constants[0])
    return None if constants else _product(ties, node, terms, out)


def _arranged(ids: np.ndarray, term: str, letters: str) -> np.ndarray:
    """Labels along ``letters``, with size 1 for those that ``term`` lacks; they do not differ elsewhere."""
    first = [term.index(letter) for letter in letters if letter in term]
    rest = [i for i, letter in enumerate(term) if letter not in letters]
    turned = ids.transpose([*first, *rest]).reshape([ids.shape[i] for i in first])
    for position, letter in enumerate(letters):
        if letter not in term:
            turned = np.expand_dims(turned, position)
    return turned


def _layer(ties: Ties, node: ir.Node, terms: list[str], out: str, index: int) -> Found:
    """By constant weights: ``index`` says which operand."""
    weights, term, other = node.inputs[index], terms[index], terms[1 - index]
    tensor = constant_tensor(weights)
    if tensor is None or not tensor.dtype.is_floating_point():
        return None
    sizes, ids = sizes_of(weights), ties.ids(node.inputs[1 - index])
    inner = [i for i, letter in enumerate(other) if letter not in out]
    if any(i not in inner for i in varying(ids)):
        # Along other axes: what is summed over is the same for each of them.
        ids = ties.tie(ids, inner)
        shared = [i for i in varying(ids) if other[i] in term]
        if shared and shared != varying(ids):
            return None
        if shared:
            ties.follow(node, index, _arranged(ids, other, term))
        ties.loads.append(Load(node, (ids,)))
        return [_arranged(ids, other, out)]
    makes = "".join(letter for letter in term if letter not in other)
    shape = [sizes[i] if letter in makes else 1 for i, letter in enumerate(term)]
    made = ties.fresh(math.prod(shape)).reshape(shape)
    read = _arranged(ids, other, term)
    ties.add(node, index, read, "reads")
    ties.add(node, index, made, "makes")
    ties.loads.append(Load(node, (read, made)))
    return [_arranged(made, term, out)]


def _lacking(term: str, other: str) -> list[int]:
    return [i for i, letter in enumerate(term) if letter not in other]


def _product(ties: Ties, node: ir.Node, terms: list[str], out: str) -> Found:
    """Of two values, as a MatMul of them."""
    ids = [ties.ids(value) for value in node.inputs]
    batch = "".join(letter for letter in out if all(letter in t for t in terms))
    inner = "".join(letter for letter in terms[0] if letter in terms[1] and letter not in out)
    if any(t[i] in batch for t, a in zip(terms, ids, strict=True) for i in varying(a)):
        tied = [ties.tie(a, _lacking(t, batch)) for t, a in zip(terms, ids, strict=True)]
        heads = ties.merge(*(_arranged(a, t, batch) for t, a in zip(terms, tied, strict=True)))
        ties.loads.append(Load(node, (heads,)))
        return [_arranged(heads, batch, out)]
    own = [[i for i in varying(a) if t[i] not in inner] for t, a in zip(terms, ids, strict=True)]
    if any(mine and len(mine) < len(varying(a)) for mine, a in zip(own, ids, strict=True)):
        return None
    none = np.zeros((1,) * len(out), np.int64)
    shared = [
        np.zeros((1,) * len(t), np.int64) if mine else a for t, a, mine in zip(terms, ids, own, strict=True)
    ]
    summed = ties.merge(*(_arranged(a, t, inner) for t, a in zip(terms, shared, strict=True)))
    sides = [_arranged(a, t, out) if mine else none for t, a, mine in zip(terms, ids, own, strict=True)]
    if own[0] and own[1]:
        ties.pin(sides[0], "they become rows of a product whose columns are channels too")
        sides[0] = none
    ties.loads.append(Load(node, (summed, *sides)))
    return [sides[0] if own[0] and not own[1] else sides[1]]

"""Linear layers as convolutions by 1: for accelerators whose products are convolutions.

    x (B, S, K) -> MatMul (K, N) -> Add (N)
    x -> Transpose (B, K, S) -> Unsqueeze (B, K, 1, S) -> Conv (N, K, 1, 1) -> Squeeze -> Transpose (B, S, N)

Channels come second and what is longest last, as in Apple's "Deploying Transformers on the Apple Neural
Engine" (2022). Activations behind a layer come along, so between two layers nothing is turned, and who reads
a value that was turned for another shares that. An axis of size 1 is dropped or added, never moved.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.graph.blocks import ACTIVATION
from deploy.graph.edit import (
    Attribute,
    add_initializer,
    constant,
    constant_tensor,
    fresh_name,
    is_constant,
    names,
    remove_dead,
    sole_consumer,
)
from deploy.graph.shapes import batch_axis

_UNARY = ACTIVATION - {"PRelu"}
"""Activations that do not ask how what they read is laid out; all else that these read is a lone number."""


@dataclass(frozen=True)
class _Linear:
    """A product with a constant matrix, the Add of a constant behind it, if any, and what it adds."""

    node: ir.Node
    weight: ir.Value
    last: ir.Node
    bias: np.ndarray | None

    @property
    def source(self) -> ir.Value:
        source = self.node.inputs[0]
        assert source is not None
        return source


@dataclass(frozen=True)
class _Way:
    """How a tensor whose last axis is K becomes (B, K, 1, S) or (B, K, S, T), and back.

    ``dropped`` axes of size 1 go first, then ``perm`` turns what is left (None: it stays), then ``added``
    axes of size 1 come.
    """

    perm: tuple[int, ...] | None = None
    added: tuple[int, ...] = ()
    dropped: tuple[int, ...] = ()


def linear_as_convolution(model: ir.Model) -> int:
    """Products with constant matrices that nothing else reads > convolutions by 1, with their biases."""
    turning = _Turning(model)
    done = 0
    found = [linear for node in model.graph if (linear := _linear(node)) is not None]
    able = {linear.node for linear in found}
    for linear in found:
        readers = turning.readers(linear.weight)
        alike = {_by_outputs(node) for node, _ in readers}
        if len(alike) == 1 and all(node in able and place == 1 for node, place in readers):
            turning.replace(linear)
            done += 1
    turning.share()
    return done


def _linear(node: ir.Node) -> _Linear | None:
    if node.domain != "" or node.op_type not in ("MatMul", "Gemm"):
        return None
    x, weight = node.inputs[0], node.inputs[1]
    tensor = constant_tensor(weight)
    if x is None or is_constant(x) or weight is None or tensor is None or not weight.is_initializer():
        return None
    if x.shape is None or not 2 <= x.shape.rank() <= 4 or weight.is_graph_output():
        return None
    if len(tensor.shape) != 2 or tensor.dtype != ir.DataType.FLOAT:
        return None
    outputs = int(tensor.shape.numpy()[0 if _by_outputs(node) else 1])
    if node.op_type == "Gemm":
        return _gemm(node, weight, outputs)
    behind = sole_consumer(node.outputs[0])
    if behind is not None and behind.op_type == "Add":
        other = behind.inputs[1 if behind.inputs[0] is node.outputs[0] else 0]
        bias = _bias(other, outputs, x.shape.rank())
        if bias is not None:
            return _Linear(node, weight, behind, bias)
    return _Linear(node, weight, node, None)


def _gemm(node: ir.Node, weight: ir.Value, outputs: int) -> _Linear | None:
    scaled = any(node.attributes.get_float(key, 1.0) != 1.0 for key in ("alpha", "beta"))
    if scaled or node.attributes.get_int("transA", 0) != 0:
        return None
    added = node.inputs[2] if len(node.inputs) > 2 else None
    if added is None:
        return _Linear(node, weight, node, None)
    bias = _bias(added, outputs, 2)
    return None if bias is None else _Linear(node, weight, node, bias)


def _by_outputs(node: ir.Node) -> bool:
    """Whether each row of the matrix, not each column, makes an output."""
    return node.attributes.get_int("transB", 0) != 0


def _bias(value: ir.Value | None, outputs: int, rank: int) -> np.ndarray | None:
    """The numbers that are added to each column, where a constant is that and makes nothing larger."""
    array = constant(value)
    if array is None or array.ndim > rank or any(size != 1 for size in array.shape[:-1]):
        return None
    if array.shape[-1:] not in ((), (1,), (outputs,)):
        return None
    return np.broadcast_to(array.reshape(-1), (outputs,)).astype(np.float32)


def _way(shape: ir.Shape, batch: str | None) -> _Way:
    """The batch becomes the first axis, what is not the batch the last. Of two sizes that are known the
    larger is no batch, and one that is free is none either, unless it is called ``batch``."""
    sizes = list(shape)[:-1]
    if len(sizes) == 3:
        return _Way((0, 3, 1, 2))
    free = [not isinstance(size, int) and size.value not in (batch, None) for size in sizes]
    if len(sizes) == 1:
        rows = (free[0] and batch is not None) or (isinstance(sizes[0], int) and sizes[0] > 1)
        return _Way((1, 0), (0, 2)) if rows else _Way(added=(2, 3))
    known = [size if isinstance(size, int) else 0 for size in sizes]
    row = free.index(True) if free.count(True) == 1 else max((1, 0), key=known.__getitem__)
    if sizes[row] == 1:
        return _Way(dropped=(row,), added=(2, 3))
    return _Way((1 - row, 2, row), (2,))


class _Turning:
    """One run over a graph: values turned so far, weights made so far."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._taken = names(model)
        self._batch = batch_axis(model)
        self._turned: dict[tuple[ir.Value, _Way], ir.Value] = {}
        self._weights: dict[ir.Value, ir.Value] = {}
        self._readers: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        self._constants: dict[tuple[int, ...], ir.Value] = {}

    def readers(self, weight: ir.Value) -> list[tuple[ir.Node, int]]:
        """Who read a weight before anything was changed."""
        return self._readers.setdefault(weight, list(weight.uses()))

    def replace(self, linear: _Linear) -> None:
        """A convolution in the place of ``linear`` and of the activations behind it."""
        shape = linear.source.shape
        assert shape is not None
        way = _way(shape, self._batch)
        at = linear.node
        x = self._forth(linear.source, way, at)
        inputs = [x, self._weight(linear)]
        if linear.bias is not None:
            name = f"{linear.node.name}/bias"
            added = linear.last.inputs if linear.last is not linear.node else linear.node.inputs[2:]
            name = next((v.name for v in added if v is not None and v.name and is_constant(v)), name)
            inputs.append(add_initializer(self._model, f"{name}/channels", linear.bias, self._taken))
        made = self._add(at, linear.node, "Conv", inputs, {"kernel_shape": [1, 1]}, name=linear.node.name)
        last = linear.last
        while (act := sole_consumer(last.outputs[0])) is not None and _follows(act, last.outputs[0]):
            operands = [made if value is last.outputs[0] else value for value in act.inputs]
            made = self._again(at, act, operands)
            last = act
        self._back(made, last, way)

    def share(self) -> None:
        """Who turns a value as it was turned here, or lay before, reads that."""
        place = {node: i for i, node in enumerate(self._model.graph)}
        for source, way in self._turned:
            own = [n for n in source.consumers() if n.op_type == "Transpose" and _perm(n) == way.perm]
            made = source.producer()
            if made is not None and made.op_type == "Transpose" and _turns_back(_perm(made), way.perm):
                before = made.inputs[0]
            elif len(own) > 1:
                own.sort(key=place.__getitem__)
                before = own.pop(0).outputs[0]
            else:
                continue
            for other in own:
                if before is not None and not other.outputs[0].is_graph_output():
                    other.outputs[0].replace_all_uses_with(before)
                    remove_dead([other])

    def _forth(self, source: ir.Value, way: _Way, at: ir.Node) -> ir.Value:
        key = (source, way)
        if key not in self._turned:
            self._turned[key] = self._as_it_was(source, way) or self._turn(source, way, at)
        return self._turned[key]

    def _as_it_was(self, source: ir.Value, way: _Way) -> ir.Value | None:
        """What was flattened only to be read by a linear layer: (B, K, 1, 1) became (B, K)."""
        before = source.producer()
        if (
            before is None
            or before.op_type not in ("Flatten", "Reshape", "Squeeze")
            or way != _Way(added=(2, 3))
        ):
            return None
        x = before.inputs[0]
        if x is None or x.shape is None or source.shape is None or x.shape.rank() != 4:
            return None
        return x if list(x.shape) == [*source.shape, 1, 1] else None

    def _turn(self, value: ir.Value, way: _Way, at: ir.Node) -> ir.Value:
        if way.dropped:
            value = self._add(at, at, "Squeeze", [value, self._numbers(at, way.dropped)])
        if way.perm is not None:
            value = self._add(at, at, "Transpose", [value], {"perm": way.perm})
        return self._add(at, at, "Unsqueeze", [value, self._numbers(at, way.added)]) if way.added else value

    def _back(self, made: ir.Value, last: ir.Node, way: _Way) -> None:
        """The way backwards: its result takes the name and the readers of ``last``."""
        steps: list[tuple[str, tuple[int, ...]]] = []
        if way.added:
            steps.append(("Squeeze", way.added))
        if way.perm is not None:
            steps.append(("Transpose", tuple(int(i) for i in np.argsort(way.perm))))
        if way.dropped:
            steps.append(("Unsqueeze", way.dropped))
        old, value = last.outputs[0], made
        for op_type, numbers in steps:
            if op_type == "Transpose":
                value = self._add(last, last, op_type, [value], {"perm": numbers})
            else:
                value = self._add(last, last, op_type, [value, self._numbers(last, numbers)])
        self._turned[old, way] = made
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        name, old.name = old.name, None
        value.name, value.type, value.shape = name, old.type, old.shape
        self._turned[value, way] = made
        remove_dead([last])

    def _weight(self, linear: _Linear) -> ir.Value:
        """(N, K, 1, 1), under the name that the matrix had."""
        old = linear.weight
        if old not in self._weights:
            array = constant(old)
            assert array is not None and old.name is not None
            by_outputs = array if _by_outputs(linear.node) else array.T
            stored = np.ascontiguousarray(by_outputs)[:, :, None, None]
            for reader, place in self.readers(old):
                reader.replace_input_with(place, None)
            del self._model.graph.initializers[old.name]
            self._taken.discard(old.name)
            self._weights[old] = add_initializer(self._model, old.name, stored, self._taken)
        return self._weights[old]

    def _numbers(self, node: ir.Node, numbers: tuple[int, ...]) -> ir.Value:
        """A constant; the layers share those that are equal."""
        if numbers not in self._constants:
            array = np.array(numbers, np.int64)
            self._constants[numbers] = add_initializer(self._model, f"{node.name}/axes", array, self._taken)
        return self._constants[numbers]

    def _again(self, at: ir.Node, act: ir.Node, operands: list[ir.Value | None]) -> ir.Value:
        """An activation of what is turned, under its name."""
        name = fresh_name(self._model, f"{act.name}/turned", self._taken)
        made = ir.node(
            act.op_type,
            operands,
            attributes=dict(act.attributes),
            name=act.name,
            outputs=[ir.Value(name=name)],
        )
        made.metadata_props.update(act.metadata_props)
        assert at.graph is not None
        at.graph.insert_before(at, made)
        return made.outputs[0]

    def _add(
        self,
        at: ir.Node,
        like: ir.Node,
        op_type: str,
        inputs: list[ir.Value],
        attributes: dict[str, Attribute] | None = None,
        *,
        name: str | None = None,
    ) -> ir.Value:
        """A node more before ``at``, called and marked as what ``like`` was."""
        stem = f"{like.name}/{op_type}"
        free = fresh_name(self._model, stem, self._taken)
        made = ir.node(
            op_type, inputs, attributes=attributes, name=name or free, outputs=[ir.Value(name=free)]
        )
        made.metadata_props.update(like.metadata_props)
        assert at.graph is not None
        at.graph.insert_before(at, made)
        return made.outputs[0]


def _follows(node: ir.Node, value: ir.Value) -> bool:
    """Whether an activation may be computed of ``value`` however that lies."""
    if (
        node.op_type not in _UNARY
        or node.domain != ""
        or len(node.outputs) != 1
        or node.inputs[0] is not value
    ):
        return False
    rest = [constant_tensor(other) for other in node.inputs[1:] if other is not None]
    return all(tensor is not None and tensor.size == 1 for tensor in rest)


def _turns_back(first: tuple[int, ...], second: tuple[int, ...] | None) -> bool:
    return second is not None and tuple(int(i) for i in np.argsort(first)) == second


def _perm(node: ir.Node) -> tuple[int, ...]:
    return tuple(node.attributes.get_ints("perm", ()))

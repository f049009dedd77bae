"""Graphs written by hand, layer by layer, with random weights: no framework, nothing to download."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from deploy.graph.shapes import infer

Attribute = int | float | str | Sequence[int] | Sequence[float]


class Net:
    """A graph in the making. Methods take and give values; ``c`` says how many channels a value has."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[ir.Node] = []
        self._constants: list[ir.Value] = []
        self._inputs: list[ir.Value] = []
        self.c: dict[ir.Value, int] = {}

    def input(self, *shape: int | str, dtype: ir.DataType = ir.DataType.FLOAT, name: str = "x") -> ir.Value:
        value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
        self._inputs.append(value)
        if len(shape) > 1 and isinstance(shape[1], int):
            self.c[value] = shape[1]
        return value

    def const(self, array: np.ndarray | Sequence[int] | float) -> ir.Value:
        array = np.asarray(array)
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        name = f"k{len(self._constants)}"
        value = ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            shape=ir.Shape(array.shape),
            const_value=ir.tensor(array, name=name),
        )
        self._constants.append(value)
        return value

    def random(self, *shape: int, scale: float = 1.0, offset: float = 0.0) -> ir.Value:
        return self.const((self._rng.standard_normal(shape) * scale + offset).astype(np.float32))

    def op(
        self, op_type: str, *inputs: ir.Value | None, c: int | None = None, **attributes: Attribute
    ) -> ir.Value:
        return self.ops(op_type, *inputs, c=c, count=1, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        count: int,
        c: int | None = None,
        **attributes: Attribute,
    ) -> list[ir.Value]:
        name = f"{op_type}_{len(self._nodes)}"
        node = ir.node(op_type, inputs, attributes, name=name, num_outputs=count)
        for i, value in enumerate(node.outputs):
            value.name = f"{name}_out{i}"
            width = c if c is not None else next((self.c[v] for v in inputs if v in self.c), None)
            if width is not None:
                self.c[value] = width
        self._nodes.append(node)
        return list(node.outputs)

    def model(self, *outputs: ir.Value) -> ir.Model:
        for i, value in enumerate(outputs):
            value.name = f"y{i}"
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        graph = ir.Graph(
            self._inputs, outputs, nodes=self._nodes, initializers=self._constants,
            opset_imports={"": 21}, name="g",
        )  # fmt: skip
        return infer(ir.Model(graph, ir_version=10))

    # layers

    def conv(
        self,
        x: ir.Value,
        out: int,
        k: int = 3,
        s: int = 1,
        g: int = 1,
        bias: bool = True,
        d: int = 1,
        nd: int = 2,
    ) -> ir.Value:
        c = self.c[x]
        weight = self.random(out, c // g, *[k] * nd, scale=(c // g * k**nd) ** -0.5)
        operands = [x, weight, self.random(out, scale=0.3)] if bias else [x, weight]
        pad = d * (k - 1) // 2
        return self.op(
            "Conv", *operands, c=out, kernel_shape=[k] * nd, strides=[s] * nd, pads=[pad] * 2 * nd, group=g,
            dilations=[d] * nd,
        )  # fmt: skip

    def bn(self, x: ir.Value) -> ir.Value:
        c = self.c[x]
        return self.op(
            "BatchNormalization", x, self.random(c, scale=0.2, offset=1.0), self.random(c, scale=0.3),
            self.random(c, scale=0.2), self.const(np.abs(self._rng.standard_normal(c)) + 0.5),
        )  # fmt: skip

    def cbr(
        self, x: ir.Value, out: int, k: int = 3, s: int = 1, g: int = 1, act: str = "Relu", d: int = 1
    ) -> ir.Value:
        y = self.bn(self.conv(x, out, k, s, g, bias=False, d=d))
        return self.act(y, act)

    def act(self, x: ir.Value, kind: str) -> ir.Value:
        if kind == "":
            return x
        if kind == "Silu":
            return self.op("Mul", x, self.op("Sigmoid", x))
        if kind == "Relu6":
            return self.op("Clip", x, self.const(np.float32(0)), self.const(np.float32(6)))
        return self.op(kind, x)

    def relu(self, x: ir.Value) -> ir.Value:
        return self.op("Relu", x)

    def add(self, x: ir.Value, y: ir.Value) -> ir.Value:
        return self.op("Add", x, y)

    def concat(self, *parts: ir.Value, axis: int = 1) -> ir.Value:
        return self.op("Concat", *parts, axis=axis, c=sum(self.c[p] for p in parts))

    def pool(self, x: ir.Value, kind: str = "MaxPool", k: int = 2, s: int = 2, pad: int = 0) -> ir.Value:
        return self.op(kind, x, kernel_shape=[k, k], strides=[s, s], pads=[pad] * 4)

    def dense(self, x: ir.Value, out: int, inputs: int | None = None) -> ir.Value:
        c = self.c[x] if inputs is None else inputs
        weight = self.random(out, c, scale=c**-0.5)
        return self.op("Gemm", x, weight, self.random(out, scale=0.3), transB=1, c=out)

    def head(self, x: ir.Value, classes: int = 10) -> ir.Value:
        return self.dense(self.op("Flatten", self.op("GlobalAveragePool", x)), classes)

    def linear(self, x: ir.Value, inputs: int, out: int) -> ir.Value:
        y = self.op("MatMul", x, self.random(inputs, out, scale=inputs**-0.5), c=out)
        return self.op("Add", y, self.random(out, scale=0.3), c=out)

    def norm(self, x: ir.Value, width: int) -> ir.Value:
        scale, bias = self.random(width, scale=0.2, offset=1.0), self.random(width, scale=0.3)
        return self.op("LayerNormalization", x, scale, bias, axis=-1)

    def shape(self, x: ir.Value, *target: int, c: int | None = None) -> ir.Value:
        return self.op("Reshape", x, self.const(list(target)), c=c)

    def turn(self, x: ir.Value, *perm: int) -> ir.Value:
        return self.op("Transpose", x, perm=list(perm))

    def se(self, x: ir.Value, reduced: int, gate: str = "Sigmoid") -> ir.Value:
        c = self.c[x]
        y = self.relu(self.conv(self.op("GlobalAveragePool", x), reduced, 1))
        return self.op("Mul", x, self.op(gate, self.conv(y, c, 1)))

    def slice(
        self,
        x: ir.Value,
        starts: list[int],
        ends: list[int],
        axes: list[int],
        steps: list[int] | None = None,
        c: int | None = None,
    ) -> ir.Value:
        steps = steps or [1] * len(starts)
        return self.op("Slice", x, *map(self.const, (starts, ends, axes, steps)), c=c)

    def attention(
        self, x: ir.Value, width: int, heads: int, mask: ir.Value | None = None, packed: bool = False
    ) -> ir.Value:
        """[n, t, width]; ``packed``: queries, keys and values from one layer."""
        size = width // heads
        if packed:
            y = self.shape(self.linear(x, width, 3 * width), 0, -1, 3, heads, size)
            y = self.turn(y, 2, 0, 3, 1, 4)
            q, k, v = (self.op("Gather", y, self.const(np.int64(i)), axis=0) for i in range(3))
            k = self.turn(k, 0, 1, 3, 2)
        else:
            q, k, v = (self.shape(self.linear(x, width, width), 0, -1, heads, size) for _ in range(3))
            q, k, v = self.turn(q, 0, 2, 1, 3), self.turn(k, 0, 2, 3, 1), self.turn(v, 0, 2, 1, 3)
        scores = self.op("Mul", self.op("MatMul", q, k), self.const(np.float32(size**-0.5)))
        if mask is not None:
            scores = self.op("Add", scores, mask)
        y = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        return self.linear(self.shape(self.turn(y, 0, 2, 1, 3), 0, -1, width), width, width)

    def encoder(
        self, x: ir.Value, width: int, heads: int, mask: ir.Value | None = None, packed: bool = False
    ) -> ir.Value:
        """A transformer's block, norms first."""
        x = self.op("Add", x, self.attention(self.norm(x, width), width, heads, mask, packed))
        y = self.op("Gelu", self.linear(self.norm(x, width), width, 2 * width))
        return self.op("Add", x, self.linear(y, 2 * width, width))

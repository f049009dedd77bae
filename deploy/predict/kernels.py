"""What a runtime runs as one: the kernels of a graph under a plan, with what their cost depends on.

A kernel is a node with the neighbours that the runtime computes along with it: the profile lists those chains
for integers (``fuses``) and for floats (``fuses_float``), and the operations whose float kernels take in
whatever elementwise comes behind them (``absorbs``). What only names or views its data costs nothing. Between
what is made as floats and read as integers, or the other way round, stands a change of form, a kernel too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from deploy.graph.blocks import reads
from deploy.graph.cost import macs_of
from deploy.graph.edit import constant_tensor, is_constant, sole_consumer
from deploy.graph.row_bias import chain_word
from deploy.graph.shapes import static_shape
from deploy.predict.classes import JOINS, class_of
from deploy.spec.overlay import KernelClass
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.tensors import Precision

# fmt: off
_VIEWS = frozenset((
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Shape", "Size", "Constant",
    "ConstantOfShape", "QuantizeLinear", "DequantizeLinear",
))
"""They cost nothing: views of their input, sizes. Pairs are counted as changes of form."""
# fmt: on
_INTEGERS: tuple[Precision, Precision] = ("int8", "w8a16")
"""By whether activations have 16 bits."""
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_LARGEST_ALIGN = 64
_AT_ONCE = 4
"""Bytes that one instruction multiplies and adds up (VNNI, SDOT)."""
HEAVY: tuple[KernelClass, ...] = ("hard", "transcendental")
"""Activations that take longer than their data."""


@dataclass(frozen=True)
class Kernel:
    """``nodes`` by name, the one that gives it its class first; those of a change of form are the readers.

    ``macs``, ``bytes``, ``depth`` and ``align`` as in `deploy/spec/overlay.py`. ``along`` are the heavy
    activations that it computes in passing, each as the kernel in floats that it would be alone. ``weights``
    are its constants in bytes, as it reads them.
    """

    op: KernelClass
    precision: Precision
    nodes: tuple[str, ...]
    macs: int
    bytes: int
    depth: int = 1
    align: int = 1
    along: tuple[Kernel, ...] = ()
    weights: int = field(default=0, compare=False)


class UnknownSizeError(Exception):
    """A size that a cost depends on is free; ``node`` is where."""

    def __init__(self, node: str) -> None:
        super().__init__(f"a size is free at {node}, and what it takes depends on that (--shape fixes it)")
        self.node = node


def kernels(
    model: ir.Model, tensors: Mapping[str, TensorPlan], runtime: Runtime, batch: int = 1
) -> list[Kernel]:
    """The kernels of a float graph when ``tensors`` are quantized, in graph order, changes of form last.

    Raises UnknownSizeError where a size other than the batch is free.
    """
    graph = _Formed(model, tensors, runtime, batch)
    chains = graph.chains()
    found = [kernel for chain in chains for kernel in graph.kernels_of(chain)]
    return found + list(graph.conversions(chains))


@dataclass(frozen=True)
class Flow:
    """A value on its way from one kernel to others. ``made`` and ``readers`` say who has it in integers.

    ``shown`` is what it is a view of: itself, if no view.
    """

    value: ir.Value
    shown: ir.Value
    made: bool
    readers: Mapping[ir.Node, bool]


def flows(model: ir.Model, tensors: Mapping[str, TensorPlan], runtime: Runtime) -> list[Flow]:
    """The values between kernels when ``tensors`` are quantized, in graph order."""
    graph = _Formed(model, tensors, runtime, 1)
    return list(graph.flows(graph.chains()))


def change_of_form(
    shape: Sequence[int], integers: Precision, readers: tuple[str, ...], each: int = 5
) -> Kernel:
    """The kernel between floats and integers: four bytes a number on one side, one on the other."""
    return Kernel("convert", integers, readers, macs=0, bytes=each * math.prod(shape))


def _computes(node: ir.Node) -> bool:
    """Whether a node works on data: arithmetic on sizes and indices is done once, or in no time."""
    result = node.outputs[0] if node.outputs else None
    if result is None or result.dtype is None:
        return True
    return result.dtype.is_floating_point() or any(
        v is not None and not is_constant(v) and v.dtype is not None and v.dtype.is_floating_point()
        for v in node.inputs
    )


class _Formed:
    """A graph whose values are integers where a plan says so."""

    def __init__(
        self, model: ir.Model, tensors: Mapping[str, TensorPlan], runtime: Runtime, batch: int
    ) -> None:
        self.model, self.tensors, self.runtime, self.batch = model, tensors, runtime, batch
        self.position = {node: index for index, node in enumerate(model.graph)}
        self.integer = {tuple(chain.split("+")) for chain in runtime.fuses}
        self.float = self.integer | {tuple(chain.split("+")) for chain in runtime.fuses_float}
        self.wide = runtime.quant is not None and runtime.quant.activation == "int16"
        self._in_integers: dict[ir.Node, bool] = {}
        self._static: dict[ir.Value, tuple[int, ...] | None] = {}

    def chains(self) -> list[list[ir.Node]]:
        """What is computed, each with what follows it in the same kernel."""
        chains: list[list[ir.Node]] = []
        taken: set[ir.Node] = set()
        for node in self.model.graph:
            if node not in taken and node.op_type not in _VIEWS and _computes(node):
                chains.append(self.chain(node))
                taken.update(chains[-1])
        return chains

    def reads_codes(self, value: ir.Value, reader: ir.Node) -> bool:
        """Whether ``reader`` gets the value as integers."""
        plan = self.tensors.get(value.name or "")
        if plan is not None:
            return not plan.readers or (reader.name or "") in plan.readers
        mover = value.producer()
        return mover is not None and self._passes(mover) and self.in_integers(mover)

    def is_wide(self, value: ir.Value, reader: ir.Node | None = None) -> bool:
        """Whether the value has 16 bits where it is integers, as it is stored or as ``reader`` has it."""
        plan = self.tensors.get(value.name or "")
        if plan is None:
            return self.wide
        return (plan if reader is None else plan.uses.get(reader.name or "", plan)).type == "int16"

    def _turns(self, value: ir.Value, reader: ir.Node) -> bool:
        """Whether ``reader`` has the value's integers in another width than they are stored in."""
        return self.is_wide(value, reader) != self.is_wide(value)

    def makes_codes(self, node: ir.Node, value: ir.Value) -> bool:
        """Whether the kernel of ``node`` writes the value as integers, for all who read it."""
        plan = self.tensors.get(value.name or "")
        written = self._passes(node) if plan is None else not plan.readers
        return written and self.in_integers(node)

    def _passes(self, node: ir.Node) -> bool:
        """Whether integers go through the node although no pair stands behind it."""
        rules = self.runtime.quant
        return rules is not None and not rules.pair_moved and node.op_type in (*rules.forward, *rules.unify)

    def in_integers(self, node: ir.Node) -> bool:
        """Whether a node computes on codes: all data that it reads come so, and what only moves them has
        codes to write."""
        if node not in self._in_integers:
            self._in_integers[node] = self._computes_codes(node)
        return self._in_integers[node]

    def _computes_codes(self, node: ir.Node) -> bool:
        rules = self.runtime.quant
        if rules is None or node.op_type not in (*rules.compute, *rules.forward, *rules.unify):
            return False
        data = [v for v in node.inputs if v is not None and not is_constant(v)]
        weights = [v for v in node.inputs[1:2] if v is not None and is_constant(v)]
        computes = node.op_type in rules.compute and node.op_type in _PRODUCTS
        if computes and weights and (weights[0].name or "") not in self.tensors:
            return False
        moves = node.op_type not in rules.compute
        if moves and rules.pair_moved and any((v.name or "") not in self.tensors for v in node.outputs):
            return False
        return bool(data) and all(
            self.reads_codes(v, node) for v in data[: 1 if computes and weights else None]
        )

    def chain(self, head: ir.Node) -> list[ir.Node]:
        """``head`` with what follows it in the same kernel."""
        integer = self.in_integers(head)
        patterns = self.integer if integer else self.float
        nodes, best = [head], 1
        absorbs = head.op_type in self.runtime.absorbs or class_of(head) in self.runtime.absorbs
        while True:
            kinds = tuple(chain_word(n) for n in nodes)
            if kinds in patterns:
                best = len(nodes)
            following = sole_consumer(nodes[-1].outputs[0])
            if following is None or (integer and self.reads_codes(nodes[-1].outputs[0], following)):
                return nodes[:best]
            if not self._ready(following, nodes):
                return nodes[:best]
            if absorbs and following.op_type in JOINS and not self.in_integers(following):
                nodes.append(following)
                best = len(nodes)
                continue
            if not any(p[: len(kinds)] == kinds and len(p) > len(kinds) for p in patterns):
                return nodes[:best]
            nodes.append(following)

    def _ready(self, node: ir.Node, nodes: list[ir.Node]) -> bool:
        """Whether all else that ``node`` reads is there before the first of ``nodes`` runs.

        Of two products that are added up, the later one takes the addition in.
        """
        others = (v.producer() for v in node.inputs if v is not None)
        before = self.position[nodes[0]]
        return all(p is None or p in nodes or self.position.get(p, -1) < before for p in others)

    def kernels_of(self, chain: list[ir.Node]) -> list[Kernel]:
        """The chain as one kernel, a recurrent layer as two: the products of all steps' inputs, which are one
        large product, and the steps."""
        whole = self.kernel(chain)
        if whole.op not in ("recurrent", "gru"):
            return [whole]
        node = chain[0]
        first, second, width = self._shape(node.inputs[0], node)
        weights = self._shape(node.inputs[1], node)  # [directions, gates * hidden, width]
        rows, columns = first * second, weights[0] * weights[1]
        macs = rows * width * columns
        moved = 4 * (rows * (width + columns) + width * columns)
        align = min(_LARGEST_ALIGN, width & -width, columns & -columns)
        inputs = Kernel("gemm", whole.precision, whole.nodes, macs, moved, width, align)
        return [
            inputs,
            replace(whole, macs=whole.macs - macs, bytes=whole.bytes - 4 * width * (rows + columns)),
        ]

    def kernel(self, chain: list[ir.Node]) -> Kernel:
        """The chain as one kernel."""
        head = chain[0]
        integer = self.in_integers(head)
        count = [macs_of(node, self.batch) for node in chain]
        if None in count:
            raise UnknownSizeError(head.name or "")
        made = {out for node in chain[:-1] for out in node.outputs}
        moved = weights = 0
        seen: set[ir.Value] = set()
        for node in chain:
            for value in reads(node):
                if value in made or value in seen:
                    continue
                seen.add(value)
                codes = integer and (is_constant(value) or self.reads_codes(value, node))
                size = self._bytes(value, node, codes, self.is_wide(value, node))
                moved += size
                weights += size if is_constant(value) else 0
        for value in chain[-1].outputs:
            if value.name:
                moved += self._bytes(value, chain[-1], self.makes_codes(head, value), self.is_wide(value))
        if class_of(head) == "stem":
            moved += self._patches(head, integer)
        data = next((v for v in head.inputs if v is not None and not is_constant(v)), None)
        codes_of = _INTEGERS[self.wide if data is None else self.is_wide(data, head)]
        return Kernel(
            op=class_of(head),
            precision=codes_of if integer else self.runtime.float_precision,
            nodes=tuple(node.name or "" for node in chain),
            macs=sum(c or 0 for c in count),
            bytes=moved,
            depth=max(1, self._depth(head)),
            align=self._align(head),
            along=tuple(self._heavy(node) for node in chain[1:] if class_of(node) in HEAVY),
            weights=weights,
        )

    def _patches(self, node: ir.Node, integer: bool) -> int:
        """Bytes of what a first convolution gathers, a patch for each result: that takes as long as its few
        products. Dot products of bytes take four numbers at a time, and channels are filled up to that."""
        weight, made = self._shape(node.inputs[1], node), self._shape(node.outputs[0], node)
        channels = max(_AT_ONCE, weight[1]) if integer else weight[1]
        return math.prod(made) // made[1] * channels * math.prod(weight[2:]) * self._width(integer)

    def _width(self, integer: bool, wide: bool = False) -> int:
        return 1 + wide if integer else 4 if self.runtime.around == "float32" else 2

    def _heavy(self, node: ir.Node) -> Kernel:
        ends = [v for v in (*node.inputs[:1], *node.outputs[:1]) if v is not None]
        moved = sum(self._bytes(value, node, False) for value in ends)
        return Kernel(class_of(node), self.runtime.float_precision, (node.name or "",), 0, moved)

    def flows(self, chains: list[list[ir.Node]]) -> Iterator[Flow]:
        """Not at the graph's ends: there a change of form is part of getting in and out."""
        kernel_of = {node: chain[0] for chain in chains for node in chain}
        for node in self.model.graph:
            for value in node.outputs:
                shown = _behind_views(value)
                source = shown.producer()
                if source is None or source not in kernel_of:
                    continue
                readers = {
                    reader: self.in_integers(kernel_of[reader]) and self.reads_codes(value, reader)
                    for reader in value.consumers()
                    if reader in kernel_of and kernel_of[reader] is not kernel_of[source]
                }
                if readers:
                    yield Flow(value, shown, self.makes_codes(kernel_of[source], shown), readers)

    def conversions(self, chains: list[list[ir.Node]]) -> Iterator[Kernel]:
        """A change of form for every value that is made in one and read in the other."""
        for flow in self.flows(chains):
            readers = [reader for reader, codes in flow.readers.items() if codes != flow.made]
            if readers:
                shape = self._shape(flow.value, readers[0])
                wide = self.is_wide(flow.value, readers[0])
                yield change_of_form(shape, _INTEGERS[wide], tuple(reader.name or "" for reader in readers))
            turned = [r for r, codes in flow.readers.items() if codes and self._turns(flow.value, r)]
            if turned:
                shape = self._shape(flow.value, turned[0])
                yield change_of_form(shape, "w8a16", tuple(r.name or "" for r in turned), each=3)

    def _shape(self, value: ir.Value | None, node: ir.Node) -> tuple[int, ...]:
        shape = None if value is None else self._static_shape(value)
        if shape is None:
            raise UnknownSizeError(node.name or "")
        return shape

    def _static_shape(self, value: ir.Value) -> tuple[int, ...] | None:
        if value not in self._static:
            self._static[value] = static_shape(value, self.batch)
        return self._static[value]

    def _bytes(self, value: ir.Value, node: ir.Node, integer: bool, wide: bool = False) -> int:
        tensor = constant_tensor(value)
        if tensor is not None:
            plan = self.tensors.get(value.name or "")
            each = 4.0 if plan is not None and plan.origin == "bias" else 1.0 if plan is not None else 0.0
            return math.ceil(tensor.size * each) if each else int(tensor.nbytes)
        shape = self._static_shape(value)
        if shape is None or value.dtype is None:
            raise UnknownSizeError((value.producer() or node).name or "")
        floats = integer or value.dtype.is_floating_point()
        each = self._width(integer, wide) if floats else value.dtype.itemsize
        return math.ceil(math.prod(shape) * each)

    def _depth(self, node: ir.Node) -> int:
        """How many products or numbers become one."""
        kind = class_of(node)
        if kind in ("conv", "pointwise", "depthwise", "grouped", "stem"):
            return math.prod(self._shape(node.inputs[1], node)[1:])
        if kind == "transposed":
            weight = self._shape(node.inputs[1], node)
            return weight[0] * math.prod(weight[2:]) // node.attributes.get_int("group", 1)
        if kind in ("gemm", "batched") and node.op_type in ("Gemm", "MatMul"):
            left = self._shape(node.inputs[0], node)
            return left[0 if node.attributes.get_int("transA", 0) else -1]
        if kind in ("recurrent", "gru"):
            return self._shape(node.inputs[2], node)[-1]
        if kind == "pool":
            return math.prod(node.attributes.get_ints("kernel_shape", (1,)))
        if kind in ("softmax", "norm"):
            shape = self._shape(node.inputs[0], node)
            return shape[-1] if len(shape) < 4 else math.prod(shape[2:])
        if kind == "reduce":
            before, after = (math.prod(self._shape(v, node)) for v in (node.inputs[0], node.outputs[0]))
            return before // max(1, after)
        return 1

    def _align(self, node: ir.Node) -> int:
        """The largest power of two that divides the channels on both sides."""
        kind = class_of(node)
        if kind in ("conv", "pointwise", "depthwise", "grouped", "transposed", "stem"):
            read, made = (self._shape(v, node) for v in (node.inputs[0], node.outputs[0]))
            sizes = [made[1]] if kind == "stem" else [read[1], made[1]]
        elif kind in ("gemm", "batched") and node.op_type in ("Gemm", "MatMul"):
            sizes = [self._depth(node), *self._shape(node.outputs[0], node)[-1:]]  # of vectors: a number
        else:
            return 1
        return min(_LARGEST_ALIGN, *(size & -size for size in sizes)) or 1


def _behind_views(value: ir.Value) -> ir.Value:
    """What a chain of views shows: made by a node that computes, or an input of the graph."""
    node = value.producer()
    while node is not None and node.op_type in _VIEWS and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value

"""Blocks: the smallest units whose precision may be chosen, as a partition of all nodes of a graph.

Each compute operation starts a block, and its neighbours join it:

    Conv -> BatchNormalization -> Relu                     one block
    x -> Sigmoid -> Mul(x, .)                              one activation: joins what computes x
    Conv -> Add(., constant) -> Reshape -> Transpose       one block
    Conv -> Add(., shortcut) -> Relu                       joins the later of the two producers of the Add

Pooling, softmax, normalisation over features, concatenation, products of two activations and all the rest
stand alone. The steps of a recurrent layer that was written out are one block, its products with the inputs
another (`graph/origin.py`). What a runtime fuses changes what a block costs, never the partition. It is
convex, more strictly: the graph of its blocks has no cycle, so blocks can be run and replaced one after the
other.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploy.errors import ModelError
from deploy.graph import origin
from deploy.graph.edit import is_constant, sole_consumer

# fmt: off
COMPUTE = frozenset((
    "Conv", "ConvTranspose", "DeformConv", "ConvInteger", "QLinearConv", "MatMul", "MatMulInteger",
    "QLinearMatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention", "MultiHeadAttention",
    "GroupQueryAttention", "FusedConv", "FusedMatMul", "FusedGemm",
))
"""Operations whose cost is multiply-accumulates; each starts a block."""

ACTIVATION = frozenset((
    "Relu", "Clip", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "ThresholdedRelu", "HardSigmoid",
    "HardSwish", "Sigmoid", "Tanh", "Gelu", "Softplus", "Softsign", "Mish", "Swish", "QuickGelu",
))
MOVEMENT = frozenset((
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Pad", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth", "Identity", "Dropout", "Cast",
))
"""Operations that move or retype their first input without computing on it."""

_AFFINE = frozenset(("Add", "Sub", "Mul", "Div"))
_POINTWISE = ACTIVATION | _AFFINE | frozenset((
    "Pow", "Sqrt", "Exp", "Log", "Erf", "Neg", "Abs", "Min", "Max", "Reciprocal", "Sum", "Identity",
))
# fmt: on
_LARGEST_ACTIVATION = 16
"""Nodes in the longest activation that exporters spell out (GELU by tanh has nine)."""


@dataclass(frozen=True)
class Block:
    """Nodes by name, in graph order. ``id`` is the name of the node that started it, ``kind`` its op type; of
    nodes that were written out of one, the name that they were given and that one's op type."""

    id: str
    nodes: tuple[str, ...]
    kind: str


def partition(model: ir.Model) -> tuple[Block, ...]:
    """All nodes of the main graph, each in exactly one block, blocks in topological order.

    A node with a body (If, Loop, Scan) is a block of its own and not descended into. Two equal graphs give
    equal partitions. Raises ModelError where nodes have no name or share one.

    >>> model = ir.from_onnx_text(
    ...     '''<ir_version: 10, opset_import: ["" : 21]> g (float[n, 2] x) => (float[n, 2] z)
    ...     <float[2, 2] w = {1, 0, 0, 1}> { [mm] y = MatMul(x, w) [act] z = Relu(y) }'''
    ... )
    >>> [block.nodes for block in partition(model)]
    [('mm', 'act')]
    """
    _require_names(model.graph)
    growing = _Growing(model.graph)
    for node in model.graph:
        growing.place(node)
    return growing.blocks()


def reads(node: ir.Node) -> tuple[ir.Value, ...]:
    """The values a node depends on, each once: its inputs, and what its bodies capture from outside."""
    values = {value: None for value in node.inputs if value is not None}
    for body in bodies(node):
        for inner in ir.traversal.RecursiveGraphIterator(body):
            values.update((v, None) for v in inner.inputs if v is not None and v.graph is node.graph)
        values.update((v, None) for v in body.outputs if v.graph is node.graph)
    return tuple(values)


def bodies(node: ir.Node) -> tuple[ir.Graph, ...]:
    """The graphs inside a node: If, Loop, Scan and SequenceMap have some."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.as_graphs())
    return tuple(found)


def activation_from(value: ir.Value) -> tuple[ir.Node, ...] | None:
    """The pointwise function of ``value`` alone that several nodes spell out, or None.

    Its nodes read only ``value``, each other and constants; nobody else reads ``value``; only its last node
    is read from outside. The smallest such function is returned: ``x * sigmoid(x)``, hard-swish as Add, Clip,
    Mul, Div, GELU by erf or tanh.
    """
    if value.is_graph_output() or len(value.consumers()) < 2 or value.graph is None:
        return None
    found: dict[ir.Node, None] = {}
    inner = {value}
    while len(found) < _LARGEST_ACTIVATION:
        waiting = [n for v in inner for n in v.consumers() if n not in found]
        ready = [n for n in dict.fromkeys(waiting) if _reads_only(n, inner, value.graph)]
        if not ready:
            return None
        # Any ready node may come next: the node that closes the function needs all the others.
        node = ready[0]
        found[node] = None
        result = node.outputs[0]
        if all(n in found for v in inner for n in v.consumers()):
            return tuple(found)
        if result.is_graph_output():
            return None
        inner.add(result)
    return None


def _reads_only(node: ir.Node, values: set[ir.Value], graph: ir.Graph) -> bool:
    return (
        node.graph is graph
        and node.op_type in _POINTWISE
        and len(node.outputs) == 1
        and all(v is None or v in values or is_constant(v) for v in node.inputs)
    )


class _Growing:
    """A partition in the making. Blocks are numbered as they start; ``after`` holds edges between them."""

    def __init__(self, graph: ir.Graph) -> None:
        nodes = tuple(graph)
        self.position = {node: i for i, node in enumerate(nodes)}
        self.reads = {node: reads(node) for node in nodes}
        self.block_of: dict[ir.Node, int] = {}
        self.members: list[list[ir.Node]] = []
        self.after: list[set[int]] = []
        self.sizes: set[ir.Value] = set()
        self.ids: list[str] = []
        self.written: dict[str, int] = {}
        sources = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
        self.composite = {part for value in sources for part in activation_from(value) or ()}

    def place(self, node: ir.Node) -> None:
        """Give ``node``, whose producers are placed, to the first block that it may join, or to a new one."""
        producers = self._producers(node)
        wanted = self._candidates(node, producers)
        block = next((b for b in wanted if self._fits(b, producers)), None)
        if block is None:
            block = len(self.members)
            self.members.append([])
            self.after.append(set())
            self.ids.append(self._id(node))
            self.written.setdefault(self.ids[-1], block)
        self.members[block].append(node)
        self.block_of[node] = block
        for producer in producers:
            if self.block_of[producer] != block:
                self.after[self.block_of[producer]].add(block)

    def blocks(self) -> tuple[Block, ...]:
        """The blocks in topological order, among those that could come next the one that starts first."""
        missing = [0] * len(self.members)
        for followers in self.after:
            for block in followers:
                missing[block] += 1
        ready = [b for b, count in enumerate(missing) if count == 0]
        found = []
        while ready:
            block = heapq.heappop(ready)
            found.append(_block(self.ids[block], self.members[block]))
            for follower in self.after[block]:
                missing[follower] -= 1
                if missing[follower] == 0:
                    heapq.heappush(ready, follower)
        assert len(found) == len(self.members)
        return tuple(found)

    def _id(self, node: ir.Node) -> str:
        """What a block that starts with ``node`` is called; the name given once only, should it not fit."""
        written = origin.block(node)
        return str(node.name) if written is None or written in self.written else written

    def _producers(self, node: ir.Node) -> list[ir.Node]:
        """The nodes that compute what ``node`` reads, constants left out, the latest first."""
        found = {
            producer
            for value in self.reads[node]
            if (producer := value.producer()) is not None and producer in self.position
        }
        return sorted(found, key=self.position.__getitem__, reverse=True)

    def _candidates(self, node: ir.Node, producers: Sequence[ir.Node]) -> list[int]:
        """The blocks that ``node`` wants to join, the preferred one first."""
        written = origin.block(node)
        if written is not None:
            return [self.written[written]] if written in self.written else []
        return [
            block
            for producer in self._hosts(node, producers)
            if not bodies(self.members[block := self.block_of[producer]][0])
        ]

    def _hosts(self, node: ir.Node, producers: Sequence[ir.Node]) -> Sequence[ir.Node]:
        """The producers beside which ``node`` belongs by its role, the preferred one first."""
        if node.op_type in COMPUTE or bodies(node):
            return ()
        if self._computes_sizes(node) or node in self.composite:
            return producers
        data = [value for value in node.inputs if value is not None and not is_constant(value)]
        if node.op_type in MOVEMENT:
            first = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            return [p for p in producers if p is first]
        if node.op_type in ("Add", "Sum") or (len(data) == 1 and node.op_type in _AFFINE | ACTIVATION):
            return [p for p in producers if any(sole_consumer(v) is node for v in p.outputs)]
        if node.op_type == "BatchNormalization":
            return [p for p in producers if sole_consumer(data[0]) is node]
        return ()

    def _computes_sizes(self, node: ir.Node) -> bool:
        """Whether ``node`` is arithmetic on shapes, as exporters leave before a Reshape to a free size."""
        values = [v for v in self.reads[node] if not is_constant(v)]
        found = node.op_type in ("Shape", "Size") or (bool(values) and all(v in self.sizes for v in values))
        if found:
            self.sizes.update(node.outputs)
        return found

    def _fits(self, block: int, producers: Sequence[ir.Node]) -> bool:
        """Whether a node that reads from ``producers`` closes no cycle of blocks by joining ``block``."""
        sources = {self.block_of[p] for p in producers} - {block}
        if not sources:
            return True
        seen, waiting = {block}, [block]
        while waiting:
            for follower in self.after[waiting.pop()]:
                if follower in sources:
                    return False
                if follower not in seen:
                    seen.add(follower)
                    waiting.append(follower)
        return True


def _block(id_: str, members: Sequence[ir.Node]) -> Block:
    kind, _ = origin.origin(members[0])
    return Block(id_, tuple(str(n.name) for n in members), kind)


def _require_names(graph: ir.Graph) -> None:
    seen: set[str] = set()
    for node in graph:
        if not node.name or node.name in seen:
            problem = f"two nodes are named '{node.name}'" if node.name else f"a {node.op_type} has no name"
            raise ModelError(f"blocks need unique node names: {problem}", hint="load the model with deploy")
        seen.add(node.name)

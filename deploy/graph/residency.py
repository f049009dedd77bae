"""Which nodes of a graph a unit computes, by the rules of its profile.

The rules are about shapes, types and attributes, so they are asked of the graph that a runtime compiles, one
sample at a time. Nothing here knows any unit: what it takes is `deploy/spec/unit.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from deploy.graph.blocks import bodies, partition
from deploy.graph.cost import macs_of
from deploy.graph.edit import is_constant
from deploy.graph.shapes import static_shape
from deploy.spec.residency import STATES, BlockResidency, Residency, RuleFound, State
from deploy.spec.unit import ComputeUnit, Condition, UnitRule

Options = Mapping[str, bool | int | str]

_KERNELS = ("Conv", "ConvTranspose", "DeformConv", "ConvInteger")
"""Operations whose kernel is the size of their weight."""


@dataclass
class _Judged:
    """What the rules say of one node."""

    state: State
    rules: list[str] = field(default_factory=list)
    unlisted: bool = False


def residency(
    model: ir.Model, name: str, unit: ComputeUnit, options: Options | None = None, batch: int = 1
) -> Residency:
    """What the unit called ``name`` computes of ``model``, for artifacts made with ``options``.

    Nodes that only compute sizes, or compute with constants alone, are not counted: they are gone before
    anything runs.
    """
    idle = _settled(model, batch)
    judged = {
        node: _judge(node, unit, options or {}, batch)
        for node in model.graph
        if not all(value in idle for value in node.outputs)
    }
    macs = dict.fromkeys(STATES, 0)
    uncounted = 0
    for node, found in judged.items():
        count = macs_of(node, batch)
        macs[found.state] += count or 0
        uncounted += count is None
    by_name = {node.name or "": node for node in judged}
    blocks = dict.fromkeys(STATES, 0)
    apart = []
    for block in partition(model):
        nodes = [by_name[member] for member in block.nodes if member in by_name]
        if not nodes:
            continue
        told = _of_block(block.id, block.kind, nodes, judged, batch)
        blocks[told.state] += 1
        if told.state != "stays" or told.rules:
            apart.append(told)
    used = {rule for found in judged.values() for rule in found.rules}
    return Residency(
        unit=name,
        otherwise=unit.otherwise,
        blocks=blocks,
        macs=macs,
        uncounted=uncounted,
        crossings=_crossings(judged),
        apart=tuple(apart),
        rules=tuple(_found(key, rule) for key, rule in unit.rule.items() if key in used),
    )


def _of_block(
    name: str, kind: str, nodes: Sequence[ir.Node], judged: Mapping[ir.Node, _Judged], batch: int
) -> BlockResidency:
    away = [node for node in nodes if judged[node].state != "stays"]
    return BlockResidency(
        id=name,
        kind=kind,
        state=max((judged[node].state for node in nodes), key=STATES.index),
        macs=sum(macs_of(node, batch) or 0 for node in away),
        rules=tuple(dict.fromkeys(rule for node in nodes for rule in judged[node].rules)),
        unlisted=tuple(dict.fromkeys(node.op_type for node in nodes if judged[node].unlisted)),
    )


def _found(name: str, rule: UnitRule) -> RuleFound:
    return RuleFound(
        name=name,
        effect=rule.effect,
        words=rule.words,
        said=rule.said,
        remedies=rule.remedies,
        source=rule.source,
        date=rule.date,
    )


def _judge(node: ir.Node, unit: ComputeUnit, options: Options, batch: int) -> _Judged:
    """The worst that a rule says; where none drives the node away, whether it is known to run there."""
    own = node.domain in ("", "ai.onnx")
    held = [
        (key, rule)
        for key, rule in unit.rule.items()
        if (not rule.operations or (own and node.op_type in rule.operations))
        and holds(rule.when, node, options, batch)
    ]
    away = [rule.effect for _, rule in held if rule.effect != "slower"]
    listed = own and node.op_type in unit.runs
    state: State = "leaves" if "leaves" in away else "may leave" if away else "stays" if listed else "unknown"
    return _Judged(state, [key for key, _ in held], unlisted=state == "unknown")


def _settled(model: ir.Model, batch: int) -> set[ir.Value]:
    """Values that are known before anything runs: of constants, and of sizes that are known."""
    found: set[ir.Value] = set()
    for node in model.graph:
        read = [value for value in node.inputs if value is not None]
        sized = node.op_type in ("Shape", "Size") and static_shape(read[0], batch) is not None
        if sized or (not bodies(node) and all(value in found or is_constant(value) for value in read)):
            found.update(node.outputs)
    return found - set(model.graph.outputs)


def _crossings(judged: Mapping[ir.Node, _Judged]) -> int:
    """Values made on one side of the border and read on the other; what is unknown counts as staying."""

    def away(node: ir.Node) -> bool:
        return judged[node].state in ("leaves", "may leave")

    return sum(
        any(away(reader) != away(node) for reader in value.consumers() if reader in judged)
        for node in judged
        for value in node.outputs
    )


# ---------------------------------------------------------------------------------------------- conditions


def holds(when: Condition, node: ir.Node, options: Options | None = None, batch: int = 1) -> bool:
    """Whether all of a condition is true of a node. What is asked of an unknown shape is not true."""
    return all(_answers(when, node, options or {}, batch))


def _answers(when: Condition, node: ir.Node, options: Options, batch: int) -> Iterator[bool]:
    tensors = _tensors(node, when.border)
    shapes = [shape for value in tensors if (shape := static_shape(value, batch)) is not None]
    if when.border:
        yield bool(tensors)
    if when.rank_above is not None:
        yield any(v.shape is not None and v.shape.rank() > when.rank_above for v in tensors)
    if when.size_above is not None:
        yield any(size > when.size_above for shape in shapes for size in _along(shape, when.axes))
    if when.last_below is not None:
        yield any(shape and shape[-1] < when.last_below for shape in shapes)
    if when.types:
        read = [value for value in tensors if value in node.inputs]
        yield any(_type(value) in when.types for value in read)
    if when.free_sizes:
        yield any(v.shape is not None and static_shape(v, batch) is None for v in tensors)
    if when.kernel_above:
        pairs = zip(reversed(_kernel(node)), when.kernel_above, strict=False)
        yield any(size > most for size, most in pairs)
    if when.stride_not_of:
        yield any(stride not in when.stride_not_of for stride in _strides(node, batch))
    if when.dilation_above is not None:
        yield any(rate > when.dilation_above for rate in _integers(node, "dilations"))
    if when.channels_not_of is not None:
        made = static_shape(node.outputs[0], batch)
        yield made is not None and len(made) > 1 and made[1] % when.channels_not_of != 0
    if when.constant:
        yield all(len(node.inputs) > i and is_constant(node.inputs[i]) for i in when.constant)
    if when.moves_last:
        yield _moves_last(node, batch)
    for name, values in when.attributes.items():
        yield _attribute(node, name) in values
    for name, value in when.options.items():
        yield options.get(name) == value


def _tensors(node: ir.Node, border: bool) -> list[ir.Value]:
    """What a node reads and makes, constants left out; with ``border`` only the model's own ends."""
    found = dict.fromkeys((*node.inputs, *node.outputs))
    return [
        value
        for value in found
        if value is not None
        and value.name
        and not is_constant(value)
        and (not border or value.is_graph_input() or value.is_graph_output())
    ]


def _along(shape: Sequence[int], axes: Iterable[int]) -> list[int]:
    """The sizes of those axes that a tensor has, counted from the end; of all where none is named."""
    wanted = tuple(axes) or tuple(range(-len(shape), 0))
    return [shape[axis] for axis in wanted if -axis <= len(shape)]


def _type(value: ir.Value) -> str:
    if value.dtype is None or value.dtype.is_string():
        return "unknown"
    return "bfloat16" if value.dtype == ir.DataType.BFLOAT16 else value.dtype.numpy().name


def _kernel(node: ir.Node) -> tuple[int, ...]:
    """The sizes of a kernel or window, () where a node has none."""
    if node.op_type in _KERNELS and len(node.inputs) > 1 and node.inputs[1] is not None:
        return (static_shape(node.inputs[1]) or ())[2:]
    return _integers(node, "kernel_shape")


def _integers(node: ir.Node, name: str) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return tuple(attribute.as_ints()) if attribute is not None else ()


def _strides(node: ir.Node, batch: int) -> list[int]:
    """The strides along which there is more than one step."""
    made = static_shape(node.outputs[0], batch)
    strides = _integers(node, "strides")
    places = made[2:] if made is not None and len(made) == len(strides) + 2 else (2,) * len(strides)
    return [stride for stride, steps in zip(strides, places, strict=True) if steps > 1]


def _attribute(node: ir.Node, name: str) -> int | str | None:
    """A single number or word that a node has under that name."""
    attribute = node.attributes.get(name)
    if attribute is None:
        return None
    if attribute.type == ir.AttributeType.INT:
        return attribute.as_int()
    return attribute.as_string() if attribute.type == ir.AttributeType.STRING else None


def _moves_last(node: ir.Node, batch: int) -> bool:
    """Whether a Transpose or a change of shape puts other numbers side by side along the last axis."""
    if node.op_type == "Transpose":
        perm = _integers(node, "perm")
        rank = len(static_shape(node.outputs[0], batch) or perm)
        return perm[-1] != rank - 1 if perm else rank > 1
    before, after = (
        static_shape(v, batch) if v is not None else None for v in (node.inputs[0], node.outputs[0])
    )
    if node.op_type not in _RESHAPING or not before or not after:
        return False
    return before[-1] != after[-1]


_RESHAPING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")

"""Decides which values are quantized: the placement, before any number is known.

A runtime computes some operations in integers (``compute``), moves data in whatever type it gets
(``forward``), wants all operands of some alike (``unify``), and computes some chains as one kernel
(``fuses``), inside which nothing may be quantized. From these rules and the precision of each block follow
the values that carry parameters, the groups that share one set, and who reads them quantized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from deploy.graph.blocks import Block
from deploy.graph.edit import is_constant, sole_consumer
from deploy.graph.row_bias import bias_behind, chain_word, one_per_channel
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.profile import QuantRules, Runtime
from deploy.spec.tensors import INTEGER, Precision

_WEIGHT_SLOT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_BIAS_SLOT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_SIZES = ("Shape", "Size")
"""They read how large a value is, and not the value."""
_ELEMENTWISE = ("Add", "Sub", "Mul", "Div", "Max", "Min")


@dataclass(frozen=True)
class Chain:
    """Nodes that the runtime computes as one integer kernel, first to last."""

    nodes: tuple[ir.Node, ...]

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    def inputs(self) -> Iterable[tuple[ir.Node, ir.Value]]:
        """Activations that enter the chain from outside, with the node that reads them."""
        inner = {id(node.outputs[0]) for node in self.nodes[:-1]}
        for node in self.nodes:
            for index, value in enumerate(node.inputs):
                if value is None or id(value) in inner or is_constant(value):
                    continue
                if index == 0 or node.op_type not in ("Clip", "Pad", "Resize"):
                    yield node, value


@dataclass
class Placement:
    """``groups``: value name -> name of the group's first value. ``readers``: see TensorPlan. ``centred`` are
    the groups whose zero point has to be 0.

    ``weights`` maps constants to the (chain head, input index) pairs that read them as weights; ``biases``
    to (input value, weight value).
    """

    groups: dict[str, str] = field(default_factory=dict)
    readers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    centred: set[str] = field(default_factory=set)
    weights: dict[str, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    biases: dict[str, tuple[str, str]] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)

    def rules_of(self, group: str, rules: QuantRules) -> QuantRules:
        """The rules as they hold for a group: symmetric where its zero point has to be 0."""
        return rules.model_copy(update={"symmetric_activation": True}) if group in self.centred else rules


def outline(placement: Placement, rules: QuantRules) -> dict[str, TensorPlan]:
    """The values that a placement quantizes, with parameters that mean nothing yet."""
    unknown = QuantParams(type=rules.activation, scale=(1.0,), zero_point=(0,)).model_dump()
    weight = QuantParams(type="int8", scale=(1.0,), zero_point=(0,)).model_dump()
    bias = QuantParams(type="int32", scale=(1.0,), zero_point=(0,)).model_dump()
    return {
        **{
            name: TensorPlan(**unknown, origin="calibration", readers=placement.readers.get(name, ()))
            for name in placement.groups
        },
        **{name: TensorPlan(**weight, origin="weight") for name in placement.weights},
        **{name: TensorPlan(**bias, origin="bias") for name in placement.biases},
    }


def eligible(node: ir.Node, runtime: Runtime) -> bool:
    """Whether the runtime has an integer kernel for this node as it stands."""
    rules = runtime.quant
    if rules is None or node.op_type not in rules.compute or node.domain not in ("", "ai.onnx"):
        return False
    if not node.outputs or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    if node.op_type == "Gemm" and not (
        node.attributes.get_float("alpha", 1.0) == 1.0 and node.attributes.get_float("beta", 1.0) == 1.0
    ):
        return False
    constant = [v is not None and is_constant(v) for v in node.inputs]
    if node.op_type in ("Conv", "ConvTranspose", "Gemm", *rules.weighted):
        return not constant[0] and constant[1]
    if any(_off_centre(node.inputs[index], rules) for index in rules.centred.get(node.op_type, ())):
        return False
    if node.op_type in _ELEMENTWISE:
        return not any(constant)  # an operand that is constant costs less in float than a requantization
    return not constant[0]


def _off_centre(value: ir.Value | None, rules: QuantRules) -> bool:
    """Whether a value's zero point is prescribed, and not 0, where it is made or where it is moved from."""
    node = None if value is None else value.producer()
    while node is not None and node.op_type in rules.forward and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    fixed = None if node is None else rules.fixed_output.get(node.op_type)
    return fixed is not None and fixed.zero_point != 0


def find_chains(model: ir.Model, blocks: Iterable[Block], runtime: Runtime) -> list[Chain]:
    """All integer kernels that the graph could become if every block were INT8."""
    block_of: dict[str | None, str] = {name: block.id for block in blocks for name in block.nodes}
    patterns = {tuple(p.split("+")) for p in runtime.fuses}
    taken: set[int] = set()
    chains = []
    for node in model.graph:
        if id(node) in taken or not eligible(node, runtime):
            continue
        nodes = _longest(node, patterns, block_of)
        taken.update(id(n) for n in nodes)
        chains.append(Chain(tuple(nodes)))
    return chains


def _longest(
    head: ir.Node, patterns: Collection[tuple[str, ...]], block_of: Mapping[str | None, str]
) -> list[ir.Node]:
    nodes, best = [head], 1
    while True:
        kinds = tuple(chain_word(n) for n in nodes)
        if kinds in patterns:
            best = len(nodes)
        if not any(p[: len(kinds)] == kinds and len(p) > len(kinds) for p in patterns):
            return nodes[:best]
        following = sole_consumer(nodes[-1].outputs[0])
        if following is None or block_of.get(following.name) != block_of.get(head.name):
            return nodes[:best]
        nodes.append(following)


def observed_values(model: ir.Model, chains: Iterable[Chain], runtime: Runtime) -> list[str]:
    """Every activation whose range may be needed for any choice of precisions, in graph order."""
    wanted: set[str | None] = set()
    for chain in chains:
        wanted.update(value.name for _, value in chain.inputs())
        wanted.add(chain.output.name)
    rules = runtime.quant
    movers = () if rules is None else (*rules.forward, *rules.unify)
    for node in reversed(list(model.graph)):
        if node.op_type in movers and any(o.name in wanted for o in node.outputs):
            wanted.update(v.name for v in _moved(node, runtime) if not is_constant(v))
    order = list(model.graph.inputs) + [o for n in model.graph for o in n.outputs]
    return [v.name for v in order if v.name in wanted and v.name and v.dtype == ir.DataType.FLOAT]


def place(
    model: ir.Model,
    blocks: Iterable[Block],
    precision: Mapping[str, Precision],
    chains: Iterable[Chain],
    runtime: Runtime,
    excluded: Collection[str] = (),
) -> Placement:
    """The placement when each block has its ``precision``.

    ``excluded`` nodes stay float in any case, and with them the whole chain that they would be fused into.
    """
    rules = runtime.quant
    placement = Placement()
    if rules is None:
        return placement
    int8 = {name for b in blocks if precision.get(b.id) in INTEGER for name in b.nodes} - set(excluded)
    placement.chains = [c for c in chains if all(node.name in int8 for node in c.nodes)]
    needed = _needed(placement.chains, rules)
    movers = _share(model, int8, needed, placement, runtime)
    integer = {n.name for c in placement.chains for n in c.nodes} | movers
    if not rules.pair_moved:
        moved = {o.name for node in model.graph if node.name in movers for o in node.outputs}
        placement.groups = {name: group for name, group in placement.groups.items() if name not in moved}
    placement.centred = _centred(placement, rules)
    for name, value in needed.items():
        producer = value.producer()
        if producer is None or producer.name not in integer:
            users = {u.name or "" for u, _ in value.uses() if u.op_type not in _SIZES}
            quantized = users & integer
            if quantized < users or value.is_graph_output():
                placement.readers[name] = tuple(sorted(quantized))
    for chain in placement.chains:
        _place_constants(chain, placement, rules.bias == "int32")
    return placement


def _centred(placement: Placement, rules: QuantRules) -> set[str]:
    """The groups of what is read where a zero point has to be 0."""
    heads = [chain.nodes[0] for chain in placement.chains]
    read = [node.inputs[index] for node in heads for index in rules.centred.get(node.op_type, ())]
    names = {value.name or "" for value in read if value is not None}
    return {placement.groups[name] for name in names if name in placement.groups}


def _needed(chains: Iterable[Chain], rules: QuantRules) -> dict[str, ir.Value]:
    """What enters a chain and what leaves it; a chain with float output leaves that for who needs it."""
    needed = {value.name or "": value for chain in chains for _, value in chain.inputs()}
    for chain in chains:
        free = "+".join(node.op_type for node in chain.nodes) in rules.float_output
        if not free or chain.output.name in needed:
            needed[chain.output.name or ""] = chain.output
    return needed


def _share(
    model: ir.Model,
    int8: Collection[str],
    needed: dict[str, ir.Value],
    placement: Placement,
    runtime: Runtime,
) -> set[str]:
    """Let what data movers read and write share one set of parameters; returns the movers' names.

    Backwards through the graph: where the result of a mover is needed, so is what it moves, which joins
    ``needed``. Groups are found by union-find.
    """
    rules = runtime.quant
    assert rules is not None
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.get(name, name) != name:
            name = leader[name]
        return name

    movers: set[str] = set()
    prescribed = _prescribed(model, placement.chains, rules)
    for node in reversed(list(model.graph)):
        if node.op_type not in (*rules.forward, *rules.unify) or node.name not in int8:
            continue
        results = [o for o in node.outputs if o.name in needed]
        sources = _moved(node, runtime)
        if not results or len(results) < len(node.outputs) or any(is_constant(v) for v in sources):
            continue
        if len(sources) > 1 and any(v.name in prescribed for v in sources):
            continue  # what the runtime prescribes for one operand need not cover the others
        movers.add(node.name or "")
        needed.update((value.name or "", value) for value in sources)
        first = find(sources[0].name or "")
        for other in [*sources[1:], *results]:
            leader[find(other.name or "")] = first
    placement.groups = {name: find(name) for name in needed}
    return movers


def _moved(node: ir.Node, runtime: Runtime) -> list[ir.Value]:
    """The inputs whose data a mover passes on: all where it unifies them, the first of everything else."""
    values = [v for v in node.inputs if v is not None]
    return values if runtime.quant is not None and node.op_type in runtime.quant.unify else values[:1]


def _prescribed(model: ir.Model, chains: Iterable[Chain], rules: QuantRules) -> set[str | None]:
    """Values whose parameters the runtime prescribes, and what is only moved from them."""
    found = {c.output.name for c in chains if c.nodes[-1].op_type in rules.fixed_output}
    for node in model.graph:
        if node.op_type in rules.forward and node.inputs[0] is not None and node.inputs[0].name in found:
            found.update(o.name for o in node.outputs)
    return found


def _place_constants(chain: Chain, placement: Placement, integer_bias: bool) -> None:
    head = chain.nodes[0]
    slot = _WEIGHT_SLOT.get(head.op_type)
    weight = head.inputs[slot] if slot is not None and slot < len(head.inputs) else None
    if weight is None or not is_constant(weight):
        return
    assert slot is not None and weight.name is not None
    placement.weights.setdefault(weight.name, []).append((head, slot))
    bias_slot = _BIAS_SLOT.get(head.op_type)
    bias = head.inputs[bias_slot] if bias_slot is not None and bias_slot < len(head.inputs) else None
    if len(chain.nodes) > 1 and bias is None:
        bias = bias_behind(chain.nodes[1])
    source = head.inputs[0]
    if integer_bias and bias is not None and source is not None and one_per_channel(head, weight, bias):
        assert bias.name is not None and source.name is not None
        if source.name in placement.groups:
            placement.biases[bias.name] = (source.name, weight.name)

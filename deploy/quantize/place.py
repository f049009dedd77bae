"""Decides which values are quantized: the placement, before any number is known.

A runtime computes some operations in integers (``compute``), moves data in whatever type it gets
(``forward``), wants all operands of some alike (``unify``), and computes some chains as one kernel
(``fuses``), inside which nothing may be quantized. From these rules and the precision of each block follow
the values that carry parameters, the groups that share one set, and who reads them quantized.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from deploy.graph.blocks import Block
from deploy.graph.edit import is_constant, sole_consumer
from deploy.graph.row_bias import bias_behind, chain_word, one_per_channel
from deploy.quantize.eligible import eligible, mixes, widens
from deploy.quantize.share import moved, moves_of, share
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.profile import QuantRules, Runtime
from deploy.spec.tensors import INTEGER, Precision

_WEIGHT_SLOT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
_BIAS_SLOT = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2}
_SIZES = ("Shape", "Size")
"""They read how large a value is, and not the value."""


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

    Where blocks of 8 and of 16 bits stand side by side, a value is stored as its maker computes, and as the
    widest of its readers where that makes floats. ``turned`` are the groups of the other width in which some
    read it, ``turned_readers`` who; ``wide`` the groups of 16 bits, by ``wide_rules``. A group that begins
    with such a turned value bears its name and `share.TURNED`.

    ``weights`` maps constants to the (chain head, input index) pairs that read them as weights; ``biases``
    to (input value, weight value).
    """

    groups: dict[str, str] = field(default_factory=dict)
    readers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    centred: set[str] = field(default_factory=set)
    turned: dict[str, str] = field(default_factory=dict)
    turned_readers: dict[str, tuple[str, ...]] = field(default_factory=dict)
    wide: set[str] = field(default_factory=set)
    wide_rules: QuantRules | None = None
    weights: dict[str, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    biases: dict[str, tuple[str, str]] = field(default_factory=dict)
    chains: list[Chain] = field(default_factory=list)

    def rules_of(self, group: str, rules: QuantRules) -> QuantRules:
        """The rules as they hold for a group: those of its width, symmetric where its zero point has to be
        0."""
        if group in self.wide and self.wide_rules is not None:
            return self.wide_rules
        return rules.model_copy(update={"symmetric_activation": True}) if group in self.centred else rules

    def read_as(self, name: str, reader: str) -> str:
        """The group by whose parameters ``reader`` has a value."""
        return self.turned[name] if reader in self.turned_readers.get(name, ()) else self.groups[name]

    def uses(self, name: str, params: Mapping[str, QuantParams]) -> dict[str, QuantParams]:
        """The readers of a value that take the other width, with what their group has of ``params``."""
        readers = self.turned_readers.get(name, ())
        return dict.fromkeys(readers, params[self.turned[name]]) if readers else {}


def outline(placement: Placement, rules: QuantRules) -> dict[str, TensorPlan]:
    """The values that a placement quantizes, with parameters that mean nothing yet."""
    weight = QuantParams(type="int8", scale=(1.0,), zero_point=(0,)).model_dump()
    bias = QuantParams(type="int32", scale=(1.0,), zero_point=(0,)).model_dump()
    groups = (*placement.groups.values(), *placement.turned.values())
    unknown = {
        group: QuantParams(type=placement.rules_of(group, rules).activation, scale=(1.0,), zero_point=(0,))
        for group in groups
    }
    return {
        **{
            name: TensorPlan(
                **unknown[group].model_dump(),
                origin="calibration",
                readers=placement.readers.get(name, ()),
                uses=placement.uses(name, unknown),
            )
            for name, group in placement.groups.items()
        },
        **{name: TensorPlan(**weight, origin="weight") for name in placement.weights},
        **{name: TensorPlan(**bias, origin="bias") for name in placement.biases},
    }


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
    rules = runtime.quant
    for chain in chains:
        wanted.update(value.name for value in _read_as_integers(chain, rules))
        wanted.add(chain.output.name)
    movers = () if rules is None else (*rules.forward, *rules.unify)
    for node in reversed(list(model.graph)):
        if node.op_type in movers and any(o.name in wanted for o in node.outputs):
            wanted.update(v.name for v in moved(node, runtime) if not is_constant(v))
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
    rules, blocks = runtime.quant, list(blocks)
    placement = Placement()
    if rules is None:
        return placement
    int8 = {name for b in blocks if precision.get(b.id) in INTEGER for name in b.nodes} - set(excluded)
    wide = {name for b in blocks if mixes(runtime) and precision.get(b.id) == "w8a16" for name in b.nodes}
    if wide:  # what has no kernel of 16 bits there is float
        lacking = {node.name or "" for node in model.graph if node.name in wide and not widens(node, runtime)}
        int8, wide = int8 - lacking, wide - lacking
    placement.chains = [c for c in chains if all(node.name in int8 for node in c.nodes)]
    needed = _needed(placement.chains, rules)
    prescribed = _prescribed(model, placement.chains, rules)
    moves = moves_of(model, int8, needed, prescribed, runtime, wide)
    movers = {move.node.name or "" for move in moves}
    integer = {n.name for c in placement.chains for n in c.nodes} | movers
    shared = share(moves, needed, integer, wide)
    placement.groups, placement.turned = shared.groups, shared.turned
    placement.turned_readers, placement.wide = shared.turned_readers, shared.wide
    placement.wide_rules = runtime.quant16 if wide else None
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
        own = placement.wide_rules if chain.nodes[0].name in wide else rules
        _place_constants(chain, placement, own is not None and own.bias == "int32")
    if wide:  # biases that a kernel of 16 bits reads, too, would have two scales
        nodes = [node for node in model.graph if node.name in wide]
        read = {value.name for node in nodes for value in node.inputs if value is not None}
        placement.biases = {name: of for name, of in placement.biases.items() if name not in read}
    return placement


def _centred(placement: Placement, rules: QuantRules) -> set[str]:
    """The groups of what is read where a zero point has to be 0."""
    heads = [chain.nodes[0] for chain in placement.chains]
    read = [(node, node.inputs[index]) for node in heads for index in rules.centred.get(node.op_type, ())]
    named = [(node.name or "", value.name or "") for node, value in read if value is not None]
    return {placement.read_as(name, node) for node, name in named if name in placement.groups}


def _needed(chains: Iterable[Chain], rules: QuantRules) -> dict[str, ir.Value]:
    """What enters a chain and what leaves it; a chain with float output leaves that for who needs it."""
    needed = {value.name or "": value for chain in chains for value in _read_as_integers(chain, rules)}
    for chain in chains:
        free = "+".join(node.op_type for node in chain.nodes) in rules.float_output
        if not free or chain.output.name in needed:
            needed[chain.output.name or ""] = chain.output
    return needed


def _read_as_integers(chain: Chain, rules: QuantRules | None) -> Iterator[ir.Value]:
    """What enters a chain, without what it would take as floats just as well."""
    head = chain.nodes[0]
    loose = () if rules is None else rules.float_input
    return (value for node, value in chain.inputs() if node is head or node.op_type not in loose)


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

"""Pieces of a graph that are run on their own, by float values or as a quantization plan has them computed.

One program serves both. Where the plan quantizes a value, its readers get ``(codes - zero point) * scale`` in
its place, and constants are what their codes stand for; that is what `graph/qdq.py` writes into a graph.

    value v  ->  readers get  v                          float
             ->  readers get  dequantize(quantize(v))    by the plan, where it says so
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from deploy.adapter.batching import fixed_batch
from deploy.data.dataset import Dataset
from deploy.errors import BackendError, DeployError
from deploy.execute.module import GraphModule
from deploy.execute.ops.quant import along, quantized
from deploy.execute.program import Program, Step
from deploy.graph.blocks import Block
from deploy.graph.qdq import dequantize_array
from deploy.graph.summary import tensor_specs
from deploy.spec.plan import QuantParams, TensorPlan
from deploy.spec.tensors import RANGES
from deploy.train.score import tensors as in_torch

MOST_WEIGHTS = 8
"""Weights in a unit, at most: where a graph does not narrow for long it is cut all the same."""

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Unit:
    """Blocks that follow each other. ``weights`` are the quantized weights that they read."""

    blocks: tuple[Block, ...]
    weights: tuple[str, ...]

    @property
    def id(self) -> str:
        """The first block's."""
        return self.blocks[0].id

    @property
    def nodes(self) -> set[str]:
        return {name for block in self.blocks for name in block.nodes}


def single_units(model: ir.Model, blocks: Sequence[Block], weights: Collection[str]) -> list[Unit]:
    """Every block by itself."""
    read = _constants_read(model)
    return [Unit((block,), _weights(block, read, weights)) for block in blocks]


def narrow_units(model: ir.Model, blocks: Sequence[Block], weights: Collection[str]) -> list[Unit]:
    """The blocks between two points at which one value alone leads on: residual units, attention, layers.

    What holds no weights belongs to the unit behind it.
    """
    read = _constants_read(model)
    last_reader: dict[str, int] = {}
    made: dict[str, int] = {value.name or "": -1 for value in model.graph.inputs}
    nodes = {node.name: node for node in model.graph}
    for position, block in enumerate(blocks):
        for name in block.nodes:
            for value in nodes[name].inputs:
                if value is not None and value.name:
                    last_reader[value.name] = position
            made.update((value.name or "", position) for value in nodes[name].outputs)
    units: list[Unit] = []
    waiting: list[Block] = []
    for position, block in enumerate(blocks):
        waiting.append(block)
        found = tuple(dict.fromkeys(w for b in waiting for w in _weights(b, read, weights)))
        crossing = sum(1 for name, at in made.items() if at <= position < last_reader.get(name, -1))
        if found and (crossing <= 1 or len(found) >= MOST_WEIGHTS):
            units.append(Unit(tuple(waiting), found))
            waiting = []
    if waiting:
        units.append(Unit(tuple(waiting), tuple(w for b in waiting for w in _weights(b, read, weights))))
    return units


def _constants_read(model: ir.Model) -> dict[str, list[str]]:
    constants = model.graph.initializers
    return {
        node.name or "": [v.name for v in node.inputs if v is not None and v.name in constants and v.name]
        for node in model.graph
    }


def _weights(block: Block, read: Mapping[str, list[str]], weights: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c for name in block.nodes for c in read[name] if c in weights))


@dataclass
class Quantized:
    """How a plan has a graph computed. ``constants`` stand in for those of the graph; ``scales`` for those of
    the plan, by the name of the first value of the group that shares one."""

    tensors: Mapping[str, TensorPlan]
    constants: dict[str, Tensor]
    scales: dict[str, Tensor] = field(default_factory=dict)

    def read(self, name: str, node: str, value: Tensor) -> Tensor:
        """What ``node`` gets of the value ``name``."""
        plan = self.tensors.get(name)
        if plan is None or (plan.readers and node not in plan.readers):
            return value
        params: QuantParams = plan.uses.get(node, plan)
        scale = self.scales.get(plan.shared_with or name) if params is plan else None
        if scale is None:
            scale = torch.tensor(params.scale, dtype=torch.float32)
        axis = params.axis or 0
        scale = along(scale, value, axis, 0)
        zero = along(torch.tensor(params.zero_point, dtype=torch.float32), value, axis, 0)
        low, high = RANGES[params.type]
        codes = quantized(value / scale, zero, torch.int32, low=low, high=high, learn=True)
        return (codes - zero) * scale


def stored_constants(tensors: Mapping[str, TensorPlan], codes: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """What the codes of all constants stand for."""
    return {name: torch.from_numpy(dequantize_array(array, tensors[name])) for name, array in codes.items()}


class Pieces:
    """A graph whose nodes can be run some at a time."""

    def __init__(self, model: ir.Model) -> None:
        self.module = GraphModule(model, trainable=lambda _: False)
        self.program: Program = self.module.program
        self._named = {slot: name for name, slot in self.program.slots.items()}
        self._constant = {self.program.slots[name] for name in self.program.constants}

    def steps(self, nodes: Collection[str]) -> list[Step]:
        """Those of these nodes, in order."""
        return [step for step in self.program.steps if step.name in nodes]

    def reads(self, steps: Sequence[Step]) -> list[str]:
        """What ``steps`` take from others, constants aside."""
        made = {slot for step in steps for slot in step.writes}
        slots = dict.fromkeys(
            slot for step in steps for slot in step.reads if slot >= 0 and slot not in made | self._constant
        )
        return [self._named[slot] for slot in slots]

    def makes(self, steps: Sequence[Step]) -> list[str]:
        """What ``steps`` compute."""
        return [self._named[slot] for step in steps for slot in step.writes if slot >= 0]

    def run(
        self, steps: Sequence[Step], given: Values, want: Sequence[str], plan: Quantized | None = None
    ) -> dict[str, Tensor]:
        """The values named in ``want``, float or by ``plan``. Raises BackendError naming the node that
        failed."""
        slots: dict[int, object] = {self.program.slots[name]: value for name, value in given.items()}
        kept: dict[tuple[int, bool], object] = {}

        def operand(slot: int, node: str) -> object:
            if slot < 0:
                return None
            name = self._named[slot]
            if slot in self._constant:
                stored = self.program.template[slot]
                return stored if plan is None else plan.constants.get(name, stored)
            value = slots[slot]
            if plan is None or not isinstance(value, Tensor) or name not in plan.tensors:
                return value
            own = bool(plan.tensors[name].readers or plan.tensors[name].uses)
            if own:
                return plan.read(name, node, value)
            if (slot, True) not in kept:
                kept[slot, True] = plan.read(name, node, value)
            return kept[slot, True]

        for step in steps:
            try:
                result = step.kernel(*[operand(slot, step.name) for slot in step.reads])
            except DeployError:
                raise
            except Exception as e:
                raise BackendError(
                    f"{step.op} '{step.name}' failed in torch: {e}", hint="check the shapes and types fed"
                ) from e
            found = result if type(result) is tuple else (result,)
            slots.update((slot, one) for slot, one in zip(step.writes, found, strict=False) if slot >= 0)
        return {name: cast(Tensor, slots[self.program.slots[name]]) for name in want}


@dataclass
class Stop:
    """A unit with what surrounds it, for each batch of samples. ``exact`` is what the float graph has there;
    ``given`` what the plan makes of the graph up to there. ``targets`` are the float values that leave it."""

    unit: Unit
    steps: list[Step]
    exact: list[dict[str, Tensor]]
    given: list[dict[str, Tensor]]
    targets: list[dict[str, Tensor]]
    leaving: list[str]


def walk(pieces: Pieces, units: Sequence[Unit], plan: Quantized, feeds: Sequence[Values]) -> Iterator[Stop]:
    """The units one after the other. What is changed in ``plan`` at a stop holds from there on.

    ``feeds`` are batches, which are kept apart all the way, so that axes of samples may lie anywhere. Of
    inner values only those are held that a later unit reads.
    """
    steps = [pieces.steps(unit.nodes) for unit in units]
    outputs = set(pieces.program.outputs)
    later: list[set[str]] = [set() for _ in units]
    wanted: set[str] = set(outputs)
    for position in reversed(range(len(units))):
        later[position] = set(wanted)
        wanted |= set(pieces.reads(steps[position]))
    exact: list[dict[str, Tensor]] = [dict(batch) for batch in feeds]
    given: list[dict[str, Tensor]] = [dict(batch) for batch in feeds]
    for unit, own, needed in zip(units, steps, later, strict=True):
        leaving = [name for name in pieces.makes(own) if name in needed]
        reads = pieces.reads(own)
        with torch.no_grad():
            targets = [pieces.run(own, _some(batch, reads), leaving) for batch in exact]
        yield Stop(unit, own, exact, given, targets, leaving)
        with torch.no_grad():
            for batch, found in zip(exact, targets, strict=True):
                batch.update(found)
            for batch in given:
                batch.update(pieces.run(own, _some(batch, reads), leaving, plan))
        for batch in (*exact, *given):
            for name in [name for name in batch if name not in needed]:
                del batch[name]


def held_bytes(pieces: Pieces, units: Sequence[Unit], feeds: Values) -> int:
    """How many bytes `walk` holds at most for this batch, float values and others."""
    most = 0
    for stop in walk(pieces, units, Quantized({}, {}), [feeds]):
        values = [*stop.exact[0].values(), *stop.given[0].values(), *stop.targets[0].values()]
        most = max(most, sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor)))
    return most


def _some(values: Values, names: Sequence[str]) -> dict[str, Tensor]:
    return {name: values[name] for name in names}


def batches(model: ir.Model, dataset: Dataset, samples: int, size: int) -> list[dict[str, Tensor]]:
    """The first samples in batches of ``size``, or as large as the graph prescribes; whole ones only, and at
    least one."""
    step = fixed_batch(tensor_specs(model.graph.inputs)) or size
    found = [in_torch(b.feeds, torch.device("cpu")) for b in dataset.batches(step, limit=samples)]
    whole = [feeds for feeds in found if all(not v.ndim or len(v) == step for v in feeds.values())]
    return whole or found[:1]


def error(found: Values, wanted: Values) -> Tensor:
    """The sum over values of the mean squared difference, each in units of the wanted one's mean square."""
    parts = [
        (found[name] - value).square().mean() / value.square().mean().clamp_min(1e-12)
        for name, value in wanted.items()
        if value.is_floating_point() and value.numel()
    ]
    return torch.stack(parts).sum() if parts else torch.zeros(())

"""What the network loses when one block alone is treated: measured, with everything before it computed once.

Every block becomes a graph of its own. The float network runs through them block by block, and all that
passes between blocks is kept, for as many samples at a time as fit a fixed number of bytes. For a treated
block its own graph runs changed, then those blocks alone that what it makes reaches; what they read besides
is what was kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.data.dataset import Dataset
from deploy.errors import DataError
from deploy.execute.reference import Session, exposed, open_graph
from deploy.graph.blocks import Block
from deploy.graph.edit import add_initializer, fresh_name, names
from deploy.graph.subgraph import cut
from deploy.graph.summary import tensor_specs
from deploy.progress import SILENT, Progress
from deploy.quantize.divergence import Moved, heads
from deploy.quantize.perturb import Rounding, Setting, changed_weights, roundings, treatable, weight_changes
from deploy.spec.sensitivity import Effect, Treatment

_KEPT_BYTES = 128 * 2**20
_MOST_SAMPLES = 64

Values = dict[str, np.ndarray]


class Blockwise:
    """A graph as one session for each block, in an order in which they can run.

    ``wanted`` are inner values that are results too. Not only arrays pass between blocks: sequences are lists
    of them.
    """

    def __init__(
        self, model: ir.Model, blocks: Sequence[Block], wanted: Sequence[str] = (), *, threads: int = 1
    ) -> None:
        shown = exposed(model, wanted)
        self.wanted, self._threads = tuple(wanted), threads
        self.size = fixed_batch(tensor_specs(model.graph.inputs))
        self.parts = {block.id: cut(shown, block.nodes) for block in blocks}
        self._sessions = {id_: _open(part, threads) for id_, part in self.parts.items()}

    def run(self, values: Values) -> Values:
        """All that blocks pass on, the inputs given among it."""
        for id_, session in self._sessions.items():
            values |= self._step(id_, session, values)
        return values

    def run_from(self, block: str, treated: Session, kept: Mapping[str, np.ndarray]) -> Values:
        """The wanted values when ``treated`` runs in the place of ``block``; ``kept`` is what `run` gave."""
        changed: Values = {}
        reached = False
        for id_, session in self._sessions.items():
            if id_ == block:
                changed |= self._step(id_, treated, kept)
                reached = True
            elif reached and any(v.name in changed for v in self.parts[id_].graph.inputs):
                changed |= self._step(id_, session, {**kept, **changed})
        return {name: changed.get(name, kept[name]) for name in self.wanted}

    def _step(self, id_: str, session: Session, values: Mapping[str, np.ndarray]) -> Values:
        read = (value.name or "" for value in self.parts[id_].graph.inputs)
        return session.run({name: values[name] for name in read})

    def treated(
        self, block: str, weights: Mapping[str, np.ndarray], rounded: Mapping[str, Rounding]
    ) -> Session:
        """A session over that block with other weights, and values rounded."""
        return _open(treated_graph(self.parts[block], weights, rounded), self._threads)


def _open(part: ir.Model, threads: int) -> Session:
    return open_graph(part, threads=threads)


def treated_graph(
    part: ir.Model, weights: Mapping[str, np.ndarray], rounded: Mapping[str, Rounding]
) -> ir.Model:
    """A copy with these constants in the place of its own, and nodes that round those values."""
    copy = part.clone()
    taken = names(copy)
    for name, array in weights.items():
        if name in copy.graph.initializers:
            copy.graph.initializers[name].const_value = ir.tensor(array, name=name)
    values = {v.name or "": v for v in copy.graph.inputs}
    values |= {v.name or "": v for node in copy.graph for v in node.outputs}
    for name, rounding in rounded.items():
        if name in values:
            _round(copy, values[name], rounding, taken)
    copy.graph.sort()
    return copy


def _round(model: ir.Model, value: ir.Value, rounding: Rounding, taken: set[str]) -> None:
    readers = [use for use in value.uses() if not rounding.readers or use[0].name in rounding.readers]
    scale = add_initializer(model, f"{value.name}~scale", np.asarray(rounding.scale, np.float32), taken)
    low, high = (
        add_initializer(model, f"{value.name}~{end}", np.asarray(bound, np.float32), taken)
        for end, bound in zip(("low", "high"), rounding.bounds, strict=True)
    )
    last = value
    steps: tuple[tuple[str, tuple[ir.Value, ...]], ...] = (
        ("Div", (scale,)), ("Round", ()), ("Clip", (low, high)), ("Mul", (scale,)),
    )  # fmt: skip
    for op, operands in steps:
        node = ir.node(op, [last, *operands], name=fresh_name(model, f"{value.name}~{op}", taken))
        node.outputs[0].name, node.outputs[0].type = node.name, value.type
        node.outputs[0].shape = value.shape
        model.graph.append(node)
        last = node.outputs[0]
    for node, slot in readers:
        node.replace_input_with(slot, last)
    if value.is_graph_output() and not rounding.readers:
        model.graph.outputs[[v is value for v in model.graph.outputs].index(True)] = last
        value.name, last.name = fresh_name(model, f"{value.name}~raw", taken), value.name


def measure(
    setting: Setting,
    dataset: Dataset,
    treatments: tuple[Treatment, ...],
    *,
    samples: int,
    threads: int = 1,
    progress: Progress = SILENT,
) -> dict[tuple[str, Treatment], Effect]:
    """The effect of each treatment of each block that it changes, over the first ``samples`` samples.

    Peak memory does not depend on how many there are. Raises DataError where the float network's own outputs
    are not finite.
    """
    compared = heads(setting.graph)
    todo = list(treatable(setting, treatments))
    found = {(block.id, treatment): Moved(compared) for block, treatment in todo}
    changes = {(block.id, treatment): weight_changes(setting, block, treatment) for block, treatment in todo}
    if not todo:
        return {}
    network = Blockwise(setting.graph, setting.blocks, [head.read for head in compared], threads=threads)
    total = min(samples, len(dataset))
    size = network.size or _batch_size(network, dataset)
    done = 0
    for batch in dataset.batches(size, limit=total):
        count = len(batch.ids)
        kept = network.run(_filled(batch.feeds, network.size))
        wanted = {name: _cut(kept[name], count, network.size) for name in network.wanted}
        _require_finite(wanted, dataset, batch.ids)
        for number, (block, treatment) in enumerate(todo, 1):
            weights = changed_weights(setting, changes[block.id, treatment])
            with network.treated(block.id, weights, roundings(setting, block, treatment)) as treated:
                got = network.run_from(block.id, treated, kept)
            moved = {name: _cut(array, count, network.size) for name, array in got.items()}
            found[block.id, treatment].add(wanted, moved)
            progress.advance(done * len(todo) + number * count, total * len(todo))
        done += count
    return {key: moved.effect() for key, moved in found.items()}


def _batch_size(network: Blockwise, dataset: Dataset) -> int:
    """As many samples as keep what passes between blocks under a fixed size."""
    kept = network.run(dict(next(dataset.batches(1)).feeds))
    each = sum(_bytes(value) for value in kept.values())
    return max(1, min(_MOST_SAMPLES, _KEPT_BYTES // max(each, 1)))


def _bytes(value: np.ndarray | Iterable[np.ndarray]) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else sum(part.nbytes for part in value)


def _filled(feeds: Mapping[str, np.ndarray], fixed: int | None) -> Values:
    """A last batch that is too small for the graph repeats its last sample."""
    missing = 0 if fixed is None else fixed - len(next(iter(feeds.values())))
    if missing <= 0:
        return dict(feeds)
    return {n: np.concatenate([a, np.repeat(a[-1:], missing, axis=0)]) for n, a in feeds.items()}


def _cut(array: np.ndarray, count: int, fixed: int | None) -> np.ndarray:
    return array[:count] if fixed is not None and array.ndim and len(array) == fixed else array


def _require_finite(values: Mapping[str, np.ndarray], dataset: Dataset, ids: np.ndarray) -> None:
    for name, array in values.items():
        if not np.isfinite(array).all():
            raise DataError(
                f"{dataset.origin}: output value '{name}' is not finite on samples {ids[0]} to {ids[-1]}, "
                "before anything was changed",
                hint="check the normalisation of the data and the model",
            )

"""What each block costs as float and in integers, and what stands between: the knapsack of one graph.

What a choice costs here is what `predict` says of it, but for five things. A kernel's bytes count as if its
neighbours were of its own form; a float kernel that takes in what follows it is not cut where that is another
block in integers; a Split counts as moving integers if one of its parts is read so; where a runtime needs no
pairs behind what it moves, a Concat counts as moving floats if its reader wants these; and weights count as
kept in the cache, or not, as they are where every block is of that form.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from weakref import WeakKeyDictionary

import onnx_ir as ir

from deploy.graph.pattern import fits, product_zeros, products
from deploy.graph.shapes import static_shape
from deploy.predict.kernels import Flow, change_of_form, flows
from deploy.predict.latency import CostSource, Prediction, predict
from deploy.quantize.candidate import Subject
from deploy.quantize.knapsack import Border, Option, Problem
from deploy.spec.tensors import INTEGER

_FLOATS = ""
"""Stands for what reads or makes floats whatever is chosen: no block is called so."""
_NONE: Mapping[str, float] = {}
_KEPT: WeakKeyDictionary[Subject, tuple[CostSource, int, Problem]] = WeakKeyDictionary()
_FORECASTS: WeakKeyDictionary[Subject, dict[object, tuple[CostSource, Prediction]]] = WeakKeyDictionary()


def forecast(
    subject: Subject, costs: CostSource, float_blocks: frozenset[str] | None = None, batch: int = 1
) -> Prediction:
    """What the graph takes with these blocks float and all others in integers; with ``None`` all are float.

    What was found is kept with the subject: to bound a runtime, to choose its blocks and to explain them asks
    the same again. Raises what `predict` raises.
    """
    tensors = {} if float_blocks is None else subject.quantized(float_blocks)
    known = _FORECASTS.setdefault(subject, {})
    key = id(costs), batch, float_blocks if tensors else None
    if key not in known:
        found = predict(subject.graph, tensors, subject.runtime, costs, batch)
        known[key] = costs, found  # the costs too, so that nothing else takes their place in memory
    return known[key][1]


def problem_of(
    subject: Subject,
    costs: CostSource,
    harm: Mapping[str, float],
    batch: int = 1,
    sparse: Mapping[str, float] = _NONE,
) -> Problem:
    """The choice between float and integers for every block that has it, ``harm`` by block id.

    Blocks that only move data harm nothing, and are in integers where a block is that they stand before.
    ``sparse`` is what 2:4 zeros in a block's weights harm besides, in the same unit (both may be columns of a
    sensitivity table): where the runtime gains by them, blocks that are named there and whose products have
    inputs in whole fours may have them or not, in either form. Raises what `predict` raises.
    """
    harmless = _harmless(subject, costs, batch)
    able = set(subject.int8_blocks())
    options: dict[str, tuple[Option, ...]] = {
        block: (as_float, replace(integers, harm=harm.get(block, 0.0) if block in able else 0.0))
        for block, (as_float, integers) in harmless.options.items()
    }
    for block, forms in _sparse_forms(subject, costs, batch, able & sparse.keys()).items():
        options[block] += tuple(
            Option(dense.precision, ms, dense.harm + sparse[block], "2:4")
            for dense, ms in zip(options[block], forms, strict=True)
        )
    return replace(harmless, options=options)


def _harmless(subject: Subject, costs: CostSource, batch: int) -> Problem:
    """The choice by time alone. The last one is kept: a build asks for it to compare runtimes, to choose, and
    to explain."""
    known = _KEPT.get(subject)
    if known is not None and known[0] is costs and known[1] == batch:
        return known[2]
    integers = subject.quantized(())
    as_float = forecast(subject, costs, batch=batch)
    as_integers = forecast(subject, costs, frozenset(), batch)
    floats, codes = (_without_changes(subject, prediction) for prediction in (as_float, as_integers))
    able = set(subject.int8_blocks())
    movers = _movers(subject, as_integers) - able
    options = {
        block.id: (
            Option(subject.float_precision, floats[block.id]),
            Option(subject.integers_of(block.id), codes[block.id]),
        )
        for block in subject.blocks
        if block.id in able | movers
    }
    between = flows(subject.graph, integers, subject.runtime)
    owner = {name: block.id for block in subject.blocks for name in block.nodes}
    borders = tuple(_borders(subject, between, owner, costs, batch))
    found = Problem(options, borders, _follows(subject, between, owner, movers))
    _KEPT[subject] = costs, batch, found
    return found


def _sparse_forms(
    subject: Subject,
    costs: CostSource,
    batch: int,
    wanted: Collection[str],
) -> dict[str, tuple[float, float]]:
    """Milliseconds as float and in integers of those blocks ``wanted`` that 2:4 zeros make faster, by block:
    whose products have inputs in whole fours, and not such zeros already."""
    if not wanted or subject.runtime.sparsity_gain <= 1:
        return {}
    came = {name for name, zeros in product_zeros(subject.graph).items() if zeros}
    fitting = {p.node.name or "" for p in products(subject.graph) if fits(p)} - came
    floats, codes = (
        _without_changes(
            subject, predict(subject.graph, tensors, subject.runtime, costs, batch, sparse=fitting)
        )
        for tensors in ({}, subject.quantized(()))
    )
    return {
        block.id: (floats[block.id], codes[block.id])
        for block in subject.blocks
        if block.id in wanted and not fitting.isdisjoint(block.nodes)
    }


def _without_changes(subject: Subject, prediction: Prediction) -> dict[str, float]:
    """Milliseconds by block without the changes of form: they are the borders'."""
    kept = tuple(part for part in prediction.parts if part.kernel.op != "convert")
    return Prediction(kept, 0.0).by_block(subject.blocks)


def _movers(subject: Subject, as_integers: Prediction) -> set[str]:
    """Blocks that carry codes as they carry floats."""
    rules = subject.runtime.quant
    if rules is None:
        return set()
    runs = [part.kernel for part in as_integers.parts if part.kernel.op != "convert"]
    in_floats = {name for kernel in runs if kernel.precision not in INTEGER for name in kernel.nodes}
    in_integers = {name for kernel in runs for name in kernel.nodes} - in_floats
    return {
        block.id
        for block in subject.blocks
        if in_floats.isdisjoint(block.nodes)
        and not in_integers.isdisjoint(block.nodes)
        and all(subject.node(name).op_type in (*rules.forward, *rules.unify) for name in block.nodes)
    }


def _borders(
    subject: Subject, between: Iterable[Flow], owner: Mapping[str, str], costs: CostSource, batch: int
) -> Iterable[Border]:
    """A value's maker and readers, as far as these are in integers where everything is that can be."""
    rules = subject.runtime.quant
    free = {
        chain.output
        for chain in subject.chains
        if rules is not None and "+".join(node.op_type for node in chain.nodes) in rules.float_output
    }
    for flow in between:
        maker = flow.shown.producer()
        made = owner[maker.name or ""] if flow.made and maker is not None else _FLOATS
        readers = {owner[node.name or ""] if codes else _FLOATS for node, codes in flow.readers.items()}
        shape = static_shape(flow.value, batch)
        if readers == {made} or shape is None:
            continue
        change = change_of_form(shape, subject.integer_precision, ())
        ms = costs.kernel(change).estimate.ms
        yield Border(made, tuple(sorted(readers)), ms, free=flow.shown in free)


def _follows(
    subject: Subject, between: Iterable[Flow], owner: Mapping[str, str], movers: set[str]
) -> dict[str, tuple[str, ...]]:
    """For each block that moves data the blocks that would read it in integers.

    Where the runtime needs no pair behind it, the block that makes its data, too: codes go through.
    """
    rules = subject.runtime.quant
    through = rules is not None and not rules.pair_moved
    found: dict[str, dict[str, None]] = {mover: {} for mover in movers}
    makers: dict[str, set[str]] = {mover: set() for mover in movers}
    for flow in between:
        maker: ir.Node | None = flow.shown.producer()
        block = "" if maker is None else owner[maker.name or ""]
        readers = {owner[node.name or ""]: None for node, codes in flow.readers.items() if codes}
        readers.pop(block, None)
        if block in found:
            found[block].update(readers)
        for reader in movers.intersection(readers):
            makers[reader].add(block if flow.made else _FLOATS)
    for mover, made_by in makers.items():
        if through and len(made_by) == 1:
            found[mover].update(dict.fromkeys(made_by - {_FLOATS}))
    return {mover: tuple(blocks) for mover, blocks in found.items() if blocks}

"""What can be pruned of which network, and whether the smaller graph computes what it should.

    python benchmarks/pruning_sweep.py [--ratio 0.5] [--seed 0] [--markdown FILE] [MODEL.onnx ...]

Without files: the small networks with random weights of tests/networks. That share of every family of
channels is removed at random; the smaller graph runs in ONNX Runtime against the original with the same
channels zeroed where they are read (statistics of normalisations taken over what is kept). The difference is
relative to the largest output. Files are cleaned first, as a build does; inputs are random.

    python benchmarks/pruning_sweep.py --ways [--ratio 0.4] [--markdown FILE] [MODEL.onnx ...]

Channels are chosen as the step ``prune`` does, by each criterion and scope, until that share of the MACs is
gone, in one round and with nothing made up for; the same comparison.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.compress.ground import Ground
from deploy.compress.prune.step import removal, setting
from deploy.data.dataset import open_dataset
from deploy.errors import DeployError
from deploy.execute.reference import open_graph
from deploy.frontend.onnx_file import read
from deploy.graph import cost
from deploy.graph.clean import clean
from deploy.graph.groups import Groups, find_groups
from deploy.graph.masked import masked
from deploy.graph.shapes import batch_axis, infer, name_dimensions, pin
from deploy.graph.shrink import shrink
from deploy.graph.summary import tensor_specs
from deploy.spec.compression import Criterion, Prune, Scope
from deploy.train.units import batches

WAYS: Sequence[tuple[Criterion, Scope, bool]] = (
    ("l1", "layer", False),
    ("l2", "global", True),
    ("l2", "measured", False),
    ("batch_norm", "global", False),
    ("taylor", "global", False),
    ("random", "layer", False),
    ("obs", "measured", False),
)
NETWORKS = Path(__file__).resolve().parent.parent / "tests" / "networks"


@dataclass(frozen=True)
class Row:
    """One network: sizes before and after, the largest difference, and how long labels and cutting took."""

    name: str
    families: int
    atoms: int
    restricted: int
    parameters: tuple[int, int]
    macs: tuple[int | None, int | None]
    difference: float
    changed: float
    left: int
    seconds: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", action="store_true")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.ways:
        in_all_ways(options)
        return
    rows, refused = [], []
    for name, make in networks(options.files):
        try:
            row = pruned(name, make(), options.ratio, options.seed)
        except DeployError as error:
            refused.append(f"{name}: {error}")
            continue
        print(line(row), flush=True)
        rows.append(row)
    text = "\n".join([HEAD, *map(line, rows)])
    if options.markdown:
        options.markdown.write_text(text + "\n")
    worst = max((row.difference for row in rows), default=0.0)
    print(f"{len(rows)} networks, largest difference {worst:.1e}")
    for reason in refused:
        print("refused:", reason)


def networks(files: list[Path]) -> Iterator[tuple[str, Callable[[], ir.Model]]]:
    """Names, and what makes or reads the graph."""
    for file in files:
        yield file.parent.name if file.stem == "model" else file.stem, partial(cleaned, file)
    if not files:
        sys.path.insert(0, str(NETWORKS))
        from convolutional import CONVOLUTIONAL
        from sequential import SEQUENTIAL

        yield from {**CONVOLUTIONAL, **SEQUENTIAL}.items()


def cleaned(file: Path) -> ir.Model:
    model = infer(name_dimensions(read(file).model.clone()))
    return clean(model, lambda _before, _after: None).model


def share(groups: Groups, ratio: float, seed: int) -> list[int]:
    """That share of every family, at random, never all of it."""
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for family in groups.families:
        count = min(round(len(family.atoms) * ratio), len(family.atoms) - 1)
        chosen += [family.atoms[i].label for i in rng.permutation(len(family.atoms))[:count]]
    return chosen


def pruned(name: str, model: ir.Model, ratio: float, seed: int) -> Row:
    begin = time.perf_counter()
    groups = find_groups(model)
    found = time.perf_counter()
    removed = share(groups, ratio, seed)
    smaller = shrink(model, groups, removed)
    done = time.perf_counter()
    feeds = random_inputs(model, groups, seed)
    results = []
    for graph in (model, masked(model, groups, removed), smaller):
        with open_graph(graph, optimised=False) as session:
            results.append(list(session.run(feeds).values()))
    return Row(
        name=name,
        families=len(groups.families),
        atoms=len(groups.atoms),
        restricted=sum(family.restricted for family in groups.families),
        parameters=(cost.parameters(model), cost.parameters(smaller)),
        macs=(macs(model, groups), macs(smaller, groups)),
        difference=largest(results[1], results[2]),
        changed=largest(results[0], results[2]),
        left=len(groups.left),
        seconds=(found - begin, done - found),
    )


def in_all_ways(options: argparse.Namespace) -> None:
    """The table of criteria and scopes."""
    lines = []
    for name, make in networks(options.files):
        model = make()
        groups = find_groups(model)
        cells = []
        for criterion, scope, isomorphic in WAYS:
            step = Prune(
                macs=options.ratio, criterion=criterion, scope=scope, isomorphic=isomorphic, compensate=False
            )
            try:
                left, difference = chosen(model, groups, step, options.seed)
            except DeployError as error:
                print(name, criterion, scope, error, flush=True)
                cells.append("-")
                continue
            cells.append(f"{1 - left:.0%}, {difference:.0e}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    if options.markdown:
        head = f"| network | {' | '.join(name_of(*way) for way in WAYS)} |"
        table = [head, "|---" * (1 + len(WAYS)) + "|", *lines]
        options.markdown.write_text("\n".join([WAYS_HEAD, *table]) + "\n")


def name_of(criterion: Criterion, scope: Scope, isomorphic: bool) -> str:
    return f"{criterion}, {'isomorphic' if isomorphic else scope}"


def chosen(model: ir.Model, groups: Groups, step: Prune, seed: int) -> tuple[float, float]:
    """What is left of the MACs, and how far the smaller graph is from the masked one."""
    single = [random_inputs(model, groups, seed + i) for i in range(16)]
    together = {name: np.concatenate([one[name] for one in single]) for name in single[0]}
    samples = open_dataset(together, tensor_specs(model.graph.inputs))
    ground = Ground(samples=samples, given=model, workdir=Path(), seed=seed)
    here = setting(step, model, groups, {}, ground)
    sizes = np.array([[len(family.atoms) for family in groups.families]], float)
    whole = float(here.amount(sizes)[0])
    feeds = batches(model, samples, 32, 16)
    removed = removal(step, here, whole * (1 - step.macs), model, feeds, ground, {})
    gone = set(removed)
    kept = [[sum(a.label not in gone for a in family.atoms) for family in groups.families]]
    results = []
    for graph in (masked(model, groups, removed), shrink(model, groups, removed)):
        with open_graph(graph, optimised=False) as session:
            results.append(list(session.run(single[0]).values()))
    return float(here.amount(np.array(kept, float))[0]) / whole, largest(*results)


def macs(model: ir.Model, groups: Groups) -> int | None:
    """Of one sample; where sizes are free, at those that were walked with."""
    known, batch = cost.macs(model), batch_axis(model)
    if known is None:
        known = cost.macs(pin(model, groups.inputs))
        samples = next(iter(groups.inputs.values()))[0] if batch is not None else 1
        known = None if known is None else known // samples
    return known


def random_inputs(model: ir.Model, groups: Groups, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        if value.name in groups.inputs and not value.is_initializer():
            assert value.dtype is not None
            shape, dtype = groups.inputs[value.name], value.dtype.numpy()
            random = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
            feeds[value.name] = random.astype(dtype)
    return feeds


def largest(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference, relative to the largest number of that output."""
    found = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.size and a.dtype.kind in "fiub":
            first, second = a.astype(np.float64), b.astype(np.float64)
            found = max(found, float(np.abs(first - second).max() / max(np.abs(first).max(), 1e-9)))
    return found


WAYS_HEAD = """# Pruned by every criterion and scope

Written by `python benchmarks/pruning_sweep.py --ways --ratio 0.4 --markdown FILE`: small networks with random
weights, 40 % of whose MACs the step `prune` is to take away in one round, nothing made up for. In each cell
the share that went and the largest difference between the smaller graph and the whole one with the same
channels zeroed where they are read, relative to the largest output. More than was asked goes where families
are few and coarse, or where measured harm is the same for more. "-": the network has no normalisation.
"""
HEAD = """# What can be pruned

Written by `python benchmarks/pruning_sweep.py --markdown FILE`, which says what is compared with what: small
networks with random weights, a share of every family of channels removed at random. The difference is that
between the smaller graph and the whole one with the same channels zeroed where they are read; against the
whole: from the network untouched; both relative to the largest output. Layers left keep their channels, as
the last one does, which makes the outputs. Seconds are those of finding the groups and of cutting.

| network | families | atoms | parameters | MACs | difference | against the whole | layers left | s |
|---|---|---|---|---|---|---|---|---|"""


def line(row: Row) -> str:
    def less(pair: tuple[int | None, int | None]) -> str:
        if pair[0] is None or pair[1] is None:
            return "unknown"
        return f"{pair[0]:,} to {pair[1]:,} ({1 - pair[1] / max(pair[0], 1):.0%} less)"

    families = f"{row.families} ({row.restricted} with a norm)" if row.restricted else str(row.families)
    seconds = f"{row.seconds[0]:.2f} + {row.seconds[1]:.2f}"
    return (
        f"| {row.name} | {families} | {row.atoms:,} | {less(row.parameters)} | {less(row.macs)} | "
        f"{row.difference:.0e} | {row.changed:.2f} | {row.left} | {seconds} |"
    )


if __name__ == "__main__":
    main()

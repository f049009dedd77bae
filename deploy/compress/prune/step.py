"""The step ``prune``: round by round channels go until the goal is met.

Each round finds the groups anew in the smaller graph, ranks, removes, lets what is left make up for what went
(`channel_fit`), and trains where that is asked for. Fitting aims at the graph as it was after the last
training: before the first, as it came.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from deploy.compress.channel_budget import Harm, answers
from deploy.compress.channel_fit import kept_channels, refit
from deploy.compress.channel_order import Feeds
from deploy.compress.channel_tune import Tuning, tune
from deploy.compress.ground import Ground, StepResult
from deploy.compress.layers import parted
from deploy.compress.prune.amount import NAMES, Amount, Predicted, counted
from deploy.compress.prune.choose import by_rank, matching, ordered, rankings, step_of, widths
from deploy.compress.prune.criteria import Scores, drawn, scaled, taylor, weighed
from deploy.compress.prune.goal import least_harm, require_reachable
from deploy.compress.prune.measured import by_obs, by_scores, obs_scores
from deploy.compress.prune.schedule import milestones
from deploy.compress.step import Step
from deploy.errors import UsageError
from deploy.graph.groups import Groups, find_groups
from deploy.graph.shrink import shrink
from deploy.spec.compression import Prune
from deploy.train.finetune import reproducible
from deploy.train.units import batches

_BATCH = 32
_JUDGED = 3
"""One batch of so many judges what removing channels harms; the others say in which order they go."""
_REASONS = 5


@dataclass(frozen=True)
class Setting:
    """What a round works on: the graph with its groups, and what each family may keep."""

    model: ir.Model
    groups: Groups
    allowed: tuple[tuple[int, ...], ...]
    amount: Amount


@dataclass(frozen=True)
class _Start:
    """The whole graph with what each family must keep, by name, and how much is to be left of the ``whole``
    of the goal's resource."""

    here: Setting
    protected: Sequence[str]
    least: Mapping[str, int]
    whole: float
    goal: float


def check(step: Prune, model: ir.Model, ground: Ground) -> None:
    """Raises UsageError for a pattern that names no node, a graph in which nothing can go, samples that are
    missing, and a goal that cannot be reached."""
    _begun(step, model, ground)


def _begun(step: Prune, model: ir.Model, ground: Ground) -> _Start:
    looks = {
        f'criterion = "{step.criterion}"': step.criterion in ("obs", "taylor"),
        'scope = "measured"': step.scope == "measured",
        f"tune = {step.tune}": step.tune > 0,
    }
    if any(looks.values()) and ground.samples is None:
        raise UsageError(
            f"prune: {next(what for what, asked in looks.items() if asked)} looks at samples, "
            "and there are none",
            hint='give --data samples.npz, or choose criterion = "l2", scope = "global"',
        )
    protected = matching(model, step.protect)
    groups = find_groups(model, protected)
    least = {family.name: math.ceil(step.keep * len(family.atoms)) for family in groups.families}
    here = setting(step, model, groups, least, ground)
    whole = _amount_of(here, [len(family.atoms) for family in groups.families])
    goal = _goal(step, whole)
    require_reachable(here.allowed, here.amount, goal, step.goal, _bounds(step, ground))
    return _Start(here, protected, least, whole, goal)


def run(step: Prune, model: ir.Model, ground: Ground) -> StepResult:
    """A graph with fewer channels. Raises what `check` raises, and BackendError where a solver fails."""
    start = _begun(step, model, ground)
    with reproducible(ground.threads):
        return _run(step, start, ground)


def _run(step: Prune, start: _Start, ground: Ground) -> StepResult:
    here, model = start.here, start.here.model
    feeds: Feeds = []
    if ground.samples is not None:
        feeds = batches(model, ground.samples, step.samples, _BATCH)
    thin, aim, kept = model, model, dict[str, tuple[int, np.ndarray]]()
    gone: Counter[str] = Counter()
    targets = milestones(start.whole, start.goal, step.per_round)
    notes: dict[str, None] = {}
    for number, target in enumerate(targets, 1):
        ground.progress.note(f"prune: round {number} of {len(targets)}")
        if thin is not model:
            names = {node.name for node in thin.graph}
            groups = find_groups(thin, [name for name in start.protected if name in names])
            here = setting(step, thin, groups, start.least, ground)
        removed = removal(step, here, target, aim, feeds, ground, notes)
        kept = kept_channels(here.groups, removed, kept)
        owner = {atom.label: family.name for family in here.groups.families for atom in family.atoms}
        gone.update(owner[label] for label in removed)
        thin = shrink(thin, here.groups, removed)
        if step.compensate and feeds:
            thin = refit(aim, thin, kept, feeds, seed=ground.seed, progress=ground.progress).graph
        if step.finetune is not None:
            thin = ground.tune(thin, step.finetune)
            aim, kept = thin, {}
    if step.tune and step.finetune is None and feeds:
        learn, judge = ([feeds[i] for i in part] for part in parted(len(feeds)))  # the fit knows the others
        settings = Tuning(steps=step.tune, seed=ground.seed)
        thin = tune(aim, thin, kept, learn, judge, settings, ground.progress).graph
    sizes = {family.name: len(family.atoms) for family in start.here.groups.families}
    counts = [size - gone[name] for name, size in sizes.items()]
    told = _told(step, start.here, counts, len(targets), notes)
    return StepResult(thin, told, _rows(sizes, gone))


def setting(
    step: Prune, model: ir.Model, groups: Groups, least: Mapping[str, int], ground: Ground
) -> Setting:
    """What may go of a graph; ``least`` is what families must keep, by name. Raises UsageError where none can
    lose anything."""
    align, strict = (ground.align, False) if step.align is None else (step.align, True)
    allowed = tuple(
        widths(len(f.atoms), step_of(f, align, strict=strict), least.get(f.name, 1)) for f in groups.families
    )
    if all(len(own) == 1 for own in allowed):
        raise UsageError(
            "prune: there is nothing to remove", hint=_why(groups, align if groups.families else 0)
        )
    amount: Amount
    if step.goal == "latency":
        amount = Predicted(model, groups, ground.latency)
    else:
        amount = counted(model, groups, step.goal)
    return Setting(model, groups, allowed, amount)


def _why(groups: Groups, align: int) -> str:
    if align:
        return f"{len(groups.families)} groups of channels are too narrow for align = {align} or keep"
    reasons = [f"{node}: {reason}" for node, reason in groups.left.items()]
    more = f"; and {len(reasons) - _REASONS} more" if len(reasons) > _REASONS else ""
    return "; ".join(reasons[:_REASONS]) + more or "no layer has channels of its own"


def _amount_of(here: Setting, kept: Sequence[int]) -> float:
    return float(here.amount(np.array([kept], float))[0])


def _goal(step: Prune, whole: float) -> float:
    if step.size is not None:
        return float(step.size)
    share = step.macs or step.parameters or step.latency
    assert share is not None
    return whole * (1 - share)


def _bounds(step: Prune, ground: Ground) -> str:
    align = ground.align if step.align is None else step.align
    return f"keep = {step.keep:g}" + (f" and align = {align}" if align > 1 else "")


def removal(
    step: Prune,
    here: Setting,
    target: float,
    aim: ir.Model,
    feeds: Feeds,
    ground: Ground,
    notes: dict[str, None],
) -> list[int]:
    """The atoms of one round that go so that at most ``target`` is left of the goal's resource.

    Harm is measured against the answers of ``aim`` on the batches ``feeds``; what is to be said goes into
    ``notes``.
    """
    model, groups = here.model, here.groups
    learn, judge = ([feeds[i] for i in part] for part in parted(len(feeds), _JUDGED))
    if step.scope == "measured":
        harm = Harm(model, judge, answers(aim, judge)[1])
        if step.criterion == "obs" and step.compensate:
            fallback = weighed(model, groups, 2)
            found = by_obs(model, groups, fallback, here.allowed, learn, harm, ground.seed, ground.progress)
        else:
            scores = _scores(step, model, groups, learn, ground, notes)
            found = by_scores(model, groups, scores, here.allowed, harm, ground.progress)
        kept = least_harm([f.choice for f in found], here.amount, target, dear=step.goal == "latency")
        orders = [f.labels for f in found]
    else:
        scores = _scores(step, model, groups, feeds, ground, notes)
        ranked = rankings(groups, scores, step.scope, step.isomorphic)
        kept = by_rank(ranked, here.allowed, here.amount, target)
        orders = [ordered(family, scores) for family in groups.families]
    return [label for own, count in zip(orders, kept, strict=True) for label in own[: len(own) - count]]


def _scores(
    step: Prune, model: ir.Model, groups: Groups, feeds: Feeds, ground: Ground, notes: dict[str, None]
) -> Scores:
    if step.criterion == "obs":
        return obs_scores(model, groups, weighed(model, groups, 2), feeds, ground.seed)
    if step.criterion == "batch_norm":
        found, without = scaled(model, groups)
        if without:
            notes[f"{len(without)} of {len(groups.families)} groups have no norm and went by l2"] = None
        return found
    if step.criterion == "taylor":
        assert ground.samples is not None
        labelled = ground.train if ground.train is not None and ground.train.labelled else None
        notes["taylor of the loss" if labelled else "taylor of the answers, without labels"] = None
        if labelled is not None:  # files are often sorted by class
            rows = np.unique(np.linspace(0, len(labelled) - 1, min(step.samples, len(labelled))).astype(int))
            labelled = labelled.select(rows)
        return taylor(
            model,
            groups,
            labelled or ground.samples,
            step.samples,
            labels=labelled is not None,
            seed=ground.seed,
        )
    if step.criterion == "random":
        return drawn(groups, ground.seed)
    return weighed(model, groups, 1 if step.criterion == "l1" else 2)


def _told(step: Prune, start: Setting, kept: Sequence[int], rounds: int, notes: Mapping[str, None]) -> str:
    full = [len(family.atoms) for family in start.groups.families]
    parts = []
    for goal in dict.fromkeys((step.goal, "macs", "parameters")):
        amount = start.amount if goal == step.goal else counted(start.model, start.groups, goal)
        left, whole = amount(np.array([kept, full], float)).tolist()
        parts.append(f"{1 - left / max(whole, 1e-12):.1%} of the {NAMES[goal]}")
    said = f"{', '.join(parts)} removed in {rounds} round{'s' if rounds != 1 else ''}"
    return "; ".join([said, *notes])


def _rows(sizes: Mapping[str, int], gone: Mapping[str, int]) -> tuple[Step, ...]:
    return tuple(
        Step(name, f"{size - gone[name]} of {size} kept", bool(gone[name])) for name, size in sizes.items()
    )

"""The float baseline, the file as the user gave it, and artifacts judged and timed against it."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from deploy.adapter.protocol import Arrays, Backend, Runner
from deploy.data.agreement import Joined
from deploy.data.dataset import Dataset
from deploy.data.interval import Drop, paired_drop
from deploy.data.metrics import default_metric, make_metric
from deploy.data.scores import Metric, PerSample, Score
from deploy.measure.accuracy import evaluate, evaluate_both
from deploy.measure.host import host
from deploy.measure.latency import Timing, TimingPlan, measure, speedup
from deploy.measure.memory import peak_memory
from deploy.spec.artifact import Artifact, Options
from deploy.spec.manifest import Evaluation
from deploy.spec.measurement import Comparison, Conditions, Measurement
from deploy.spec.project import MetricSection

Role = Literal["eval", "validation", "calibration", "random"]
Opener = Callable[[], AbstractContextManager[Runner]]

_RACE = TimingPlan(rounds=20)
"""A quarter of its rounds, those in which the machine was quiet, is enough for a median."""


@dataclass
class Examiner:
    """Scores runners against the baseline on one dataset; runs the baseline once and counts the looks."""

    dataset: Dataset
    open_baseline: Opener
    section: MetricSection
    root: Path | None
    joined: Joined | None = None
    """The outputs that agreement looks at in parts."""
    looks: int = 0
    metric: str = ""
    _baseline: Metric | None = None
    _examined: list[tuple[Drop, Score]] = field(default_factory=list)

    def examine(self, runner: Runner, *, alone: bool = False) -> Drop:
        """The paired drop of ``runner``; ``alone`` where what a sample gives depends on those beside it."""
        batch = 1 if alone else None
        if self._baseline is None:
            with self.open_baseline() as baseline:
                name = self.section.name
                self.metric = default_metric(self.dataset, baseline.outputs) if name == "auto" else name
                before = self._new(None)
                artifact = self._new(before)
                evaluate_both((baseline, before), (runner, artifact), self.dataset, batch=batch)
                self._baseline = before
        else:
            artifact = evaluate(runner, self.dataset, self._new(self._baseline), batch=batch)
        self.looks += 1
        drop = paired_drop(self._baseline, artifact, groups=_groups(self.dataset))
        self._examined.append((drop, artifact.result()))
        return drop

    def _new(self, reference: Metric | None) -> Metric:
        return make_metric(
            self.metric,
            output=self.section.output,
            ignore_label=self.section.ignore_label,
            reference=reference,
            root=self.root,
            joined=self.joined,
        )

    @property
    def grain(self) -> float:
        """What one sample is worth where each is right or wrong: drops are multiples of it."""
        return self._baseline.grain if isinstance(self._baseline, PerSample) else 0.0

    def score_of(self, drop: float | None) -> float | None:
        """The metric of the baseline (drop 0) or of what lost ``drop``; None where nothing was scored."""
        if self._baseline is None or drop is None:
            return None
        before = self._baseline.result()
        return before.value - drop if before.higher_is_better else before.value + drop

    def score_under(self, drop: Drop) -> Score:
        """The score of the runner whose examination gave ``drop``."""
        return next(score for known, score in self._examined if known is drop)

    def evaluation(self, role: Role, drop: Drop) -> Evaluation:
        """The figures of the runner whose examination gave ``drop``: the last one need not be the winner."""
        assert self._baseline is not None
        before, after = self._baseline.result(), self.score_under(drop)
        return Evaluation(
            metric=self.metric,
            unit=before.unit,
            higher_is_better=before.higher_is_better,
            baseline=before.value,
            artifact=after.value,
            drop=drop.drop,
            interval=(drop.low, drop.high),
            per_class={
                name: (value, after.per_class[name])
                for name, value in before.per_class.items()
                if name in after.per_class
            },
            role=role,
            samples=len(self.dataset),
            looks=self.looks,
        )


def _groups(dataset: Dataset) -> np.ndarray | None:
    """Which samples belong together, in order; None where every sample stands alone."""
    parts = [batch.groups for batch in dataset.batches(4096, feeds=False) if batch.groups is not None]
    return np.concatenate(parts) if parts else None


@dataclass(frozen=True)
class Contender:
    """An artifact with the backend that opens it and how."""

    backend: Backend
    artifact: Artifact
    options: Options

    def open(self) -> Runner:
        return self.backend.open(self.artifact, self.options)


def race(contenders: Mapping[str, Contender], feeds: Arrays, plan: TimingPlan = _RACE) -> dict[str, Timing]:
    """Time all of them on the same feeds, interleaved in this process."""
    with ExitStack() as stack:
        runners = {name: stack.enter_context(who.open()) for name, who in contenders.items()}
        return measure(runners, feeds, plan)


def compare(
    baseline: tuple[Contender, Timing],
    artifact: tuple[Contender, Timing],
    feeds: Arrays,
    *,
    scratch: Path | None,
) -> Comparison:
    """The figures of a race, with the peak memory of each contender in a child process of its own, unless
    there is no ``scratch`` folder for that."""
    pairs = {"baseline": baseline, "artifact": artifact}
    asked = {name: (who.artifact, who.options) for name, (who, _) in pairs.items()}
    memory = {} if scratch is None else peak_memory(asked, feeds, scratch)

    def measurement(name: str) -> Measurement:
        who, timing = pairs[name]
        here = who.backend.available()
        return Measurement(
            latency_ms=timing.summary(),
            peak_memory_bytes=memory.get(name),
            conditions=Conditions(
                device=f"{host().cpu} ({platform.system()})",
                runtime=f"{here.runtime} {here.version}",
                threads=who.options.threads,
                batch=len(next(iter(feeds.values()))),
                date=datetime.date.today().isoformat(),
            ),
        )

    ratio, interval = speedup(baseline[1], artifact[1])
    return Comparison(
        baseline=measurement("baseline"), artifact=measurement("artifact"), speedup=ratio, interval=interval
    )

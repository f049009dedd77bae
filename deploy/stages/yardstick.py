"""By what the graphs of a recipe are judged: the project's metric, what they weigh, what they will take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch
from deploy.data.interval import Drop
from deploy.data.scores import Score
from deploy.execute.reference import YIELDING, Session, open_graph
from deploy.graph.cost import macs, parameters
from deploy.graph.edit import weight_bytes
from deploy.graph.ends import joined
from deploy.graph.fuse import fuse
from deploy.measure.latency import TimingPlan, measure
from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import UnknownCostError, predict
from deploy.progress import SILENT, Progress
from deploy.quantize.palettes import stored_bytes
from deploy.spec.ablation import Figures
from deploy.spec.document import Frozen
from deploy.spec.plan import TensorPlan
from deploy.spec.project import WITHOUT_RANGES
from deploy.stages.baseline import Examiner
from deploy.stages.costs import Foresight, Known
from deploy.stages.job import subject_for
from deploy.stages.prepare import Prepared
from deploy.stages.request import Request, Roles
from deploy.stages.target import Route, Target

_THREADS = 2
"""For accuracy only: a fixed number, so that a score does not depend on the machine or on --threads."""
_BRIEFLY = TimingPlan(seconds=0.4)
_MEASURED = "float, measured here with ONNX Runtime"


class Judged(Frozen):
    """The graph before a recipe, and how it was judged."""

    metric: str = ""
    unit: str = ""
    higher_is_better: bool = True
    figures: Figures


@dataclass(frozen=True)
class Yardstick:
    """``before`` is what the recipe begins with; everything is compared with it."""

    before: Prepared
    roles: Roles
    request: Request
    target: Target
    foresight: Foresight
    progress: Progress = SILENT
    _scores: dict[int, tuple[ir.Model, Drop, Score]] = field(default_factory=dict)

    @cached_property
    def examiner(self) -> Examiner | None:
        """Judges by the labels of the data that choose, else by agreement with the graph before the recipe;
        None without any data."""
        if self.roles.validation is None:
            return None
        given, request = self.before.fused, self.request
        opener = partial(_opened, given)
        return Examiner(self.roles.validation, opener, request.metric, request.root, joined(given))

    def examined(self, model: ir.Model) -> tuple[Drop, Score] | None:
        """How much worse a graph is than the one before the recipe, and its score; the last graph is known
        again. None where there is nothing to judge by, or the metric is not defined."""
        if self.examiner is None:
            return None
        if id(model) not in self._scores:
            with _opened(model) as runner:
                drop = self.examiner.examine(runner)
            self._scores.clear()
            self._scores[id(model)] = model, drop, self.examiner.score_under(drop)
        _, drop, score = self._scores[id(model)]
        return (drop, score) if math.isfinite(drop.drop) and math.isfinite(score.value) else None

    def score(self, model: ir.Model) -> Score | None:
        found = self.examined(model)
        return None if found is None else found[1]

    def drop(self, model: ir.Model) -> float | None:
        found = self.examined(model)
        return None if found is None else found[0].drop

    def judged(self) -> Judged:
        """The graph before the recipe."""
        figures = self.figures(self.before.clean, self.before.fused)
        if self.examiner is None:
            return Judged(figures=figures)
        score = self.score(self.before.fused)
        return Judged(
            metric=self.examiner.metric,
            unit="" if score is None else score.unit,
            higher_is_better=score is None or score.higher_is_better,
            figures=figures,
        )

    def figures(self, clean: ir.Model, fused: ir.Model) -> Figures:
        """All that is known of a graph but its time."""
        found = self.examined(fused)
        size = {"weight_bytes": weight_bytes(fused), "macs": macs(fused), "parameters": parameters(clean)}
        if found is None:
            return Figures(**size)
        drop, score = found
        return Figures(
            score=score.value,
            per_class={name: value for name, value in score.per_class.items() if math.isfinite(value)},
            drop=drop.drop,
            interval=(drop.low, drop.high),
            **size,
        )

    def stored_bytes(self, fused: ir.Model) -> int:
        """Of all constants, as the target's first runtime stores them where these stay floats."""
        if self.quantizes or self.request.precision in ("dynamic", "w8", "w4"):
            return weight_bytes(fused)
        first = self.target.routes[0]
        exact = {"around": "float32"} if self.request.precision == "float" else {}
        return stored_bytes(fused, first.backend, first.runtime.model_copy(update=exact))

    @cached_property
    def tables(self) -> dict[str, Known]:
        """By runtime what is known of its kernels, but for data sheets, which only bound them."""
        return {name: known for name, known in self.foresight.runtimes.items() if not known.least}

    @property
    def quantizes(self) -> bool:
        """Whether integers are to come of it."""
        return self.roles.calibration is not None and self.request.precision not in WITHOUT_RANGES

    def predicted(self, model: ir.Model) -> float | None:
        """Milliseconds of one inference of a clean graph on the fastest runtime of the target, with integers
        wherever it can where the build quantizes. None where nothing is known of its kernels."""
        if not self.tables:
            return None
        fused = fuse(model, lambda _before, _after: None).model
        prepared = replace(self.before, fused=fused, own={})
        found = [ms for route in self.target.routes if (ms := self._on(route, prepared)) is not None]
        return min(found, default=None)

    def _on(self, route: Route, prepared: Prepared) -> float | None:
        known = self.tables.get(route.runtime.name)
        if known is None:
            return None
        subject = subject_for(self.target, route, prepared, {}, self.request)
        forms: list[Mapping[str, TensorPlan]] = [{}]
        if self.quantizes and subject.form is None:
            forms.append(subject.quantized(()))
        try:
            return min(predict(subject.graph, tensors, subject.runtime, known.costs).ms for tensors in forms)
        except (UnknownCostError, UnknownSizeError):
            return None

    def times(self, graphs: Sequence[ir.Model]) -> tuple[list[float | None], str]:
        """Milliseconds of each of these graphs, and where they are from: as predicted for the target, else as
        the float graphs take here in turn. Nothing is timed where the build times nothing."""
        ms = [self.predicted(model) for model in graphs]
        if all(one is not None for one in ms):
            return ms, "predicted: " + next(iter(self.tables.values())).basis
        if not self.request.measure or not self.target.stands_here():
            return [None] * len(graphs), ""
        with ExitStack() as stack:
            runners = {
                str(number): stack.enter_context(_opened(model, self.request.threads))
                for number, model in enumerate(graphs)
            }
            timed = measure(runners, self._one_sample(), _BRIEFLY)
        return [timed[str(number)].summary().p50 for number in range(len(graphs))], _MEASURED

    def _one_sample(self) -> dict[str, np.ndarray]:
        dataset, size = self.roles.calibration, fixed_batch(self.before.facts.inputs) or 1
        if dataset is not None and len(dataset) >= size:
            return next(dataset.batches(size)).feeds
        return {name: array[:size] if array.ndim else array for name, array in self.before.trial.items()}


def _opened(model: ir.Model, threads: int = _THREADS) -> Session:
    return open_graph(model, threads=threads, settings=YIELDING)

"""Finetuning: a graph and samples go in, the same graph with better weights comes out.

Equal seed, threads and machine give equal weights, bit for bit on a CPU, whether or not the run was
interrupted: a batch depends on its number, on the weights and on nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from deploy.data.dataset import Dataset
from deploy.data.python_ref import code_digest
from deploy.errors import BackendError, DataError, DeployError, ModelError, UsageError, VerificationError
from deploy.execute.module import GraphModule
from deploy.frontend import onnx_file
from deploy.graph.summary import tensor_specs
from deploy.measure.accuracy import evaluate
from deploy.progress import SILENT, Progress
from deploy.spec.document import digest
from deploy.spec.finetune import Finetune
from deploy.spec.tensors import Layout
from deploy.train import checkpoint
from deploy.train.answers import draw_views, remember, require_mixable
from deploy.train.augment import image_inputs
from deploy.train.curve import Epoch, History
from deploy.train.distill import Features, open_teacher, require_one_answer, require_values
from deploy.train.loader import Loader, Shuffled, number, open_loader
from deploy.train.loss import check_labels, heads, make_task
from deploy.train.memory import kept_memory
from deploy.train.run import Lesson, Run, matches, statistics_names
from deploy.train.score import MakeMetric, ModuleRunner, chosen_metric, tensors
from deploy.train.weights import require_weights, with_weights
from deploy.train.zeros import keep_zeros

CHECKPOINT_S = 30.0
"""Seconds between checkpoints, more where writing one takes more than a twentieth of that."""
_SAME, _SAME_CODES = 1e-3, 0.25
"""How far the answer to a sample may move with the others in its batch: by rounding; by codes that flip with
that, where values are quantized."""


@dataclass(frozen=True)
class Trained:
    """``model`` has the best weights by the validation score, the last ones without validation data.

    ``best`` is the epoch that they come from, 0 for the graph as it came; ``score`` the validation score
    then and ``before`` that of the graph as it came. ``stopped`` says why training ended early, ``worse``
    what speaks against weights that nobody validated.
    """

    model: ir.Model
    history: History
    best: int
    score: float | None
    before: float | None
    stopped: str = ""
    worse: str = ""


Prepare = Callable[[GraphModule], Callable[[], None]]
"""From the module to what is called after every step."""


def _nothing() -> None: ...


class DivergedError(BackendError):
    """The loss became NaN or infinite. ``trained`` holds the last good weights."""

    def __init__(self, message: str, trained: Trained, *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.trained = trained


def finetune(
    model: ir.Model,
    step: Finetune,
    *,
    train: Dataset,
    validation: Dataset | None = None,
    teachers: Sequence[ir.Model] = (),
    metric: MakeMetric | None = None,
    root: Path | None = None,
    workdir: Path,
    seed: int = 0,
    threads: int = 1,
    checkpoint_s: float = CHECKPOINT_S,
    prepare: Prepare | None = None,
    progress: Progress = SILENT,
) -> Trained:
    """Train a copy of ``model`` as ``step`` says; what is given stays as it is, and so do the zeros of
    weights that are a quarter zeros or more (`zeros.py`).

    ``teachers`` of a step that distills; without any the graph as it came teaches. ``metric`` makes a fresh
    metric for validation, by default what labels and outputs suggest. Checkpoints lie in ``workdir``, one
    every ``checkpoint_s`` seconds (0: after every batch): a run that ended there goes on, and one that had
    finished is read back. ``prepare`` is handed the module before training, and gives what is called after
    every step.

    Raises DivergedError where the loss becomes NaN or infinite; UnsupportedError listing the nodes that
    cannot be trained; ModelError for a teacher that does not fit and a graph that takes one sample only;
    DataError for samples or labels that do not; UsageError for settings that do not fit the graph, a
    checkpoint of another training, and a full disk.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    with reproducible(threads), kept_memory():
        training = _Training(
            model, step, train, validation, teachers, metric, root, workdir, seed, threads, prepare, progress
        )
        return training.run(checkpoint_s)


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Torch computes with so many threads, on a CPU by deterministic algorithms; afterwards as before, and
    its random numbers go on as if nothing had been drawn."""
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda = torch.cuda.is_available()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        torch.set_num_threads(threads)
        if not cuda:
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.set_num_threads(before)
            torch.use_deterministic_algorithms(strict, warn_only=lenient)


class _Training:
    """Everything made ready, and the loop."""

    def __init__(
        self,
        model: ir.Model,
        step: Finetune,
        train: Dataset,
        validation: Dataset | None,
        teachers: Sequence[ir.Model],
        metric: MakeMetric | None,
        root: Path | None,
        workdir: Path,
        seed: int,
        threads: int,
        prepare: Prepare | None,
        progress: Progress,
    ) -> None:
        self.source, self.step, self.validation, self.workdir = model, step, validation, workdir
        self.progress = progress
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = _module(model, step, self.device)
        inputs = tensor_specs(model.graph.inputs)
        images = image_inputs(inputs, step.augment)
        if kept := keep_zeros(self.module.named_weights()):
            progress.note(f"{len(kept)} sparse weights keep their zeros while they learn")
        loader = open_loader(train, step.batch, seed, workdir, progress=progress)
        lesson, digests = self._lesson(train, teachers, images, root, seed)
        self.loader: Loader = loader
        self.state = Run(
            self.module,
            step,
            lesson,
            loader.batches,
            seed,
            self.device,
            prepare(self.module) if prepare is not None else _nothing,
        )
        self.runner = ModuleRunner(self.module, self.device)
        self.make_metric = metric
        if validation is not None and metric is None:
            first = lesson.teachers[0] if lesson.teachers else None
            judge = None if first is None else ModuleRunner(first.module, self.device, first.inputs)
            self.make_metric = chosen_metric(validation, self.runner, judge)
        self.key = {
            "graph": onnx_file.digest(model),
            "recipe step": digest(step),
            "loss function": code_digest(step.loss, root),
            "training data": train.digest,
            "validation data": "" if validation is None else validation.digest,
            "teacher": " ".join(digests) + (" live" if lesson.answers is None else " kept"),
            "seed": str(seed),
            "number of threads": str(threads),
            "order of samples": "free" if isinstance(loader, Shuffled) else repr(loader.batches),
            "device": self.device.type,
            "version of torch": torch.__version__,
        }

    def _lesson(
        self,
        train: Dataset,
        teachers: Sequence[ir.Model],
        images: Mapping[str, Layout],
        root: Path | None,
        seed: int,
    ) -> tuple[Lesson, list[str]]:
        step, settings = self.step, self.step.distill
        if not train.labelled and (settings is None or settings.alpha > 0):
            raise DataError(
                f"{train.origin}: training needs labels, and there are none",
                hint="save labels under 'y', or learn from a teacher alone: distill = { alpha = 0 }",
            )
        if teachers and settings is None:
            raise UsageError("teachers were given to a step that does not distill", hint="set distill")
        sample = next(train.batches(2))
        feeds = tensors(sample.feeds, self.device)
        features = settings.features if settings is not None else ()
        require_values(self.module, [pair.student for pair in features], "the model")
        results = self._tried(feeds, [pair.student for pair in features])
        shapes = {name: list(results[name].shape) for name in self.module.program.outputs}
        found = heads(self.source, shapes, sample.targets, step)
        require_one_answer({head.output: results[head.output] for head in found}, len(sample))
        check_labels(train, found, shapes, step)
        outputs = self.module.program.outputs
        task = make_task(found, step, outputs, root) if train.labelled else None
        if settings is None:
            return Lesson(found, task, images), []
        with torch.no_grad():
            want = [h.read for h in found if h.read not in outputs] + [p.student for p in features]
            results = self.module(feeds, want)
        models = list(teachers) or [self.source]
        opened = tuple(
            open_teacher(other, place, found, self.module.program.inputs, feeds, results, step.precision)
            for place, other in enumerate(models, 1)
        )
        digests = [onnx_file.digest(other) for other in models]
        if features:
            require_values(opened[0].module, [pair.teacher for pair in features], "the first teacher")
            inner = opened[0].run(feeds, [pair.teacher for pair in features])
            torch.manual_seed(number(seed, 2**32))
            matched = Features(settings, results, inner).to(self.device)
            return Lesson(found, task, images, opened, None, matched), digests
        answers = None
        if (step.augment.identity or settings.views) and settings.alpha < 1:
            moves = bool(images) and (step.augment.crop > 0 or step.augment.flip)
            views = draw_views(settings.views, len(train), step.augment, seed) if moves else None
            answers = remember(
                opened, train, step.batch, self.workdir, digests, images, self.device, views, self.progress
            )
            if answers is not None:
                require_mixable(answers, step.augment)
        return Lesson(found, task, images, opened, answers), digests

    def _tried(self, feeds: dict[str, Tensor], want: Sequence[str]) -> dict[str, Tensor]:
        """The graph's answer to two samples at once, which must be its answers to each."""
        count = len(next(iter(feeds.values())))
        fixed = "training needs a graph whose batch is free; name its batch dimension when exporting"
        coded = any(node.op_type == "QuantizeLinear" for node in self.module.model.graph)
        with torch.no_grad():
            try:
                both: dict[str, Tensor] = self.module(feeds, want)
                alone: dict[str, Tensor] = self.module(
                    {name: value[:1] for name, value in feeds.items()}, want
                )
            except DeployError as e:
                raise ModelError(f"the graph cannot run on {count} samples: {e.message}", hint=fixed) from e
        for name in self.module.program.outputs:
            by_sample = both[name].ndim > 0 and len(both[name]) == count and len(alone[name]) == 1
            if by_sample and both[name].is_floating_point():
                far = (both[name][:1] - alone[name]).abs().max().item()
                if far > (_SAME_CODES if coded else _SAME) * (1 + alone[name].abs().max().item()):
                    raise ModelError(
                        f"output '{name}' of a sample depends on which others are in its batch", hint=fixed
                    )
        return both

    def run(self, checkpoint_s: float) -> Trained:
        run, place = self.state, self.state.position
        kept = checkpoint.load(self.workdir, self.key)
        if kept is not None:
            run.restore(kept)
            place = run.position
            self.progress.note(f"training goes on at epoch {min(place.epoch + 1, self.step.epochs)}")
        else:
            self._score_first()
        begun, first, saved, cost = time.monotonic(), run.done, time.monotonic(), 0.0
        while place.epoch < self.step.epochs and not place.stopped:
            for samples in self.loader.epoch(place.epoch, place.batch):
                if trouble := run.batch(samples):
                    raise self._diverged(trouble)
                self.progress.advance(run.done, run.total)
                if time.monotonic() - saved >= (max(checkpoint_s, 20 * cost) if checkpoint_s else 0):
                    start = time.monotonic()
                    checkpoint.save(run.checkpoint(self.key), self.workdir)
                    saved = time.monotonic()
                    cost = saved - start
            self._end_epoch()
            left = (run.total - run.done) * (time.monotonic() - begun) / max(1, run.done - first)
            self.progress.note(self._told(left))
        checkpoint.save(run.checkpoint(self.key), self.workdir)
        trained = self._trained()
        if trained.worse:
            self.progress.warn(
                f"{trained.worse}, and there are no validation data to tell whether the graph became worse; "
                f"give labelled ones, or lower lr (now {self.step.lr:g}) to a tenth"
            )
        return trained

    def _score_first(self) -> None:
        place = self.state.position
        if self.validation is not None:
            place.best_score = self._score()
            place.epochs.append(Epoch(0, 0, None, place.best_score))

    def _score(self) -> float:
        assert self.validation is not None and self.make_metric is not None
        with self.state.averaged():
            metric = evaluate(self.runner, self.validation, self.make_metric())
        return metric.result().value

    def _end_epoch(self) -> None:
        """Validate, note, keep the best."""
        run, place = self.state, self.state.position
        if not run.finite():
            raise self._diverged("a weight is no longer a number")
        loss, score = place.epoch_loss / self.state.per_epoch, None
        if self.validation is not None:
            try:
                score = self._score()
            except VerificationError as e:
                raise self._diverged(e.message) from e
        number_ = place.epoch + 1
        place.epochs.append(Epoch(number_, run.done, loss, score))
        if score is None or place.best_score is None or not self._worse(score, place.best_score):
            better = score is not None and score != place.best_score
            place.stale = 0 if better else place.stale + 1
            place.best_epoch, place.best_score, run.best = number_, score, run.result()
        else:
            place.stale += 1
        place.epoch, place.batch, place.epoch_loss = number_, 0, 0.0
        patience = self.step.early_stop
        if score is not None and patience and place.stale >= patience and number_ < self.step.epochs:
            place.stopped = f"no better score in {place.stale} epochs"

    def _worse(self, score: float, best: float) -> bool:
        assert self.make_metric is not None
        return score < best if self.make_metric().higher_is_better else score > best

    def _told(self, left: float) -> str:
        last = self.state.position.epochs[-1]
        text = f"epoch {last.epoch}/{self.step.epochs}: loss {last.loss:.4g}"
        if last.score is not None and self.make_metric is not None:
            text += f", {self.make_metric().name} {last.score:.4g}"
        if self.state.position.stopped:
            return f"{text}; {self.state.position.stopped}"
        minutes, seconds = divmod(round(left), 60)
        return text if last.epoch == self.step.epochs else f"{text}, {minutes}:{seconds:02d} left"

    def _diverged(self, what: str) -> DivergedError:
        run, place = self.state, self.state.position
        kept = f"of epoch {place.best_epoch}" if place.best_epoch else "that the graph came with"
        batch = min(place.batch + 1, run.per_epoch)
        return DivergedError(
            f"training diverged in epoch {place.epoch + 1}, batch {batch} of {run.per_epoch}: {what}, at a "
            f"learning rate of {run.rate:.3g}; the weights {kept} are restored",
            self._trained(),
            hint=f"lower lr (now {self.step.lr:g}) to a tenth"
            + ("" if self.step.clip else ", or set clip = 1"),
        )

    def _trained(self) -> Trained:
        place = self.state.position
        before = place.epochs[0].score if place.epochs and place.epochs[0].epoch == 0 else None
        name = "" if self.make_metric is None else self.make_metric().name
        model = with_weights(self.source, self.state.best)
        history = self.state.history(name)
        by_itself = self.step.distill is not None and not self.step.distill.teachers  # begins at its least
        worse = "" if by_itself or self.validation is not None else history.grown
        return Trained(model, history, place.best_epoch, place.best_score, before, place.stopped, worse)


def _module(model: ir.Model, step: Finetune, device: torch.device) -> GraphModule:
    """The graph ready to learn what ``step`` lets it. Raises UsageError where that is nothing."""
    require_weights(model, step.trainable)
    meant = matches(step.trainable)
    module = GraphModule(model, trainable=meant)
    module.mode.batch_statistics = step.batch_norm != "keep" and all(map(meant, statistics_names(model)))
    module = module.to(device)
    return module._apply(torch.clone)  # into memory of torch's own; see score.tensors

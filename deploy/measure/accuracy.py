"""Scores runners on a dataset."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.adapter.protocol import Runner
from deploy.data.dataset import Dataset, at_once
from deploy.data.scores import Metric
from deploy.progress import SILENT, Progress

_BATCH = 32


def evaluate(
    runner: Runner, dataset: Dataset, metric: Metric, *, batch: int | None = None, progress: Progress = SILENT
) -> Metric:
    """Feed all of ``dataset`` through ``runner`` into ``metric``, and return it.

    In batches of ``batch``, or of about 32 that come out even, fewer of large samples; as the runner
    prescribes if it does.
    """
    _feed(dataset, _size(runner, dataset, batch), [(runner, metric)], progress)
    return metric


def evaluate_both(
    first: tuple[Runner, Metric], second: tuple[Runner, Metric], dataset: Dataset, *, batch: int | None = None
) -> None:
    """`evaluate` for both, ``batch`` being the second one's. Data are read once where both take as many
    samples at a time: to unpack them can take as long as to run a small network on them."""
    sizes = _size(first[0], dataset, None), _size(second[0], dataset, batch)
    if sizes[0] == sizes[1]:
        _feed(dataset, sizes[0], [first, second], SILENT)
        return
    for one, size in zip((first, second), sizes, strict=True):
        _feed(dataset, size, [one], SILENT)


def _feed(dataset: Dataset, size: int, judged: Sequence[tuple[Runner, Metric]], progress: Progress) -> None:
    done, total = 0, len(dataset)
    for part in dataset.batches(size):
        for runner, metric in judged:
            metric.update(run_samples(runner, part.feeds, size), part)
        done += len(part.ids)
        progress.advance(done, total)


def _size(runner: Runner, dataset: Dataset, batch: int | None) -> int:
    return fixed_batch(runner.inputs) or batch or _even(len(dataset), at_once(dataset, _BATCH))


def _even(total: int, most: int) -> int:
    """The largest batch of at most ``most`` samples, and half of it at least, that leaves no smaller one
    behind: for another size runtimes compile a model once more.

    >>> _even(1000, 32), _even(256, 32), _even(101, 32)
    (25, 32, 32)
    """
    return next((size for size in range(most, most // 2 - 1, -1) if total % size == 0), most)

"""Scores a runner on a dataset."""

from __future__ import annotations

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.adapter.protocol import Runner
from deploy.data.dataset import Dataset
from deploy.data.scores import Metric
from deploy.progress import SILENT, Progress

_BATCH = 32


def evaluate(
    runner: Runner, dataset: Dataset, metric: Metric, *, batch: int | None = None, progress: Progress = SILENT
) -> Metric:
    """Feed all of ``dataset`` through ``runner`` into ``metric``, and return it.

    In batches of ``batch``, or of about 32 that come out even; as the runner prescribes if it does.
    """
    done, total = 0, len(dataset)
    size = fixed_batch(runner.inputs) or batch or _even(total, _BATCH)
    for part in dataset.batches(size):
        metric.update(run_samples(runner, part.feeds, size), part)
        done += len(part.ids)
        progress.advance(done, total)
    return metric


def _even(total: int, most: int) -> int:
    """The largest batch of at most ``most`` samples, and half of it at least, that leaves no smaller one
    behind: for another size runtimes compile a model once more.

    >>> _even(1000, 32), _even(256, 32), _even(101, 32)
    (25, 32, 32)
    """
    return next((size for size in range(most, most // 2 - 1, -1) if total % size == 0), most)

"""Scores a runner on a dataset."""

from __future__ import annotations

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.adapter.protocol import Runner
from deploy.data.dataset import Dataset
from deploy.data.scores import Metric
from deploy.progress import SILENT, Progress


def evaluate(
    runner: Runner, dataset: Dataset, metric: Metric, *, batch: int = 32, progress: Progress = SILENT
) -> Metric:
    """Feed all of ``dataset`` through ``runner`` into ``metric``, and return it."""
    size = fixed_batch(runner.inputs) or batch
    done, total = 0, len(dataset)
    for part in dataset.batches(size):
        metric.update(run_samples(runner, part.feeds, size), part)
        done += len(part.ids)
        progress.advance(done, total)
    return metric

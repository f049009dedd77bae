"""Inner values of a graph over many samples, a batch at a time: memory does not grow with their number.

:func:`observe` runs ONNX Runtime, the fast way; :func:`observe_gradients` runs the graph in torch, and says
of each value how a loss changes with it.

    for seen in observe(model, dataset, ["conv1", "relu1"], samples=512):
        seen.values.pop("conv1")          # what is taken out of it is free again before the next batch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import fixed_batch, run_samples
from deploy.data.dataset import Batch, Dataset
from deploy.errors import ModelError
from deploy.execute.reference import open_graph
from deploy.graph.summary import tensor_specs

if TYPE_CHECKING:
    from torch import Tensor, device

    from deploy.execute.module import GraphModule

_BATCH_BYTES = 16 * 2**20
_MOST_SAMPLES = 64


@dataclass(frozen=True)
class Observed:
    """What one batch was seen to be. ``values`` are by name, samples first where a value has them."""

    batch: Batch
    first: int
    """How many samples came before."""
    values: dict[str, np.ndarray]


@dataclass(frozen=True)
class ObservedGradient:
    """The same in torch, on the module's device: each value, and the gradient of the loss there."""

    batch: Batch
    first: int
    values: dict[str, tuple[Tensor, Tensor]]


def observe(
    model: ir.Model,
    dataset: Dataset,
    values: Sequence[str],
    *,
    samples: int,
    threads: int = 1,
    optimised: bool = True,
) -> Iterator[Observed]:
    """``values`` over the first ``samples`` samples of ``dataset``, as ONNX Runtime computes them.

    Inputs and outputs of the graph can be named too. Batches are as large as keeps the values under 16 MB,
    64 samples at most, and as the graph prescribes where its batch is fixed. Raises KeyError for a name that
    the graph lacks, BackendError where it does not run.
    """
    with open_graph(model, optimised=optimised, threads=threads, expose=list(values)) as runner:
        probe = next(dataset.batches(1))
        one = run_samples(runner, probe.feeds, 1, values)
        bytes_each = max(1, sum(one[name].nbytes for name in values))
        del one
        size = fixed_batch(runner.inputs) or max(1, min(_MOST_SAMPLES, _BATCH_BYTES // bytes_each))
        done = 0
        for batch in dataset.batches(size, limit=samples):
            # Not kept in a name here: what the reader lets go of must be gone when the next batch runs.
            yield Observed(batch, done, run_samples(runner, batch.feeds, size, values))
            done += len(batch.ids)


def observe_gradients(
    module: GraphModule,
    dataset: Dataset,
    values: Sequence[str],
    loss: Callable[[Mapping[str, Tensor], Batch], Tensor],
    *,
    samples: int,
    size: int = 32,
) -> Iterator[ObservedGradient]:
    """``values`` over the first ``samples`` samples of ``dataset``, with the gradient of ``loss``.

    ``loss`` takes the graph's outputs by name and the batch, and returns one number. The module runs in the
    mode that it is in; its parameters get no gradients. A value that the loss does not depend on has zeros.
    Where the graph prescribes its batch, a last one that is smaller is filled up, and cut again before the
    loss sees it. Raises KeyError for a name that the graph lacks, ModelError for a value that is no float.
    """
    import torch

    fixed = fixed_batch(tensor_specs(module.model.graph.inputs))
    place = next(module.buffers(), next(module.parameters(), torch.empty(0))).device
    done = 0
    for batch in dataset.batches(fixed or size, limit=samples):
        count = len(batch.ids)
        missing = (fixed or count) - count
        with torch.enable_grad():
            feeds = {name: _fed(array, missing, place) for name, array in batch.feeds.items()}
            results = module(feeds, want=values)
            outputs = {name: _cut(results[name], missing, fixed) for name in module.program.outputs}
            for name in values:
                if not results[name].requires_grad:
                    raise ModelError(
                        f"value '{name}' has no gradient: it depends on no float, or is none",
                        hint="observe values between float operations",
                    )
            found = torch.autograd.grad(
                loss(outputs, batch), [results[name] for name in values], allow_unused=True
            )
        pairs = {}
        for name, gradient in zip(values, found, strict=True):
            value = results[name].detach()
            gradient = torch.zeros_like(value) if gradient is None else gradient
            pairs[name] = _cut(value, missing, fixed), _cut(gradient, missing, fixed)
        del results, outputs, found, feeds
        yield ObservedGradient(batch, done, pairs)
        del pairs
        done += count


def _fed(array: np.ndarray, missing: int, place: device) -> Tensor:
    """An input with its last sample repeated ``missing`` times; floats carry a gradient."""
    import torch

    if missing:
        array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
    fed = torch.tensor(array, device=place)
    return fed.requires_grad_() if fed.is_floating_point() else fed


def _cut(value: Tensor, missing: int, fixed: int | None) -> Tensor:
    """``value`` without the samples that filled the batch, where it has samples at all."""
    return value[: len(value) - missing] if missing and value.ndim and len(value) == fixed else value

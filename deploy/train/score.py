"""Scores a graph while it is trained, with the metrics that judge builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import torch

from deploy.adapter.protocol import Arrays
from deploy.data.dataset import Dataset
from deploy.data.metrics import default_metric, make_metric
from deploy.data.scores import Metric
from deploy.execute.module import GraphModule
from deploy.graph.ends import joined
from deploy.graph.summary import tensor_specs
from deploy.measure.accuracy import evaluate
from deploy.spec.tensors import TensorSpec

MakeMetric = Callable[[], Metric]


class ModuleRunner:
    """A module as a runner, in evaluation mode and without gradients; its batch is free.

    ``names`` says which of the feeds each input of the module takes, where they are called otherwise.
    """

    executed_by = f"torch {torch.__version__}"

    def __init__(
        self, module: GraphModule, device: torch.device, names: Mapping[str, str] | None = None
    ) -> None:
        self._module, self._device, self._names = module, device, names
        self.inputs = tuple(map(_free, tensor_specs(module.model.graph.inputs)))
        self.outputs = tuple(map(_free, tensor_specs(module.model.graph.outputs)))
        self.joined = joined(module.model)

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """Raises BackendError naming the node that failed."""
        names = self._names or {name: name for name in self._module.program.inputs}
        given = tensors({own: feeds[name] for own, name in names.items()}, self._device)
        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                found = self._module(given, want)
        finally:
            self._module.train(training)
        return {name: value.cpu().numpy() for name, value in found.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def tensors(arrays: Mapping[str, np.ndarray], device: torch.device) -> dict[str, torch.Tensor]:
    """Copies in memory of torch's own: what matrix products round depends on how their operands are aligned,
    and numpy's arrays are aligned otherwise in every process."""
    return {name: torch.tensor(array).to(device) for name, array in arrays.items()}


def wide(value: torch.Tensor) -> torch.Tensor:
    """Halves as floats."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _free(spec: TensorSpec) -> TensorSpec:
    if spec.shape and isinstance(spec.shape[0], int):
        return spec.model_copy(update={"shape": ("n", *spec.shape[1:])})
    return spec


def chosen_metric(dataset: Dataset, model_runner: ModuleRunner, teacher: ModuleRunner | None) -> MakeMetric:
    """What labels and outputs suggest; without labels the agreement with the teacher, or with the graph as it
    is now."""
    name = default_metric(dataset, model_runner.outputs)
    if name != "agreement":
        return lambda: make_metric(name)
    parts = model_runner.joined if teacher is None else None  # a teacher's outputs may be other ones
    reference = evaluate(teacher or model_runner, dataset, make_metric(name, joined=parts))
    return lambda: make_metric(name, reference=reference, joined=parts)

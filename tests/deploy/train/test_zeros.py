"""Sparse weights keep their zeros: through every optimizer, averages, learned rounding, and rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import Dataset
from deploy.spec.finetune import Distill, Finetune
from deploy.train.finetune import finetune
from deploy.train.qat import careful, train_quantized
from deploy.train.round import Rounding, round_weights
from deploy.train.zeros import sparse

Constants = Callable[[ir.Model], dict[str, np.ndarray]]


def halved(model: ir.Model, name: str) -> ir.Model:
    """The graph with the first and the third of each four input channels cleared in a weight."""
    copy = model.clone()
    value = copy.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[:, 0::2] = 0
    value.const_value = ir.tensor(array, name=name)
    return copy


@pytest.mark.parametrize(
    "step",
    [
        Finetune(epochs=2, batch=64, lr=0.05, weight_decay=0.01),
        Finetune(epochs=1, batch=64, lr=0.01, optimizer="adamw", ema=0.9, batch_norm="keep"),
    ],
)
def test_zeros_stay_and_the_rest_learns(
    digits: ir.Model, train: Dataset, constants: Constants, tmp_path: Path, step: Finetune
) -> None:
    name = next(n for n, a in constants(digits).items() if a.ndim == 4 and a.shape[1] % 4 == 0)
    model = halved(digits, name)
    before = constants(model)[name]
    taught = step.model_copy(update={"distill": Distill(alpha=0.5)})
    after = constants(finetune(model, taught, train=train, teachers=(digits,), workdir=tmp_path).model)
    assert np.array_equal(after[name] == 0, before == 0)
    assert not np.array_equal(after[name], before)
    dense = [n for n, a in constants(digits).items() if a.ndim > 1 and n != name]
    assert all((after[n] != constants(digits)[n]).any() for n in dense)


def test_codes_of_zeros_stay_zero_when_rounding_is_learned(
    residual: tuple[ir.Model, Dataset], plan: Callable[..., Any], tmp_path: Path
) -> None:
    model, dataset = residual
    model = halved(model, "w3")
    found = plan(model, dataset, 4)
    gone = found.model.graph.initializers["w3"].const_value.numpy() == 0
    assert 0.5 <= gone.mean() < 0.6
    step = careful(labelled=False, epochs=2).model_copy(update={"lr": 1e-2})
    given = found.model, found.tensors, found.codes
    learned = train_quantized(*given, step, train=dataset, largest=7, workdir=tmp_path)
    settings = Rounding(largest=7, samples=48, steps=20)
    rounded = round_weights(found.model, found.blocks, *given[1:], dataset, settings)
    assert learned.better and (learned.codes["w3"] != found.codes["w3"]).any()
    for codes in (found.codes, learned.codes, rounded.codes):
        assert (codes["w3"][gone] == 0).all()


def test_a_weight_that_is_all_zeros_or_hardly_any_is_not_sparse() -> None:
    weight = torch.ones(8, 8)
    weight[0] = 0
    assert not sparse(weight) and not sparse(torch.zeros(8, 8)) and not sparse(torch.zeros(8))
    weight[1] = 0
    assert sparse(weight)

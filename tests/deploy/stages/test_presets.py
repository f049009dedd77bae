"""Which steps a preset means, by model, data and target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from convolutional import CONVOLUTIONAL

from deploy.data.dataset import Dataset, open_dataset
from deploy.spec.compression import Prune, Sparsify
from deploy.spec.finetune import Finetune
from deploy.spec.recipe import Preset, Recipe, check_order
from deploy.spec.tensors import TensorSpec
from deploy.stages.presets import Means, expand

PRESETS: tuple[Preset, ...] = ("fast", "balanced", "smallest")
FIXED = """<ir_version: 10, opset_import: ["" : 21]> g (float[n, 2] x) => (float[n, 2] y) { y = Relu (x) }"""


def samples(*, labels: bool = True) -> Dataset:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 3, 8, 8))
    arrays = {"x": np.zeros((4, 3, 8, 8), np.float32)}
    return open_dataset({**arrays, **({"y": np.zeros(4, np.int64)} if labels else {})}, [spec])


@pytest.fixture(scope="module")
def means() -> Means:
    return Means(model=CONVOLUTIONAL["vgg"](), samples=True, train=samples(), pays=False, target="here")


def names(recipe: Recipe) -> list[str]:
    check_order(recipe.steps)
    return [step.step for step in recipe.steps]


def test_with_training_data(means: Means) -> None:
    assert names(expand("fast", means)) == ["prune"]
    assert names(expand("balanced", means)) == ["prune", "finetune"]
    assert names(expand("smallest", means)) == ["prune", "finetune", "lowrank"]
    shares = [step.macs for p in PRESETS for step in expand(p, means).steps if isinstance(step, Prune)]
    assert shares == sorted(shares) and len(set(shares)) == 3
    trained = [step for step in expand("balanced", means).steps if isinstance(step, Finetune)]
    assert trained[0].distill is not None and 0 < trained[0].distill.alpha < 1


def test_fast_never_trains(means: Means) -> None:
    for step in expand("fast", replace(means, pays=True)).steps:
        assert not isinstance(step, Finetune) and getattr(step, "finetune", None) is None
        assert not getattr(step, "tune", 0)


def test_without_training_data_nothing_trains_and_that_is_said(means: Means) -> None:
    for preset in ("balanced", "smallest"):
        found = expand(preset, replace(means, train=None))
        assert "finetune" not in names(found)
        assert all(getattr(step, "finetune", None) is None for step in found.steps)
        assert any("no training data" in note for note in found.notes)
        assert any(isinstance(step, Prune) and step.tune for step in found.steps)


def test_unlabelled_training_data_teach_by_the_model_alone(means: Means) -> None:
    found = expand("balanced", replace(means, train=samples(labels=False)))
    assert [s.distill.alpha for s in found.steps if isinstance(s, Finetune) and s.distill] == [0.0]


def test_sparsity_where_it_pays(means: Means) -> None:
    assert any("nothing on here is faster" in note for note in expand("fast", means).notes)
    found = expand("smallest", replace(means, pays=True))
    assert names(found)[-1] == "sparsify" and not any("2:4" in note for note in found.notes)
    (step,) = (s for s in found.steps if isinstance(s, Sparsify))
    assert step.pattern == "2:4" and step.finetune is not None


def test_what_cannot_work_is_left_out_and_said(means: Means) -> None:
    nothing = replace(means, model=ir.from_onnx_text(FIXED))
    assert expand("fast", nothing).steps == ()
    assert any("no channels" in note for note in expand("fast", nothing).notes)
    blind = expand("smallest", replace(means, samples=False, train=None))
    assert blind.steps == () and any("no calibration samples" in note for note in blind.notes)
    taught = expand("balanced", replace(means, samples=False))
    assert [s.criterion for s in taught.steps if isinstance(s, Prune)] == ["l2"]


def test_a_fixed_batch_is_not_trained(means: Means) -> None:
    model = means.model.clone()
    value = model.graph.inputs[0]
    assert value.shape is not None
    value.shape = ir.Shape([1, *list(value.shape)[1:]])
    found = expand("balanced", replace(means, model=model))
    assert names(found) == ["prune"] and any("batch" in note for note in found.notes)

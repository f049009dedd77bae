"""Recipe steps inside a build: what they need, what they change, and that nothing is done twice."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")
from deploy.bundle.read import Bundle
from deploy.bundle.verify import verify_bundle
from deploy.errors import UsageError
from deploy.pipeline import build
from deploy.spec.ablation import StepRecord
from deploy.spec.compression import Sparsify
from deploy.spec.finetune import Distill, Finetune
from deploy.spec.project import MetricSection
from deploy.spec.recipe import Recipe

Build = Callable[..., Bundle]
ONCE = Finetune(epochs=1, batch=8, lr=0.05)


@pytest.fixture
def labelled(images: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {**images, "y": np.arange(len(images["x"])) % 4}


@pytest.fixture
def make(
    network: Path, images: dict[str, np.ndarray], labelled: dict[str, np.ndarray], tmp_path: Path
) -> Build:
    def run(*steps: Finetune, model: Path = network, **settings: object) -> Bundle:
        given = {
            "target": "x86-avx2", "data": images, "train": labelled, "measure": False,
            "out": tmp_path / "dist", "cache": tmp_path / "cache", "runtime": "ort",
            "recipe": Recipe(steps=steps),
        }  # fmt: skip
        return build(model, **{**given, **settings})  # type: ignore[arg-type]

    return run


def weights(bundle: Bundle) -> dict[str, np.ndarray]:
    graph = ir.load(bundle.folder / "graph.onnx").graph
    return {name: value.const_value.numpy() for name, value in graph.initializers.items()}


def steps_of(bundle: Bundle) -> tuple[StepRecord, ...]:
    assert bundle.measurements.compression is not None
    return bundle.measurements.compression.steps


def test_a_trained_graph_ships_with_its_history(make: Build) -> None:
    bundle = make(ONCE)
    before, after = weights(make()), weights(make(ONCE))
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert bundle.manifest.recipe.steps == (ONCE,)
    assert (bundle.folder / "training" / "1-finetune.csv").read_text().startswith("batch,epoch,loss")
    assert not any(name.startswith("training") for name in bundle.manifest.files), "one run, not the digest"
    (row,) = steps_of(bundle)
    assert row.told == "trained for 1 epochs: the last weights, not validated"
    assert row.figures.weight_bytes == sum(array.nbytes for array in after.values())
    verify_bundle(bundle.folder)


def test_labelled_data_that_choose_validate(make: Build, labelled: dict[str, np.ndarray]) -> None:
    """Never worse than the graph as it came, whatever the training did."""
    bundle = make(Finetune(epochs=2, batch=8, lr=5.0, clip=0.5), data=labelled)
    (row,) = steps_of(bundle)
    ablation = bundle.measurements.compression
    assert ablation is not None and ablation.before.score is not None and row.figures.score is not None
    assert row.figures.score >= ablation.before.score
    assert (ablation.role, ablation.samples) == ("calibration", 32)


def test_a_second_build_does_not_train_again(make: Build, tmp_path: Path) -> None:
    first, again = make(ONCE), make(ONCE)
    assert again.digest == first.digest
    assert {s.name: s.cached for s in again.measurements.stages}["finetune"]
    assert not {s.name: s.cached for s in first.measurements.stages}["finetune"]
    assert not any((tmp_path / "cache" / "unfinished").iterdir())


def test_steps_follow_each_other(make: Build) -> None:
    bundle = make(ONCE, Finetune(epochs=1, batch=8, lr=0.01))
    names = [stage.name for stage in bundle.measurements.stages]
    assert names.count("finetune") == 2
    assert [(row.number, row.step.step) for row in steps_of(bundle)] == [(1, "finetune"), (2, "finetune")]
    curves = sorted(p.name for p in (bundle.folder / "training").glob("*.csv"))
    assert curves == ["1-finetune.csv", "2-finetune.csv"]


def test_batch_norm_is_put_back_and_folded_again(make: Build) -> None:
    bundle = make(Finetune(epochs=1, batch=8, lr=0.05, batch_norm="insert"))
    assert "2 batch norms put back" in steps_of(bundle)[0].told
    kinds = [node.op_type for node in ir.load(bundle.folder / "graph.onnx").graph]
    assert kinds == [node.op_type for node in ir.load(make().folder / "graph.onnx").graph]


def test_patterns_mean_the_same_weights_where_batch_norm_is_put_back(make: Build) -> None:
    step = Finetune(epochs=1, batch=8, lr=0.05, batch_norm="insert", trainable=("w2", "b2"))
    before, bundle = weights(make()), make(step)
    assert "1 batch norms put back" in steps_of(bundle)[0].told
    after = weights(bundle)  # folding calls the bias anew
    same = {name for name in after if name in before and np.array_equal(before[name], after[name])}
    assert same == before.keys() - {"w2", "b2"}
    with pytest.raises(UsageError, match="'w9' is the name of no weight"):
        make(Finetune(epochs=1, batch=8, batch_norm="insert", trainable=("w2", "w9")))


def test_batch_norm_is_put_back_where_the_batch_is_fixed(make: Build, network: Path, tmp_path: Path) -> None:
    fixed = ir.load(network)
    for value in (*fixed.graph.inputs, *fixed.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([1, *list(value.shape)[1:]])
    ir.save(fixed, tmp_path / "fixed.onnx")
    bundle = make(Finetune(epochs=1, batch=8, batch_norm="insert"), model=tmp_path / "fixed.onnx")
    assert "2 batch norms put back" in steps_of(bundle)[0].told


def test_another_model_teaches(make: Build, random_network: Callable[[int], Path]) -> None:
    alone = make(Finetune(epochs=1, batch=8, distill=Distill(alpha=0.0)))
    other = make(Finetune(epochs=1, batch=8, distill=Distill(alpha=0.0, teachers=(str(random_network(5)),))))
    assert alone.digest != other.digest


def test_a_teacher_that_changed_teaches_anew(make: Build, random_network: Callable[[int], Path]) -> None:
    """Its file keeps the name that the step knows it by."""
    step = Finetune(epochs=1, batch=8, distill=Distill(alpha=0.0, teachers=(str(random_network(5)),)))
    first = make(step)
    random_network(6)
    assert make(step).digest != first.digest
    random_network(5)
    assert make(step).digest == first.digest


def test_a_metric_whose_code_changed_validates_anew(
    make: Build, labelled: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scores = []
    for answer in ("0.25", "0.875"):
        code = f"def judge(outputs, targets):\n    return {answer}\n"
        (tmp_path / "own_metric.py").write_text(code)
        monkeypatch.delitem(sys.modules, "own_metric", raising=False)  # as in a new process
        bundle = make(ONCE, data=labelled, metric=MetricSection(name="python:own_metric:judge"))
        scores.append(steps_of(bundle)[0].figures.score)
    assert scores == [0.25, 0.875]


def test_without_training_data_the_step_is_named(make: Build) -> None:
    with pytest.raises(UsageError, match=r"\[\[recipe\]\] finetune: there are no training data") as caught:
        make(ONCE, train=None)
    assert "--train" in caught.value.hint


def test_other_data_and_other_settings_train_anew(make: Build, labelled: dict[str, np.ndarray]) -> None:
    first = make(ONCE)
    assert make(ONCE, train={**labelled, "x": labelled["x"] + 1}).digest != first.digest
    assert make(ONCE, seed=1).digest != first.digest


def test_zeros_are_tuned_anew_on_other_training_data(make: Build, labelled: dict[str, np.ndarray]) -> None:
    other = {**labelled, "x": labelled["x"][::-1] * 3}
    for step, same in ((Sparsify(anyway=True, tune=3), False), (Sparsify(anyway=True), True)):
        before, after = weights(make(step)), weights(make(step, train=other))
        assert all(np.array_equal(before[name], after[name]) for name in before) == same

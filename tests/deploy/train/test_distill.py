"""Distillation against the formula written by hand; teachers that do not fit; what is remembered."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import Dataset, open_dataset
from deploy.errors import DataError, DeployError, ModelError, UsageError
from deploy.execute.reference import open_graph
from deploy.graph.summary import tensor_specs
from deploy.spec.finetune import Augment, Distill, FeaturePair, Finetune
from deploy.train.distill import Features, soft_loss, temperature
from deploy.train.finetune import Trained, finetune
from deploy.train.loss import Head

Fill = Callable[[str, dict[str, np.ndarray]], ir.Model]
CLASSES = Head("y", "", "classes", "y", False, 1)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def draw(*shape: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape) * 2 for _ in range(3)]


@pytest.mark.parametrize("heat", [1.0, 4.0])
def test_classes_by_hand(heat: float) -> None:
    z, t1, t2 = draw(7, 5)
    p = (softmax(t1 / heat) + softmax(t2 / heat)) / 2
    wanted = heat**2 * (p * (np.log(p) - np.log(softmax(z / heat)))).sum(1).mean()
    given = [torch.from_numpy(t)[:, :, None] for t in (t1, t2)]
    found = soft_loss(CLASSES, torch.from_numpy(z)[:, :, None], given, heat)
    assert found.item() == pytest.approx(wanted, rel=1e-12)
    assert soft_loss(CLASSES, given[0], given[:1], heat).item() == pytest.approx(0, abs=1e-12)


def test_yes_and_no_by_hand() -> None:
    z, t, _ = draw(7, 5)
    p, q = (1 / (1 + np.exp(-v / 3)) for v in (t, z))
    wanted = 9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    head = Head("y", "", "each", "y", False, 1)
    assert soft_loss(head, *(torch.from_numpy(z), [torch.from_numpy(t)]), 3.0).item() == pytest.approx(wanted)


def test_numbers_by_hand() -> None:
    z, t1, t2 = draw(7, 5)
    head = Head("y", "", "values", "y", False, 1)
    found = soft_loss(head, torch.from_numpy(z), [torch.from_numpy(t1), torch.from_numpy(t2)], 4.0)
    assert found.item() == pytest.approx(((z - (t1 + t2) / 2) ** 2).mean())


def test_the_temperature_goes_in_a_straight_line() -> None:
    assert [temperature(Distill(temperature=5), s) for s in (0, 0.5, 1)] == [5, 5, 5]
    assert [temperature(Distill(temperature=5, temperature_end=1), s) for s in (0, 0.5, 1)] == [5, 3, 1]


def test_features_are_mapped_where_channels_differ() -> None:
    settings = Distill(
        features=(FeaturePair(student="a", teacher="b"), FeaturePair(student="c", teacher="d"))
    )
    student = {"a": torch.randn(2, 3, 4, 4), "c": torch.randn(2, 6)}
    teacher = {"b": torch.randn(2, 5, 4, 4), "d": torch.randn(2, 6)}
    matched = Features(settings, student, teacher)
    assert {n: tuple(p.shape) for n, p in matched.named_parameters()} == {"maps.0.weight": (5, 3)}
    (weight,) = matched.parameters()
    mapped = torch.nn.functional.conv2d(student["a"], weight[:, :, None, None])  # a 1x1 convolution
    pairs = ((mapped, teacher["b"]), (student["c"], teacher["d"]))
    wanted = [((own - other) ** 2).mean() / (other**2).mean() for own, other in pairs]
    assert torch.allclose(matched(student, teacher), torch.stack(wanted).sum())
    with pytest.raises(ModelError, match="'a' has shape"):
        Features(settings, student, {**teacher, "b": torch.randn(2, 5, 2, 2)})


TINY_TEACHER = """<ir_version: 10, opset_import: ["" : 21]>
g (float[n, 1, 16, 16] {x}) => (float[n, {classes}] {y}) {{
    a = Conv <kernel_shape = [4, 4], strides = [4, 4]> ({x}, w1)
    b = Relu (a)
    c = Flatten (b)
    {y} = Gemm <transB = 1> (c, w2)
}}"""


def other(fill: Fill, x: str = "x", y: str = "y", classes: int = 10) -> ir.Model:
    generator = np.random.default_rng(5)
    arrays = {"w1": generator.standard_normal((4, 1, 4, 4)), "w2": generator.standard_normal((classes, 64))}
    text = TINY_TEACHER.format(x=x, y=y, classes=classes)
    return fill(text, {name: (a / 3).astype(np.float32) for name, a in arrays.items()})


def distilled(
    model: ir.Model, train: Dataset, folder: Path, settings: Distill, *teachers: ir.Model, **more: object
) -> Trained:
    step = Finetune.model_validate({"epochs": 1, "batch": 64, "lr": 0.02, **more, "distill": settings})
    return finetune(model, step, train=train, teachers=teachers, workdir=folder)


def test_one_step_is_the_one_done_by_hand(
    tiny: ir.Model,
    digits: ir.Model,
    train: Dataset,
    tmp_path: Path,
    constants: Callable[..., dict[str, np.ndarray]],
) -> None:
    """Both teachers' gradients and the labels' go through plain SGD into the last layer's bias."""
    step = Finetune(
        epochs=1, batch=300, lr=0.5, schedule="constant", momentum=0, nesterov=False, clip=0, weight_decay=0,
        batch_norm="keep", trainable=("b3",), distill=Distill(alpha=0.3, temperature=2),
    )  # fmt: skip
    trained = finetune(tiny, step, train=train, teachers=(digits, tiny), workdir=tmp_path)
    batch = next(train.batches(300))
    x, y = batch.feeds["x"], batch.targets[""]
    with open_graph(tiny, optimised=False) as student, open_graph(digits, optimised=False) as teacher:
        z = student.run({"x": x})["y"].astype(np.float64)
        t = teacher.run({"x": x})["logits"].astype(np.float64)
    hard = softmax(z) - np.eye(10)[y]
    soft = 2 * (softmax(z / 2) - (softmax(t / 2) + softmax(z / 2)) / 2)  # T^2 / T
    wanted = constants(tiny)["b3"] - 0.5 * (0.3 * hard + 0.7 * soft).mean(0)
    assert np.allclose(constants(trained.model)["b3"], wanted, atol=1e-5)


def test_answers_are_remembered_and_say_the_same(
    tiny: ir.Model,
    digits: ir.Model,
    train: Dataset,
    tmp_path: Path,
    constants: Callable[..., dict[str, np.ndarray]],
) -> None:
    kept = distilled(tiny, train, tmp_path / "kept", Distill(), digits)
    assert len(list((tmp_path / "kept").glob("teacher-*"))) == 1
    pair = FeaturePair(student="y", teacher="logits")  # what inner values are like is not remembered
    nothing = Distill(feature_weight=1e-12, features=(pair,))
    live = distilled(tiny, train, tmp_path / "live", nothing, digits)
    assert not list((tmp_path / "live").glob("teacher-*"))
    first, second = constants(kept.model), constants(live.model)
    assert all(np.allclose(first[n], second[n], atol=1e-5) for n in first)
    distilled(tiny, train, tmp_path / "moved", Distill(), digits, augment=Augment(flip=True))
    assert not list((tmp_path / "moved").glob("teacher-*"))


def test_a_teacher_helps_where_labels_are_missing(
    tiny: ir.Model, digits: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path
) -> None:
    x = next(train.batches(256)).feeds["x"]
    unlabelled = open_dataset({"x": x}, tensor_specs(tiny.graph.inputs))
    step = Finetune(epochs=8, batch=32, lr=0.05, distill=Distill(alpha=0))
    trained = finetune(
        tiny, step, train=unlabelled, validation=validation, teachers=(digits,), workdir=tmp_path
    )
    assert trained.before is not None
    assert trained.score is not None
    assert trained.before < 0.4
    assert trained.score > 0.8


def test_without_any_labels_the_teacher_is_agreed_with(
    tiny: ir.Model, digits: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path
) -> None:
    bare = [
        open_dataset({"x": next(d.batches(300)).feeds["x"]}, tensor_specs(tiny.graph.inputs))
        for d in (train, validation)
    ]
    step = Finetune(epochs=6, batch=32, lr=0.05, distill=Distill(alpha=0))
    trained = finetune(tiny, step, train=bare[0], validation=bare[1], teachers=(digits,), workdir=tmp_path)
    assert trained.history.metric == "agreement"
    assert trained.before is not None
    assert trained.score is not None
    assert trained.before < 0.4 < 0.75 < trained.score


def test_a_full_disk_lets_the_teacher_run(
    tiny: ir.Model, digits: ir.Model, train: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert distilled(tiny, train, tmp_path, Distill(), digits).best == 1
    assert not list(tmp_path.glob("teacher-*"))


def test_the_graph_teaches_itself_unless_others_do(tiny: ir.Model, train: Dataset, tmp_path: Path) -> None:
    trained = distilled(tiny, train, tmp_path, Distill(alpha=0), batch_norm="keep", weight_decay=0)
    assert all(point.loss == pytest.approx(0, abs=1e-6) for point in trained.history.points)


def test_inner_values_become_alike(
    tiny: ir.Model, digits: ir.Model, train: Dataset, fill: Fill, tmp_path: Path
) -> None:
    inner = next(
        n.outputs[0].name for n in digits.graph if n.op_type == "Relu" and "block2" in (n.name or "")
    )
    assert inner is not None
    pairs = (FeaturePair(student="c", teacher=inner),)
    trained = distilled(
        tiny, train, tmp_path, Distill(alpha=1, features=pairs), digits, loss="cross_entropy", epochs=3
    )
    first, last = trained.history.points[0], trained.history.points[-1]
    assert last.loss < first.loss


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"classes": 7}, "teacher 2 knows 7 classes, output 'y' has 10"),
        ({"x": "image", "y": "answer"}, ""),
    ],
)
def test_teachers_by_another_name(
    tiny: ir.Model, train: Dataset, fill: Fill, tmp_path: Path, names: dict[str, object], said: str
) -> None:
    teacher = other(fill, **names)  # type: ignore[arg-type]
    if not said:
        distilled(tiny, train, tmp_path, Distill(), other(fill), teacher)
        return
    with pytest.raises(ModelError, match=said):
        distilled(tiny, train, tmp_path, Distill(), other(fill), teacher)


def test_a_teacher_of_other_images_is_told(
    tiny: ir.Model, train: Dataset, fill: Fill, tmp_path: Path
) -> None:
    text = TINY_TEACHER.format(x="x", y="y", classes=10).replace("n, 1, 16, 16", "n, 3, 32, 32")
    arrays = {"w1": np.zeros((4, 3, 4, 4), np.float32), "w2": np.zeros((10, 256), np.float32)}
    with pytest.raises(ModelError, match="teacher 1 cannot run on what the model is fed with: Conv 'Conv_0'"):
        distilled(tiny, train, tmp_path, Distill(), fill(text, arrays))


@pytest.mark.parametrize(
    ("pair", "said"),
    [(("q", "logits"), "the model has no value 'q'"), (("c", "q"), "the first teacher has no value")],
)
def test_a_value_that_is_not_there_is_told(
    tiny: ir.Model, digits: ir.Model, train: Dataset, tmp_path: Path, pair: tuple[str, str], said: str
) -> None:
    settings = Distill(features=(FeaturePair(student=pair[0], teacher=pair[1]),))
    with pytest.raises(UsageError, match=said):
        distilled(tiny, train, tmp_path, settings, digits)


def test_without_labels_or_settings(tiny: ir.Model, digits: ir.Model, train: Dataset, tmp_path: Path) -> None:
    bare = open_dataset({"x": next(train.batches(20)).feeds["x"]}, tensor_specs(tiny.graph.inputs))
    with pytest.raises(DataError, match="training needs labels"):
        finetune(tiny, Finetune(), train=bare, workdir=tmp_path)
    with pytest.raises(DataError, match="training needs labels"):
        distilled(tiny, bare, tmp_path, Distill(alpha=0.5), digits)
    with pytest.raises(DeployError, match="does not distill"):
        finetune(tiny, Finetune(), train=train, teachers=(digits,), workdir=tmp_path)

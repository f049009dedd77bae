"""Losses against formulas written by hand in float64, for every end that a graph may have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from deploy.data.dataset import open_dataset
from deploy.errors import DataError, UsageError
from deploy.execute.module import GraphModule
from deploy.spec.finetune import Finetune
from deploy.spec.tensors import TensorSpec
from deploy.train.loss import check_labels, class_axis, heads, make_task

COUNT = 6
PLAIN = Finetune()


def ended(tail: str, shape: str, rank: int = 2) -> ir.Model:
    """A graph of ``z`` with this end."""
    inside = {2: "n, 5", 3: "n, 7, 5", 4: "n, 5, 3, 4"}[rank]
    return ir.from_onnx_text(
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[{inside}] x) => (float[{shape}] y) '
        f"{{ z = Tanh (x) {tail} }}"
    )


def scores(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((COUNT, *shape)).astype(np.float32)


def loss(model: ir.Model, x: np.ndarray, target: np.ndarray, step: Finetune = PLAIN) -> float:
    module = GraphModule(model).double()
    feeds = {"x": torch.from_numpy(x).double()}
    shapes = {name: list(value.shape) for name, value in module(feeds).items()}
    found = heads(model, shapes, {"": target}, step)
    results = module(feeds, [h.read for h in found if h.read not in module.program.outputs])
    return float(
        make_task(found, step, module.program.outputs, None)(results, {"": torch.from_numpy(target)})
    )


def log_softmax(z: np.ndarray, axis: int = 1) -> np.ndarray:
    return np.asarray(z - np.log(np.exp(z).sum(axis, keepdims=True)))


LABELS = np.array([0, 4, 2, 2, 1, 3])
ENDS = {
    "scores": ("y = Identity (z)", "n, 5"),
    "softmax": ("y = Softmax <axis = 1> (z)", "n, 5"),
    "softmax, then a shape": ("p = Softmax <axis = 1> (z) s = Shape (p) y = Reshape (p, s)", "n, 5"),
    "log softmax": ("y = LogSoftmax <axis = 1> (z)", "n, 5"),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_cross_entropy_is_the_same_whatever_stands_at_the_end(end: str) -> None:
    x = scores(5)
    wanted = -log_softmax(np.tanh(x.astype(np.float64)))[np.arange(COUNT), LABELS].mean()
    assert loss(ended(*ENDS[end]), x, LABELS) == pytest.approx(wanted, rel=1e-12)


def test_label_smoothing_and_an_ignored_label() -> None:
    x = scores(5)
    logs = log_softmax(np.tanh(x.astype(np.float64)))
    own = logs[np.arange(COUNT), LABELS]
    smooth = -(0.9 * own + 0.1 * logs.mean(1)).mean()
    model = ended(*ENDS["scores"])
    assert loss(model, x, LABELS, Finetune(label_smoothing=0.1)) == pytest.approx(smooth)
    assert loss(model, x, LABELS, Finetune(ignore_label=2)) == pytest.approx(-own[LABELS != 2].mean())
    assert loss(model, x, np.full(COUNT, 2), Finetune(ignore_label=2)) == 0


def test_labels_of_pixels_and_of_words() -> None:
    draw = np.random.default_rng(1)
    x, pixels = scores(5, 3, 4), draw.integers(0, 5, (COUNT, 3, 4))
    logs = log_softmax(np.tanh(x.astype(np.float64)))
    wanted = -np.take_along_axis(logs, pixels[:, None], 1).mean()
    assert loss(ended("y = Identity (z)", "n, 5, 3, 4", 4), x, pixels) == pytest.approx(wanted)
    x, words = scores(7, 5), draw.integers(0, 5, (COUNT, 7))
    logs = log_softmax(np.tanh(x.astype(np.float64)), axis=2)
    wanted = -np.take_along_axis(logs, words[:, :, None], 2).mean()
    assert loss(ended("y = Identity (z)", "n, 7, 5", 3), x, words) == pytest.approx(wanted)


def test_probabilities_as_labels() -> None:
    x, soft = scores(5), np.random.default_rng(2).dirichlet(np.ones(5), COUNT)
    wanted = -(soft * log_softmax(np.tanh(x.astype(np.float64)))).sum(1).mean()
    assert loss(ended(*ENDS["softmax"]), x, soft, Finetune(loss="cross_entropy")) == pytest.approx(wanted)


def test_each_class_for_itself() -> None:
    x, wanted = scores(5), (np.random.default_rng(3).random((COUNT, 5)) < 0.5).astype(np.float32)
    z = np.tanh(x.astype(np.float64))
    by_hand = -(wanted * -np.log1p(np.exp(-z)) + (1 - wanted) * -np.log1p(np.exp(z))).mean()
    assert loss(ended("y = Sigmoid (z)", "n, 5"), x, wanted) == pytest.approx(by_hand)
    one_hot = np.eye(5, dtype=np.float32)[LABELS]
    model = ended("y = Sigmoid (z)", "n, 5")
    assert loss(model, x, LABELS) == pytest.approx(loss(model, x, one_hot))


def test_each_class_of_each_pixel() -> None:
    x, pixels = scores(5, 3, 4), np.random.default_rng(1).integers(0, 5, (COUNT, 3, 4))
    model = ended("y = Sigmoid (z)", "n, 5, 3, 4", 4)
    one_hot = np.moveaxis(np.eye(5, dtype=np.float32)[pixels], -1, 1).copy()
    assert loss(model, x, pixels) == pytest.approx(loss(model, x, one_hot))


def test_numbers_are_compared_squared() -> None:
    x, target = scores(5), scores(5)[::-1].copy()
    wanted = ((np.tanh(x.astype(np.float64)) - target) ** 2).mean()
    assert loss(ended("y = Identity (z)", "n, 5"), x, target) == pytest.approx(wanted)
    wanted = ((log_softmax(np.tanh(x.astype(np.float64))) - target) ** 2).mean()
    model = ended("y = LogSoftmax <axis = 1> (z)", "n, 5")
    assert loss(model, x, target, Finetune(loss="mse")) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("shape", "target", "axis"),
    [
        ((4, 10), (4,), 1), ((4, 10, 1, 1), (4,), 1), ((4, 1, 1, 10), (4,), 3), ((4, 5, 8, 8), (4, 8, 8), 1),
        ((4, 8, 8, 5), (4, 8, 8), 3), ((4, 12, 30), (4, 12), 2), ((4, 1), (4,), None), ((4, 3), (4, 7), None),
        ((4, 10), None, 1), ((4, 10, 1, 1), None, 1), ((4, 12, 30), None, 2), ((4, 5, 8, 8), None, 1),
        ((4,), None, None),
    ],
)  # fmt: skip
def test_the_axis_of_classes(
    shape: tuple[int, ...], target: tuple[int, ...] | None, axis: int | None
) -> None:
    assert class_axis(shape, target) == axis


@pytest.mark.parametrize(
    ("target", "step", "said"),
    [
        (np.zeros((COUNT, 3), int), Finetune(loss="cross_entropy"), "no axis of classes"),
        (np.zeros((COUNT, 3), np.float32), PLAIN, r"shape \[6, 3\], the output \[6, 5\]"),
        (np.zeros((COUNT, 3), int), PLAIN, r"shape \[6, 3\], the output \[6, 5\]"),
    ],
)
def test_labels_of_another_shape_are_told(target: np.ndarray, step: Finetune, said: str) -> None:
    with pytest.raises(DataError, match=said):
        loss(ended(*ENDS["scores"]), scores(5), target, step)


def test_labels_of_another_name_are_told() -> None:
    model = ended(*ENDS["scores"])
    with pytest.raises(DataError, match=r"'y.a', 'y.b', and outputs y"):
        heads(model, {"y": [2, 5]}, {"a": np.zeros(2, int), "b": np.zeros(2, int)}, PLAIN)
    (head,) = heads(model, {"y": [2, 5]}, {"y": np.zeros(2, int), "b": np.zeros(2, int)}, PLAIN)
    assert head.target == "y"


def test_a_class_too_many_is_told_by_sample() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=("n", 5))
    model, labels = ended(*ENDS["scores"]), LABELS.copy()
    labels[4] = 5
    dataset = open_dataset({"x": scores(5), "y": labels}, [spec])
    found = heads(model, {"y": [COUNT, 5]}, {"": labels}, PLAIN)
    with pytest.raises(DataError, match="sample 4 has label 5, but the model has classes 0 to 4"):
        check_labels(dataset, found, {"y": [COUNT, 5]}, PLAIN)
    check_labels(dataset, found, {"y": [COUNT, 5]}, Finetune(ignore_label=5))


def test_a_graph_that_ends_in_argmax_cannot_be_trained() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[n, 5] x) => (int64[n] y) '
        "{ y = ArgMax <axis = 1, keepdims = 0> (x) }"
    )
    with pytest.raises(UsageError, match="whole numbers only"):
        heads(model, {}, {"": LABELS}, PLAIN)


USERS = {
    "mean_of_samples": "return (outputs['y'].sum(1) - targets['']) ** 2",
    "raises": "return outputs['z']",
    "a_float": "return 1.0",
    "detached": "return outputs['y'].detach().sum()",
    "a_matrix": "return outputs['y']",
}


@pytest.fixture
def users(tmp_path: Path) -> Callable[[str], Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]]:
    """The user's module of losses in the project's folder."""
    name = f"users_losses_{abs(hash(tmp_path))}"
    body = "".join(f"def {n}(outputs, targets):\n    {line}\n" for n, line in USERS.items())
    (tmp_path / f"{name}.py").write_text(body)

    def task(function: str) -> Callable[[dict[str, Tensor], dict[str, Tensor]], Tensor]:
        return make_task((), Finetune(loss=f"python:{name}:{function}"), ("y",), tmp_path)

    return task


def test_the_users_loss(users: Callable[[str], Callable[..., Tensor]]) -> None:
    y = torch.ones(3, 2, requires_grad=True)
    found = users("mean_of_samples")({"y": y, "inner": y}, {"": torch.tensor([0.0, 1.0, 2.0])})
    assert found.item() == pytest.approx((4 + 1 + 0) / 3)
    found.backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", "failed: KeyError"),
        ("a_float", "returned float"),
        ("detached", "no output went into"),
        ("a_matrix", r"returned torch.float32 \[3, 2\]"),
    ],
)
def test_a_users_loss_that_is_none(
    users: Callable[[str], Callable[..., Tensor]], function: str, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        users(function)({"y": torch.ones(3, 2, requires_grad=True)}, {"": torch.zeros(3)})

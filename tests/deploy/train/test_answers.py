"""Teachers that are asked beforehand: about views made by hand, and what is learned from that in one step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import Dataset
from deploy.errors import UsageError
from deploy.execute.module import GraphModule
from deploy.execute.reference import open_graph
from deploy.spec.finetune import Augment, Distill, FeaturePair, Finetune
from deploy.spec.tensors import Layout
from deploy.train.answers import Answers, Views, draw_views, remember, require_mixable
from deploy.train.augment import channels_last
from deploy.train.distill import Teacher
from deploy.train.finetune import finetune
from deploy.train.loader import open_loader
from deploy.train.loss import Head
from deploy.train.memory import kept_memory

Constants = Callable[..., dict[str, np.ndarray]]
MOVES = Augment(crop=3, flip=True)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(e / e.sum(1, keepdims=True))


def seen(x: np.ndarray, views: Views, index: int) -> np.ndarray:
    """The images moved and mirrored, one by one."""
    move, mirrored = views.drawn[index].move, views.drawn[index].mirrored
    assert move is not None
    assert mirrored is not None
    found = []
    for i, image in enumerate(x):
        wide = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="edge")
        top, left = 3 + int(move[0, i]), 3 + int(move[1, i])
        one = wide[:, top : top + x.shape[2], left : left + x.shape[3]]
        found.append(one[:, :, ::-1] if mirrored[i] else one)
    return np.stack(found)


def answers_to(model: ir.Model, x: np.ndarray) -> np.ndarray:
    with open_graph(model, optimised=False) as session:
        return next(iter(session.run({"x": x}).values())).astype(np.float64)


def teacher_of(model: ir.Model) -> Teacher:
    head = Head("logits", "", "classes", "logits", False, 1)
    return Teacher(GraphModule(model), {"x": "x"}, (head,))


def asked(model: ir.Model, train: Dataset, folder: Path, views: Views) -> Answers:
    images: dict[str, Layout] = {"x": "NCHW"}
    found = remember([teacher_of(model)], train, 50, folder, ["t"], images, torch.device("cpu"), views)
    assert found is not None
    return found


def test_epochs_take_views_in_turn(
    digits: ir.Model, train: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = next(train.batches(300)).feeds["x"]
    views = draw_views(2, len(x), MOVES, seed=0)
    found = asked(digits, train, tmp_path, views)
    rows = np.array([200, 3, 3, 90])
    for epoch in (0, 1, 3):
        moved = seen(x, views, epoch % 2)
        (own,) = found.of(rows, epoch, torch.device("cpu"))
        assert np.allclose(own[0].numpy()[:, :, 0], answers_to(digits, moved)[rows], atol=1e-4)
    assert not np.allclose(seen(x, views, 0), seen(x, views, 1))

    def never(*_: object) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(Teacher, "scores", never)
    again = asked(digits, train, tmp_path, views)
    assert np.array_equal(again.arrays[1][0][0], found.arrays[1][0][0])


def test_one_step_is_the_one_done_by_hand(
    tiny: ir.Model,
    digits: ir.Model,
    train: Dataset,
    tmp_path: Path,
    constants: Constants,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Images in pairs, first with last, a quarter of the partner: so are labels and the teacher's answers."""
    monkeypatch.setattr("deploy.train.augment._beta", lambda *_: 0.25)
    monkeypatch.setattr(torch, "randperm", lambda n, generator=None: torch.arange(n).flip(0))
    step = Finetune(
        epochs=1, batch=300, lr=0.5, schedule="constant", momentum=0, nesterov=False, clip=0, weight_decay=0,
        batch_norm="keep", trainable=("b3",), distill=Distill(alpha=0.3, temperature=2, views=1),
        augment=MOVES.model_copy(update={"mixup": 1.0}),
    )  # fmt: skip
    trained = finetune(tiny, step, train=train, teachers=(digits,), workdir=tmp_path / "run", seed=4)
    batch = next(train.batches(300))
    rows = next(open_loader(train, 300, 4, tmp_path).epoch(0)).rows
    x = seen(batch.feeds["x"], draw_views(1, len(train), MOVES, 4), 0)[rows]
    label, said = np.eye(10)[batch.targets[""][rows]], softmax(answers_to(digits, x) / 2)
    z = answers_to(tiny, (0.75 * x + 0.25 * x[::-1]).astype(np.float32))
    hard = softmax(z) - 0.75 * label - 0.25 * label[::-1]
    soft = 2 * (softmax(z / 2) - 0.75 * said - 0.25 * said[::-1])  # T^2 / T
    wanted = constants(tiny)["b3"] - 0.5 * (0.3 * hard + 0.7 * soft).mean(0)
    assert np.allclose(constants(trained.model)["b3"], wanted, atol=1e-5)


def test_answers_with_a_place_do_not_go_with_cutmix() -> None:
    answers = Answers((((np.zeros((5, 3, 64)),),),))
    require_mixable(answers, Augment(mixup=1, crop=2))
    with pytest.raises(UsageError, match="cutmix exchanges parts of images"):
        require_mixable(answers, Augment(cutmix=1))
    require_mixable(Answers((((np.zeros((5, 3, 1)),),),)), Augment(cutmix=1))


def test_inner_values_cannot_be_asked_about_beforehand() -> None:
    with pytest.raises(UsageError, match="inner values cannot be"):
        Distill(views=2, features=(FeaturePair(student="a", teacher="b"),))


def test_only_the_order_in_memory_changes() -> None:
    feeds = {"x": torch.randn(2, 3, 4, 5), "z": torch.randn(2, 3, 4, 5), "v": torch.randn(2, 7)}
    found = channels_last(feeds, {"x": "NCHW", "z": "NHWC"})
    assert all(torch.equal(found[name], value) for name, value in feeds.items())
    assert found["x"].stride() == (60, 1, 15, 3)
    assert found["z"].stride() == feeds["z"].stride()


def test_memory_is_kept_where_the_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    with kept_memory():
        assert torch.zeros(1 << 20).sum() == 0
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    with kept_memory():
        pass

"""Training of whole graphs: they learn, equal seeds give equal weights, and bad ends are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from deploy.data.dataset import Dataset, open_dataset
from deploy.data.metrics import make_metric
from deploy.errors import DataError, ModelError, UnsupportedError, UsageError
from deploy.execute.reference import open_graph
from deploy.frontend import onnx_file
from deploy.graph.summary import tensor_specs
from deploy.measure.accuracy import evaluate
from deploy.progress import Silent
from deploy.spec.finetune import Augment, Finetune
from deploy.train.finetune import DivergedError, finetune

Equal = Callable[[ir.Model, ir.Model], bool]
Constants = Callable[[ir.Model], dict[str, np.ndarray]]
QUICK = Finetune(epochs=2, batch=32, lr=0.05)


class Heard:
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def start(self, stage: str) -> None: ...

    def advance(self, done: int, total: int) -> None:
        self.steps.append((done, total))

    def finish(self, stage: str, seconds: float, cached: bool, outcome: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)


def shaken(model: ir.Model, by: float) -> ir.Model:
    """The graph with noise of ``by`` standard deviations on its filters."""
    copy, draw = model.clone(), np.random.default_rng(0)
    for name, value in copy.graph.initializers.items():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.ndim > 1:
            noise = draw.standard_normal(array.shape) * array.std() * by
            value.const_value = ir.tensor((array + noise).astype(array.dtype), name=name)
    return copy


def test_a_damaged_network_is_healed_and_its_file_scores_what_was_said(
    digits: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path, constants: Constants
) -> None:
    broken = shaken(digits, 0.7)
    before = {name: array.copy() for name, array in constants(broken).items()}
    heard = Heard()
    trained = finetune(
        broken, Finetune(epochs=2, batch=32, lr=0.02), train=train, validation=validation, workdir=tmp_path,
        progress=heard,
    )  # fmt: skip
    assert trained.before is not None
    assert trained.score is not None
    assert trained.before < 0.7
    assert trained.score > 0.9
    losses = [point.loss for point in trained.history.points]
    assert np.mean(losses[-4:]) < 0.5 * np.mean(losses[:4])
    assert heard.steps == [(i, 16) for i in range(1, 17)]
    assert heard.notes[0].startswith("epoch 1/2: loss ")
    assert "top1" in heard.notes[0]
    assert "left" in heard.notes[0]
    assert all(np.array_equal(array, before[name]) for name, array in constants(broken).items()), (
        "given stays"
    )

    onnx_file.write(trained.model, tmp_path / "trained.onnx")
    back = onnx_file.read(tmp_path / "trained.onnx").model
    own, read = constants(trained.model), constants(back)
    assert own.keys() == read.keys()
    assert all(np.array_equal(own[name], read[name]) for name in own)
    assert not any(
        type(v.const_value).__name__ == "TorchTensor" for v in trained.model.graph.initializers.values()
    )
    with open_graph(back) as session:
        score = evaluate(session, validation, make_metric("top1")).result().value
    assert abs(score - trained.score) <= 0.002


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_seeds_give_equal_weights(
    tiny: ir.Model, train: Dataset, tmp_path: Path, equal: Equal, threads: int
) -> None:
    step = Finetune(epochs=2, batch=32, lr=0.02, ema=0.9, augment=Augment(crop=2, mixup=0.3))
    train, runs = train.select(np.arange(64)), []
    for index, seed in enumerate((3, 3, 4)):
        torch.manual_seed(index)  # what was drawn before does not matter
        runs.append(
            finetune(tiny, step, train=train, workdir=tmp_path / str(index), seed=seed, threads=threads).model
        )
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


def test_torch_is_left_as_it_was(tiny: ir.Model, train: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(7)
    wanted, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(7)
    finetune(tiny, QUICK.model_copy(update={"epochs": 1}), train=train, workdir=tmp_path, threads=1)
    assert torch.equal(torch.rand(3), wanted)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_what_is_not_meant_stays_bit_for_bit(
    tiny: ir.Model, train: Dataset, tmp_path: Path, constants: Constants
) -> None:
    step = Finetune(epochs=1, batch=32, lr=0.05, ema=0.5, trainable=("*3",))
    before, after = constants(tiny), constants(finetune(tiny, step, train=train, workdir=tmp_path).model)
    changed = {name for name in before if before[name].tobytes() != after[name].tobytes()}
    assert changed == {"w3", "b3"}


def test_running_statistics_learn_or_are_kept(
    tiny: ir.Model, train: Dataset, tmp_path: Path, constants: Constants
) -> None:
    before = constants(tiny)
    for how, learns in (("train", True), ("keep", False)):
        step = Finetune.model_validate({"epochs": 1, "batch": 32, "batch_norm": how})
        after = constants(finetune(tiny, step, train=train, workdir=tmp_path / how).model)
        for name in ("mean", "variance"):
            assert (before[name].tobytes() != after[name].tobytes()) == learns
        assert before["w1"].tobytes() != after["w1"].tobytes()


def test_the_best_epoch_is_kept_and_training_stops_early(
    tiny: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path
) -> None:
    """Labels of noise: nothing gets better, so the graph as it came is the best there is."""
    batch = next(train.batches(256))
    wrong = (batch.targets[""] + 1) % 10
    data = open_dataset({"x": batch.feeds["x"], "y": wrong}, tensor_specs(tiny.graph.inputs))
    good = finetune(
        tiny,
        Finetune(epochs=4, batch=32, lr=0.05),
        train=train,
        validation=validation,
        workdir=tmp_path / "a",
    )
    step = Finetune(epochs=9, batch=32, lr=0.05, schedule="constant", early_stop=2)
    spoilt = finetune(good.model, step, train=data, validation=validation, workdir=tmp_path / "b")
    assert spoilt.stopped == "no better score in 2 epochs"
    assert spoilt.best == 0
    assert spoilt.score == spoilt.before == good.score
    assert [epoch.epoch for epoch in spoilt.history.epochs] == [0, 1, 2]


def test_adamw_one_cycle_bfloat16_cutmix(
    tiny: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path
) -> None:
    step = Finetune(
        epochs=4, batch=32, optimizer="adamw", lr=0.01, schedule="onecycle", precision="bf16",
        label_smoothing=0.05, augment=Augment(cutmix=0.5),
    )  # fmt: skip
    trained = finetune(tiny, step, train=train, validation=validation, workdir=tmp_path)
    assert trained.score is not None
    assert trained.score > 0.6
    assert all(v.dtype == ir.DataType.FLOAT for v in trained.model.graph.initializers.values())


def test_the_users_loss_and_data(tiny: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path) -> None:
    (tmp_path / "users_training.py").write_text(
        "import numpy as np\n"
        "from torch.nn import functional\n"
        "def focal(outputs, targets):\n"
        "    loss = functional.cross_entropy(outputs['y'], targets[''], reduction='none')\n"
        "    return (1 - (-loss).exp()) ** 2 * loss\n"
        "def samples():\n"
        f"    with np.load({str(Path(train.origin).resolve())!r}) as file:\n"
        "        x, y = file['x'], file['y']\n"
        "    for image, label in zip(x, y):\n"
        "        yield image, label\n"
    )
    data = open_dataset("python:users_training:samples", tensor_specs(tiny.graph.inputs), root=tmp_path)
    step = Finetune(epochs=4, batch=32, lr=0.05, loss="python:users_training:focal")
    trained = finetune(
        tiny, step, train=data, validation=validation, root=tmp_path, workdir=tmp_path / "work"
    )
    assert trained.score is not None
    assert trained.score > 0.7


@pytest.mark.parametrize("validated", [False, True])
def test_a_loss_that_diverges_stops_and_restores(
    tiny: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path, equal: Equal, validated: bool
) -> None:
    step = Finetune(
        epochs=3, batch=32, lr=1e30, schedule="constant", clip=0, warmup=0.8, momentum=0, nesterov=False,
        batch_norm="keep",
    )  # fmt: skip
    with pytest.raises(DivergedError, match="the weights that the graph came with are restored") as caught:
        finetune(
            tiny, step, train=train, validation=validation if validated else None, workdir=tmp_path, threads=1
        )
    assert "epoch 1, batch " in caught.value.message
    assert "of 8: the " in caught.value.message
    assert "learning rate of " in caught.value.message
    assert "lower lr (now 1e+30)" in caught.value.hint
    assert "clip = 1" in caught.value.hint
    assert caught.value.exit_code == 7
    assert equal(caught.value.trained.model, tiny)


def test_a_loss_that_diverges_later_gives_the_last_good_epoch(
    tiny: ir.Model, train: Dataset, tmp_path: Path
) -> None:
    (tmp_path / "users_trap.py").write_text(
        "calls = 0\n"
        "def loss(outputs, targets):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return outputs['y'].square().mean() / (0 if calls == 20 else 1)\n"
    )
    step = Finetune(epochs=3, batch=32, lr=0.01, loss="python:users_trap:loss")
    with pytest.raises(DivergedError, match="epoch 3, batch 4 of 8: the loss is inf") as caught:
        finetune(tiny, step, train=train, root=tmp_path, workdir=tmp_path / "work")
    trained = caught.value.trained
    assert "the weights of epoch 2 are restored" in caught.value.message
    assert (trained.best, trained.score) == (2, None)
    assert all(
        np.isfinite(v.const_value.numpy()).all()
        for v in trained.model.graph.initializers.values()
        if v.const_value
    )


class Told(Silent):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.mark.parametrize(
    ("lr", "validated", "warned"), [(20.0, False, True), (20.0, True, False), (0.05, False, False)]
)
def test_a_loss_that_grew_is_told_where_nothing_validates(
    digits: ir.Model,
    train: Dataset,
    validation: Dataset,
    tmp_path: Path,
    lr: float,
    validated: bool,
    warned: bool,
) -> None:
    """A trained network, ruined by too large steps without ever leaving the numbers."""
    step = Finetune(epochs=4, batch=16, lr=lr, schedule="constant", momentum=0, nesterov=False)
    told = Told()
    trained = finetune(
        digits, step, train=train, validation=validation if validated else None, workdir=tmp_path,
        progress=told,
    )  # fmt: skip
    assert bool(trained.worse) == warned
    assert [text.partition(" from ")[0] for text in told.warnings] == ["the training loss grew"] * warned
    assert all("lower lr" in text for text in told.warnings)


def test_an_output_that_is_not_trained_may_have_any_shape(
    train: Dataset, tmp_path: Path, fill: Callable[..., ir.Model], constants: Constants
) -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 1, 16, 16] x) => (float total, float[1, n, 10] state, float[n, 10] y) {
        f = Flatten (x)
        y = MatMul (f, w)
        first = Constant <value_ints = [0]> ()
        state = Unsqueeze (y, first)
        total = ReduceSum <keepdims = 0> (y)
    }"""
    model = fill(text, {"w": np.zeros((256, 10), np.float32)})
    batch = next(train.batches(64))
    data = open_dataset({"x": batch.feeds["x"], "y.y": batch.targets[""]}, tensor_specs(model.graph.inputs))
    trained = finetune(model, QUICK, train=data, workdir=tmp_path)
    assert trained.history.points[-1].loss < np.log(10)
    assert np.any(constants(trained.model)["w"])


def test_a_finished_training_is_read_back(
    tiny: ir.Model, train: Dataset, tmp_path: Path, equal: Equal
) -> None:
    heard = Heard()
    first = finetune(tiny, QUICK, train=train, workdir=tmp_path)
    again = finetune(tiny, QUICK, train=train, workdir=tmp_path, progress=heard)
    assert equal(first.model, again.model)
    assert first.history == again.history
    assert heard.steps == []


def test_a_checkpoint_of_another_training_is_refused(
    tiny: ir.Model, digits: ir.Model, train: Dataset, validation: Dataset, tmp_path: Path
) -> None:
    step = QUICK.model_copy(update={"epochs": 1})
    finetune(tiny, step, train=train, workdir=tmp_path)
    with pytest.raises(UsageError, match=r"with another graph$"):
        finetune(shaken(tiny, 0.1), step, train=train, workdir=tmp_path)
    with pytest.raises(UsageError, match=r"with another recipe step$"):
        finetune(tiny, QUICK, train=train, workdir=tmp_path)
    with pytest.raises(UsageError, match="another training data, another validation data, another seed"):
        finetune(tiny, step, train=validation, validation=train, workdir=tmp_path, seed=1)


@pytest.mark.parametrize(
    ("patterns", "said", "hint"),
    [
        (("head.*",), "'head.*' is the name of no weight", "b2, b3, mean, scale, shift ..."),
        (("w*", "shft"), "'shft' is the name of no weight", "did you mean shift?"),
        (("W2*",), "'W2*' is the name of no weight", "did you mean w2?"),
        (("mean",), "are running statistics", "b2, b3, scale, shift, w1 ..."),
    ],
)
def test_a_pattern_that_means_no_weight_is_told(
    tiny: ir.Model, train: Dataset, tmp_path: Path, patterns: tuple[str, ...], said: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        finetune(tiny, Finetune(trainable=patterns), train=train, workdir=tmp_path)
    assert hint in caught.value.hint


def test_what_cannot_be_trained_is_told(
    tiny: ir.Model, train: Dataset, tmp_path: Path, fill: Callable[..., ir.Model]
) -> None:
    odd = tiny.clone()
    odd.graph[2].op_type = "Relo"
    with pytest.raises(UnsupportedError, match="Relo 'Relu_2'"):
        finetune(odd, QUICK, train=train, workdir=tmp_path)
    one = """<ir_version: 10, opset_import: ["" : 21]> g (float[1, 1, 16, 16] x) => (float[1, 10] y) {
        s = Constant <value_ints = [1, 256]> ()
        a = Reshape (x, s)
        y = MatMul (a, w)
    }"""
    with pytest.raises(ModelError, match="cannot run on 2 samples"):
        finetune(fill(one, {"w": np.ones((256, 10), np.float32)}), QUICK, train=train, workdir=tmp_path)
    shifted = open_dataset(
        {"x": next(train.batches(9)).feeds["x"], "y": np.arange(2, 11)}, tensor_specs(tiny.graph.inputs)
    )
    with pytest.raises(DataError, match="label 10, but the model has classes 0 to 9"):
        finetune(tiny, QUICK, train=shifted, workdir=tmp_path)

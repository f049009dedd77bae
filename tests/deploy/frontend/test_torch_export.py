"""Exported programs as ONNX files, in this process; `test_capture.py` reads real files in children."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deploy.errors import DeployError, ModelError, UnsupportedError
from deploy.frontend.torch_export import trials, write_onnx
from deploy.frontend.torch_program import check, digest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")


class Of(torch.nn.Module):
    """A model that is one function."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(3))

    def forward(self, x):
        self.seen.add_(1)
        return x + self.seen


def program(module: torch.nn.Module, *shape: int):
    return torch.export.export(module.eval(), (torch.ones(shape or (2, 3)),))


def runs(made, path: Path) -> Mapping[str, np.ndarray]:
    """What ONNX Runtime and PyTorch give on the first trial, compared; the outputs by name."""
    names = write_onnx("m", made, path)
    trial = next(trials(made, names, seed=0))
    session = ort.InferenceSession(str(path))
    outputs = [value.name for value in session.get_outputs()]
    got = session.run(None, {name: trial[f"input/{name}"] for name in names})
    for position, array in enumerate(got):
        np.testing.assert_allclose(array, trial[f"output/{position}"], rtol=1e-5, atol=1e-6)
    return dict(zip(outputs, got, strict=True))


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x * 2, ["output"]),
        (lambda x: (x * 2, x + 1), ["output_0", "output_1"]),
        (lambda x: {"class scores": x * 2, "boxes": (x + 1, x - 1)}, ["class_scores", "boxes", "boxes_"]),
        (lambda x: {"x": x * 2}, ["x_out"]),  # as the input is called
        (lambda x: (x, x), ["output_0", "output_1"]),  # given as it came, twice
        (lambda x: {"mul": x + 1, "b": x * 2 + 1}, ["mul", "b"]),  # as PyTorch calls an inner value
    ],
)
def test_outputs_have_the_names_that_the_model_gives(
    tmp_path: Path, function: Callable[..., object], names: list[str]
) -> None:
    path = tmp_path / "m.onnx"
    assert list(runs(program(Of(function)), path)) == names
    onnx.checker.check_model(path, full_check=True)


def test_batch_norm_stays_a_node(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    runs(program(model, 2, 3, 5, 5), tmp_path / "m.onnx")
    ops = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert "BatchNormalization" in ops


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: program(Counting(), 3), "changes its own buffer 'seen'"),
        (lambda: torch.export.export(torch.nn.BatchNorm1d(3).train(), (torch.ones(2, 3),)), "running_mean"),
        (lambda: program(Of(torch.nn.functional.dropout), 64, 64), "gives different outputs"),
    ],
)
def test_what_changes_from_run_to_run_is_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        next(trials(make(), ["x"], seed=0))


@pytest.mark.parametrize(
    ("module", "error", "said"),
    [
        (torch.nn.Linear(3, 2).double(), UnsupportedError, "'weight' is float64"),
        (torch.nn.Linear(3, 2).bfloat16(), UnsupportedError, "'weight' is bfloat16"),
    ],
)
def test_other_floats_are_refused(module: torch.nn.Module, error: type[DeployError], said: str) -> None:
    example = torch.ones(2, 3, dtype=next(module.parameters()).dtype)
    with pytest.raises(error, match=said) as caught:
        check("m", torch.export.export(module, (example,)))
    assert "module.float()" in caught.value.hint


def test_float16_is_warned_of() -> None:
    made = torch.export.export(torch.nn.Linear(3, 2).half(), (torch.ones(2, 3).half(),))
    assert [kind for kind, _ in check("m", made)] == ["warn"]


def test_an_operation_without_onnx_form_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="bessel_j1"):
        write_onnx("m", program(Of(torch.special.bessel_j1)), tmp_path / "m.onnx")


def test_the_digest_follows_weights_graph_and_sizes() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    first = digest(program(model))
    assert digest(program(model)) == first
    assert digest(program(model, 4, 3)) != first
    assert digest(program(torch.nn.Sequential(model, torch.nn.ReLU()))) != first
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert digest(program(model)) != first

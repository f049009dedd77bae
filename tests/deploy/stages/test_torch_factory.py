"""Functions that make a model, called in this process; `test_capture.py` starts children."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.errors import DeployError, ModelError, UsageError
from deploy.stages.torch_factory import find_function, make_program

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")

NETS = """
import sys
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    def forward(self, image, scale=None):
        y = self.norm(self.conv(image)).mean((2, 3))
        return y if scale is None else y * scale

class OverBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(0)

class ByValue(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x

class Stuck(nn.Module):
    def forward(self, x):
        raise ValueError("wrong size")

EXAMPLE = torch.zeros(1, 3, 8, 8)
def alone(): return Net()
def example(): return Net(), EXAMPLE
def in_tuple(): return Net(), (EXAMPLE,)
def by_name(): return Net(), {"image": EXAMPLE, "scale": torch.ones(1, 4)}
def dynamic(): return Net(), (torch.zeros(2, 3, 8, 8),), {"image": {2: torch.export.Dim.DYNAMIC}}
def program(): return torch.export.export(Net().eval(), (EXAMPLE,))
def over_batch(): return OverBatch(), (torch.randn(1, 4),)
def by_value(): return ByValue(), (torch.ones(1, 4),)
def stuck(): return Stuck(), (torch.ones(1, 4),)
def nothing(): pass
def a_tuple(): return 3, 4
def words(): return Net(), "1x3x8x8"
def fails(): raise KeyError("weights.pth")
def leaves(): sys.exit(3)
def random(): return nn.Linear(2, 2), (torch.zeros(1, 2),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("factories")
    (folder / "factory_nets.py").write_text(NETS)
    return folder


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., tuple[object, list[tuple[str, str]]]]]:
    before = list(sys.path)

    def made(
        name: str, shapes: dict[str, tuple[int, ...]] | None = None, seed: int = 0
    ) -> tuple[object, list]:
        notes: list[tuple[str, str]] = []
        reference = f"factory_nets:{name}"
        return make_program(reference, find_function(reference, folder), shapes or {}, seed, notes), notes

    yield made
    sys.path[:] = before


def input_sizes(program) -> list[tuple[object, ...]]:
    nodes = [n for n in program.graph.nodes if n.name in program.graph_signature.user_inputs]
    return [tuple(None if isinstance(s, torch.SymInt) else s for s in n.meta["val"].shape) for n in nodes]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("example", [(None, 3, 8, 8)]),
        ("in_tuple", [(None, 3, 8, 8)]),
        ("by_name", [(None, 3, 8, 8), (None, 4)]),
        ("dynamic", [(2, 3, None, 8)]),
        ("program", [(1, 3, 8, 8)]),
    ],
)
def test_the_batch_is_free_unless_something_else_is_said(make, name: str, sizes: list[object]) -> None:
    program, notes = make(name)
    assert input_sizes(program) == sizes
    assert not [text for kind, text in notes if kind == "warn"]
    assert not program.graph_signature.buffers_to_mutate  # evaluation mode


def test_a_module_alone_takes_its_sizes_from_the_command_line(make) -> None:
    program, notes = make("alone", {"image": (1, 3, 8, 8)})
    assert input_sizes(program) == [(1, 3, 8, 8)]
    assert notes == [
        ("note", "factory_nets:alone: the model was put into evaluation mode, as model.eval() does")
    ]


def test_a_batch_whose_samples_see_each_other_is_not_freed(make) -> None:
    program, notes = make("over_batch")
    assert input_sizes(program) == [(1, 4)]
    assert any(kind == "warn" and "sizes of the example inputs are fixed" in text for kind, text in notes)


def test_random_weights_are_the_same_for_the_same_seed(make) -> None:
    first, again, other = (make("random", seed=seed)[0].state_dict["weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "error", "said", "hint"),
    [
        ("alone", UsageError, "the size of 'image' is not known", "--shape image=1,3,224,224"),
        ("nothing", ModelError, "returned nothing, not a model", "return a torch.nn.Module"),
        ("a_tuple", ModelError, "a tuple of (int, int)", "return a torch.nn.Module"),
        ("words", ModelError, "a str as example inputs", "give a tensor"),
        ("fails", ModelError, "raised KeyError: 'weights.pth' (", "run it alone"),
        ("leaves", ModelError, "called sys.exit(3) (", "return the model"),
        ("stuck", ModelError, "raised ValueError: wrong size (", "run it alone"),
        ("by_value", ModelError, "torch.export cannot capture the model", "torch.cond"),
        ("exampel", UsageError, "has no function 'exampel'", "did you mean 'example'?"),
    ],
)
def test_what_goes_wrong_is_told(
    make, folder: Path, name: str, error: type[DeployError], said: str, hint: str
) -> None:
    with pytest.raises(error) as caught:
        make(name)
    assert said in caught.value.message and hint in caught.value.hint
    if said.endswith("("):  # the user's own line
        assert str(folder / "factory_nets.py") in caught.value.message
    assert "\n" not in caught.value.message


def test_a_misspelt_input_is_told(make) -> None:
    with pytest.raises(UsageError, match="no input 'imag'") as caught:
        make("alone", {"image": (1, 3, 8, 8), "imag": (1,)})
    assert "did you mean 'image'?" in caught.value.hint


def test_a_missing_module_is_told(folder: Path) -> None:
    before = list(sys.path)
    with pytest.raises(UsageError, match="no module 'factory_netz'"):
        find_function("factory_netz:alone", folder)
    sys.path[:] = before

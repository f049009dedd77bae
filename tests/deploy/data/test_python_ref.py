"""Data that the user's own code makes."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from deploy.data.dataset import Dataset, open_dataset, split
from deploy.errors import DataError, ToolchainError, UsageError
from deploy.spec.tensors import TensorSpec

X = TensorSpec(name="x", dtype="float32", shape=("n", 2))
Z = X.model_copy(update={"name": "z"})
NUMBER = itertools.count()
WANTED = np.arange(10, dtype=np.float32).reshape(5, 2)


def from_code(folder: Path, code: str, name: str = "data", inputs: tuple[TensorSpec, ...] = (X,)) -> Dataset:
    module = f"my_data_code_{next(NUMBER)}"
    (folder / f"{module}.py").write_text("import numpy as np\n" + code)
    before = list(sys.path)
    try:
        return open_dataset(f"python:{module}:{name}", inputs, root=folder)
    finally:
        assert sys.path == before


def problem(folder: Path, code: str, inputs: tuple[TensorSpec, ...] = (X,)) -> DataError:
    with pytest.raises(DataError) as caught:
        for _ in range(2):
            list(from_code(folder, code, inputs=inputs).batches(2))
    assert caught.value.hint
    assert "python:my_data_code_" in caught.value.message
    return caught.value


ROW = "np.arange(2 * i, 2 * i + 2, dtype='f4')"
FORMS = {
    "arrays": "def data():\n return {'x': np.arange(10, dtype='f4').reshape(5, 2), 'y': np.arange(5)}",
    "list": f"def data():\n return [({ROW}, i) for i in range(5)]",
    "generator function": f"def data():\n for i in range(5):\n  yield {{'x': {ROW}}}, i",
    "factory": f"def data():\n return lambda: (({ROW}, i) for i in range(5))",
    "map-style": "class Data:\n def __len__(self): return 5\n"
    f" def __getitem__(self, i): return {ROW}, i\n"
    "def data(): return Data()",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same(tmp_path: Path, form: str) -> None:
    dataset = from_code(tmp_path, FORMS[form])
    assert len(dataset) == 5
    assert dataset.labelled
    for _ in range(2):
        batches = list(dataset.batches(2))
        np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in batches]), WANTED)
        assert [b.targets[""].tolist() for b in batches] == [[0, 1], [2, 3], [4]]
    for part in split(dataset, 0.5, seed=0):
        for batch in part.batches(2):
            np.testing.assert_array_equal(batch.feeds["x"], WANTED[batch.ids])


def test_the_function_is_called_once(tmp_path: Path) -> None:
    code = f"n = []\ndef data():\n n.append(1)\n assert len(n) == 1\n return [{ROW} for i in range(5)]"
    dataset = from_code(tmp_path, code)
    assert sum(len(batch) for _ in range(3) for batch in dataset.batches(2)) == 15


def test_named_targets_groups_and_several_inputs(tmp_path: Path) -> None:
    code = f"""
def data():
    for i in range(5):
        yield {{'x': {ROW}, 'z': -{ROW}, 'group': i // 2}}, {{'a': i, 'b': [i, 0.5]}}
"""
    batch = next(from_code(tmp_path, code, inputs=(X, Z)).batches(5))
    np.testing.assert_array_equal(batch.feeds["z"], -WANTED)
    assert batch.targets["a"].tolist() == [0, 1, 2, 3, 4]
    assert batch.targets["b"].shape == (5, 2)
    assert batch.groups is not None
    assert batch.groups.tolist() == [0, 0, 1, 1, 2]


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    (tmp_path / "fixed_data_code.py").write_text(
        "import numpy as np\nimport pathlib\nshift = 0\n"
        "def data():\n for i in range(3): yield np.full(2, i + shift, 'f4'), i\n"
    )

    def digest() -> str:
        return open_dataset("python:fixed_data_code:data", [X], root=tmp_path).digest

    first = digest()
    assert digest() == first
    sys.modules["fixed_data_code"].shift = 1  # type: ignore[attr-defined]
    assert digest() != first


def test_samples_are_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "counted_here.py"
    path.write_text(
        "import numpy as np\nmade = []\ndef data():\n for i in range(7):\n  made.append(i)\n"
        "  yield {'x': np.full(2, i, 'f4')}, {'y': i}\n"
    )
    dataset = open_dataset(
        "python:counted_here:data", [X.model_copy(update={"shape": ("n", 2)})], root=tmp_path
    )
    for size in (3, 7):
        values = np.concatenate([batch.feeds["x"] for batch in dataset.batches(size)])
        np.testing.assert_array_equal(values, np.repeat(np.arange(7), 2).reshape(7, 2))
    (last,) = dataset.select(np.array([2, 6])).batches(8)
    assert last.targets["y"].tolist() == [2, 6]
    assert sys.modules["counted_here"].made == list(range(7))


def test_samples_that_change_from_pass_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too many to be kept: they are made anew."""
    monkeypatch.setattr("deploy.data.python_ref._KEPT_LIMIT", 30)
    shuffled = (
        "r = np.random.default_rng()\ndef data():\n for _ in range(5): yield r.normal(size=2).astype('f4')"
    )
    e = problem(tmp_path, shuffled)
    assert "sample 0 is not the one of the first pass" in e.message
    assert "no shuffling" in e.hint
    fewer = "n = [6]\ndef data():\n n[0] -= 1\n for i in range(n[0]): yield np.zeros(2, 'f4')"
    assert "sample 4 is not the one" in problem(tmp_path, fewer).message


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("def data():\n return iter([1, 2])", "returned an iterator, which can be read only once"),
        ("def data():\n return 3", "returned int, expected samples"),
        ("def data():\n return lambda: 3", "gave int, expected an iterator"),
        ("def data():\n return []", "gave no samples"),
        ("def data():\n raise KeyError('label')", "failed: KeyError: 'label'"),
        ("def data():\n yield np.zeros(2, 'f4')\n raise OSError('gone')", "failed: OSError: gone"),
        (
            "def data():\n yield np.zeros(2, 'f4')\n yield np.zeros(3, 'f4')",
            "sample 1 is x float32[3], the first",
        ),
        ("def data():\n yield np.zeros(3, 'f4')", "array 'x' has shape [1, 3], expected [samples, 2]"),
        ("def data():\n yield np.zeros(2)\n yield np.full(2, np.nan)", "holds NaN in sample 1"),
        ("def data():\n yield {'x': object()}", "holds Python objects"),
        ("def data():\n yield {'image': np.zeros(2, 'f4')}", "no array for the model's input 'x'"),
    ],
)
def test_what_cannot_be_used(tmp_path: Path, code: str, text: str) -> None:
    assert text in problem(tmp_path, code).message


def test_one_array_for_two_inputs(tmp_path: Path) -> None:
    text = problem(tmp_path, "def data():\n yield np.zeros(2, 'f4')", (X, Z)).message
    assert "sample 0 has one array, but the model has 2 inputs" in text


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("python:numpy", "does not name a function"),
        ("python:no_such_module_here:data", "no module 'no_such_module_here' found"),
        ("python:json:load_all", "module 'json' has no function 'load_all'"),
        ("python:broken_code:data", "importing the module failed: ZeroDivisionError"),
        ("python:wants_more:data", "module 'wants_more' imports 'no_such_package'"),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, reference: str, text: str) -> None:
    (tmp_path / "broken_code.py").write_text("1 / 0")
    (tmp_path / "wants_more.py").write_text("import no_such_package.inner")
    with pytest.raises(UsageError) as caught:
        open_dataset(reference, [X], root=tmp_path)
    assert text in caught.value.message
    assert caught.value.hint


def test_what_an_extra_brings_is_a_missing_toolchain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "wants_torch.py").write_text("import torch.nn")
    with pytest.raises(ToolchainError, match="PyTorch is not installed") as caught:
        open_dataset("python:wants_torch:data", [X], root=tmp_path)
    assert "pip install" in caught.value.hint


WAV = """
import wave
from pathlib import Path
import numpy as np

def samples():
    for path in sorted(Path(__file__).parent.glob("*.wav")):
        with wave.open(str(path)) as sound:
            pcm = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
        yield pcm[:1600].astype(np.float32) / 32768, int(path.stem[-1])
"""


def test_sound_files_become_samples_by_the_users_own_code(tmp_path: Path) -> None:
    import wave

    tones = [np.round(8000 * np.sin(np.arange(1600) * f)).astype("<i2") for f in (0.1, 0.2, 0.3)]
    for label, tone in enumerate(tones):
        with wave.open(str(tmp_path / f"tone{label}.wav"), "wb") as sound:
            sound.setparams((1, 2, 16000, len(tone), "NONE", ""))
            sound.writeframes(tone.tobytes())
    (tmp_path / "wav_files_here.py").write_text(WAV)
    spec = TensorSpec(name="audio", dtype="float32", shape=("n", 1600))
    dataset = open_dataset("python:wav_files_here:samples", [spec], root=tmp_path)
    (batch,) = dataset.batches(8)
    np.testing.assert_array_equal(batch.feeds["audio"], np.stack(tones).astype(np.float32) / 32768)
    assert batch.targets[""].tolist() == [0, 1, 2]

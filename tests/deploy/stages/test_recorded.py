"""The float model's outputs on the calibration samples: kept, and the same as when it runs again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deploy.adapter.batching import run_samples
from deploy.bundle.read import Bundle
from deploy.data.dataset import Batch
from deploy.errors import BackendError
from deploy.execute.observe import Observed
from deploy.execute.reference import Session
from deploy.spec.tensors import TensorSpec
from deploy.stages import job, recorded
from deploy.stages.recorded import Recorded, Recorder, outputs_in

X = TensorSpec(name="x", dtype="float32", shape=(1, 2), layout="any")
Y = TensorSpec(name="y", dtype="float32", shape=(1, 3), layout="any")


def seen(y: np.ndarray, count: int) -> Observed:
    return Observed(Batch({}, {}, None, np.arange(count)), 0, {"y": y})


def test_outputs_come_back_in_batches_of_any_size(tmp_path: Path) -> None:
    given = np.arange(15, dtype=np.float32).reshape(5, 3)
    recorder = Recorder(["y"])
    recorder.see(seen(given[:2], 2))
    recorder.see(seen(given[2:], 3))
    recorder.save(tmp_path)
    path = outputs_in(tmp_path)
    assert path is not None
    with Recorded(path, (X,), (Y,)) as runner:
        parts = [run_samples(runner, {"x": np.zeros((n, 2), np.float32)}, 4)["y"] for n in (4, 1)]
        np.testing.assert_array_equal(np.concatenate(parts), given)
        with pytest.raises(BackendError, match="fewer samples"):
            runner.run({"x": np.zeros((1, 2), np.float32)})


@pytest.mark.parametrize("y", [np.zeros(()), np.zeros((4, 3)), np.zeros((2, recorded._LARGEST // 8))])
def test_what_is_no_row_for_each_sample_or_large_is_not_kept(tmp_path: Path, y: np.ndarray) -> None:
    recorder = Recorder(["y"])
    recorder.see(seen(y, 2))
    recorder.save(tmp_path)
    assert outputs_in(tmp_path) is None


def test_a_build_is_the_same_as_with_the_file_run_again(
    make: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened: list[object] = []

    def session(*given: object, **settings: object) -> Session:
        opened.append(given[0])
        return Session(*given, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "Session", session)
    kept = make(tune="off", measure=False)
    assert opened == []
    monkeypatch.setattr(recorded, "_LARGEST", 0)
    again = make(tune="off", measure=False, cache=tmp_path / "other", out=tmp_path / "again")
    assert len(opened) == 1
    assert kept.manifest.evaluation is not None
    assert kept.digest == again.digest

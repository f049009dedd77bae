"""Where the table comes from, and when it comes out of the cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.cache import Cache
from deploy.errors import ModelError, ToolchainError, UsageError
from deploy.progress import SILENT
from deploy.spec.sensitivity import Sensitivity
from deploy.stages.record import Record
from deploy.stages.request import Request
from deploy.stages.sensitivity import TREATMENTS, table


def found(
    cache: Path, *, quick: bool = False, samples: int = 8, **asked: object
) -> tuple[Sensitivity, list[str]]:
    """The table, and the stages that were not in the cache."""
    record = Record(SILENT)
    request = Request(**{"target": "", **asked})  # type: ignore[arg-type]
    result = table(request, Cache(cache), record, samples=samples, quick=quick)
    return result, [time.name for time in record.times if not time.cached]


def test_predicted_and_measured_stand_side_by_side(tmp_path, network, images):
    result, worked = found(tmp_path, source=network, data=images)
    assert {"calibrate", "score", "one block"} <= set(worked)
    assert result.treatments == TREATMENTS and result.measure == "classes" and result.samples == 8
    assert len(result.blocks) == 3
    for block in result.blocks:
        effect = block.effects["int8"]
        assert effect.measured and effect.score > 0 and effect.kl > 0 and effect.sqnr_db > 0
    last = result.blocks[-1]
    assert last.kind == "Gemm" and "prune" not in last.effects


def test_only_what_changed_is_done_again(tmp_path, network, images):
    first, _ = found(tmp_path, source=network, data=images)
    again, worked = found(tmp_path, source=network, data=images)
    assert again == first and not {"calibrate", "score", "one block"} & set(worked)
    _, worked = found(tmp_path, source=network, data=images, seed=1)
    assert {"score", "one block"} & set(worked) == {"score"}, "what is measured draws nothing"
    _, worked = found(tmp_path, source=network, data=images, samples=9)
    assert "calibrate" not in worked and {"score", "one block"} <= set(worked)
    other = {"x": images["x"] + 1}
    _, worked = found(tmp_path, source=network, data=other)
    assert {"calibrate", "score", "one block"} <= set(worked)


def test_a_targets_rules_are_its_own(tmp_path, network, images):
    plain, _ = found(tmp_path, source=network, data=images, quick=True)
    ruled, _ = found(tmp_path, source=network, data=images, quick=True, target="x86-avx2")
    assert (plain.rules, ruled.rules) == ("plain", "ort")
    assert plain.blocks != ruled.blocks
    assert not any(effect.measured for block in plain.blocks for effect in block.effects.values())


def test_without_torch_it_is_measured_and_only_the_quick_way_is_an_error(
    tmp_path, network, images, monkeypatch, caplog
):
    monkeypatch.setattr("deploy.stages.sensitivity.find_spec", lambda name: None)
    result, worked = found(tmp_path, source=network, data=images)
    assert "score" not in worked and "PyTorch is not installed" in caplog.text
    assert all(e.measured and e.score is None for block in result.blocks for e in block.effects.values())
    with pytest.raises(ToolchainError) as error:
        found(tmp_path, source=network, data=images, quick=True)
    assert error.value.exit_code == 6 and "pip install" in error.value.hint


def test_no_data_and_nothing_to_treat_are_told(tmp_path, network, save):
    with pytest.raises(UsageError, match="there are none") as error:
        found(tmp_path, source=network)
    assert "--data" in error.value.hint
    bare = save(
        tmp_path / "bare.onnx", "g (float[n, 4] x) => (float[n, 4] y) { z = Exp (x) y = Neg (z) }", {}
    )
    data = {"x": np.ones((4, 4), np.float32)}
    with pytest.raises(ModelError, match="no block of the model"):
        found(tmp_path, source=bare, data=data)

"""What the steps leave behind, beyond what each stage's own tests say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.bundle.read import open_bundle
from deploy.bundle.verify import verify_bundle
from deploy.execute.reference import Session
from deploy.frontend import onnx_file
from deploy.pipeline import build


@pytest.mark.parametrize("precision", ["float", "int8"])
def test_weights_in_a_file_of_their_own_are_counted_hashed_and_found(
    network: Path,
    images: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    monkeypatch.setattr(onnx_file, "EXTERNAL_BEYOND", 0)
    monkeypatch.setattr("deploy.stages.prepare.EMBEDDED", 0)
    bundle = build(
        network,
        target="x86-avx2",
        data=images,
        precision=precision,
        measure=False,
        out=tmp_path / "out",
        cache=tmp_path / "cache",
    )
    names = {p.name for p in bundle.folder.rglob("*") if p.is_file()}
    assert "graph.onnx.data" in names
    files = [p for p in (bundle.folder / "artifact").iterdir() if p.name.startswith("model.onnx")]
    assert bundle.manifest.size_bytes.artifact == sum(p.stat().st_size for p in files)
    assert verify_bundle(bundle.folder).passed
    with open_bundle(bundle.folder) as artifact, Session(bundle.folder / "graph.onnx") as graph:
        want, got = graph.run(images)["y"], artifact.run(images)["y"]
    assert np.abs(want - got).max() < (0.2 if precision == "int8" else 1e-4) * np.abs(want).max()
    assert ir.load(bundle.folder / "graph.onnx").graph.initializers

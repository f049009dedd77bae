"""Hazards of samples on their way into manifests, and what they replace of the graph's own."""

import numpy as np
import pytest

from deploy.pipeline import build
from deploy.progress import SILENT
from deploy.spec.manifest import KnownHazard
from deploy.stages.foresee import Foreseen, outlook
from deploy.stages.record import Record, open_cache
from deploy.stages.request import Request

TEXT = """g (float[n, 3, 8, 8] x) => (float[n, 4, 8, 8] y) {
    a = Conv (x, w)
    s = HardSwish (a)
    y = Conv (s, v)
}"""


def weights(factor):
    """One channel that reaches far, which the second convolution hardly listens to."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(s).astype(np.float32) / 2 for s in ((8, 3, 1, 1), (4, 8, 1, 1)))
    first[0] *= np.float32(factor)
    second[:, 0] /= np.float32(factor)
    return {"w": first, "v": second}


@pytest.fixture
def spoilt(save, tmp_path):
    return save(tmp_path / "spoilt.onnx", TEXT, weights(100))


@pytest.fixture
def healthy(save, tmp_path):
    return save(tmp_path / "healthy.onnx", TEXT, weights(1))


def hazard(kind, severity="warning"):
    return KnownHazard(kind=kind, severity=severity, text=kind, nodes=("n",))


def test_real_samples_replace_what_the_graph_could_only_fear():
    known = (hazard("swish", "note"), hazard("concat-ranges"), hazard("softmax", "note"))
    found = Foreseen(samples="8 samples", random=False, runtimes={"ort": (hazard("swish-range"),)})
    assert [h.kind for h in found.joined(known, "ort")] == ["swish-range", "softmax"]
    assert found.joined(known, "other") == known
    noise = found.model_copy(update={"random": True})
    assert [h.kind for h in noise.joined(known, "ort")] == [
        "swish-range",
        "concat-ranges",
        "swish",
        "softmax",
    ]
    assert (found.count("warning"), found.count("note")) == (1, 0)


def test_a_build_writes_them_into_its_manifest(spoilt, healthy, images, tmp_path):
    for model, wanted in ((spoilt, {"swish-range"}), (healthy, set())):
        bundle = build(
            model,
            target="x86-avx2",
            data=images,
            measure=False,
            out=tmp_path / "dist",
            cache=tmp_path / "cache",
        )
        found = {h.kind: h for h in bundle.manifest.hazards}
        assert {kind for kind, h in found.items() if h.severity == "warning"} == wanted
        assert "swish" not in found
    stages = [stage.name for stage in bundle.measurements.stages]
    assert stages.index("hazards") < stages.index("calibrate")


def test_nothing_is_looked_at_where_nothing_is_quantized(spoilt, images, tmp_path):
    settings = {"target": "x86-avx2", "measure": False, "out": tmp_path / "dist", "cache": tmp_path / "cache"}
    for more in ({"data": None}, {"data": images, "precision": "float"}):
        bundle = build(spoilt, **settings, **more)
        assert "hazards" not in [stage.name for stage in bundle.measurements.stages]
        assert [h.kind for h in bundle.manifest.hazards if h.kind.startswith("swish")] == ["swish"]


def look(model, tmp_path, **settings):
    cache = tmp_path / "cache"
    request = Request(source=model, target="x86-avx2", cache=cache, **settings)
    record = Record(SILENT)
    with open_cache(cache, SILENT) as store:
        return outlook(request, record, store)


def test_before_a_build_all_runtimes_of_the_target_are_asked(spoilt, images, tmp_path):
    found = look(spoilt, tmp_path, data=images)
    assert (found.target, found.samples) == ("x86-avx2", "8 samples")
    assert [h.severity for h in found.hazards if h.kind == "swish-range"] == ["warning"]


def test_without_data_random_inputs_only_make_notes(spoilt, tmp_path):
    found = look(spoilt, tmp_path, precision="float")
    assert found.samples == "2 random inputs"
    assert {h.severity for h in found.hazards} == {"note"}
    assert {"swish", "swish-range"} <= {h.kind for h in found.hazards}

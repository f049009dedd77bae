"""deploy verify: a sound bundle passes, a changed one is refused with the file's name."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from deploy.pipeline import build

Deploy = Callable[..., tuple[int, str, str]]


def test_a_sound_bundle(deploy: Deploy, real_bundle: Path) -> None:
    code, out, err = deploy("verify", real_bundle)
    assert (code, err) == (0, "")
    assert out.startswith(f"✓ verified  {real_bundle}\n")
    found = json.loads(deploy("verify", real_bundle, "--json")[1])
    assert found["error"] <= found["tolerance"] and found["samples"] > 0


def test_a_changed_file_is_named(deploy: Deploy, here: Path, real_bundle: Path) -> None:
    bundle = here / "changed"
    shutil.copytree(real_bundle, bundle)
    with (bundle / "artifact" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    code, out, err = deploy("verify", bundle)
    assert (code, out) == (8, "")
    assert "artifact/model.onnx" in err


def test_no_bundle(deploy: Deploy, here: Path) -> None:
    code, _, err = deploy("verify", here)
    assert code == 2 and "not a bundle" in err


def test_deep_says_what_stands_in_the_file(deploy: Deploy, real_bundle: Path) -> None:
    code, out, _ = deploy("verify", real_bundle, "--deep", "--json")
    found = json.loads(out)
    (bundle,) = found["bundles"]
    assert code == 0 and found["right"] and bundle["first_divergence"] is None
    plan = json.loads((real_bundle / "plan.json").read_text())["tensors"]
    assert {t["name"]: t["read"]["scale"] for t in bundle["tensors"]} == {
        n: t["scale"] for n, t in plan.items()
    }
    assert len(bundle["operations"]) > 10 and bundle["unchecked"] == 0
    assert bundle["nodes"] > 20 and bundle["uncovered"] == []
    assert sum(operation["counts"][2] for operation in bundle["operations"]) == 0


def test_deep_names_the_first_operation_behind_a_changed_scale(
    deploy: Deploy, here: Path, real_bundle: Path
) -> None:
    """Changed in the file that is shipped, with a manifest that says so."""
    bundle = here / "dist" / "planted"
    shutil.copytree(real_bundle, bundle)
    file = bundle / "artifact" / "model.onnx"
    model = ir.load(file)
    quantize = next(
        n for n in model.graph if n.op_type == "QuantizeLinear" and "block2/Relu" in (n.name or "")
    )
    scale = quantize.inputs[1]
    assert scale is not None and scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy() * np.float32(1.25), name=scale.name)
    ir.save(model, file)
    manifest = (bundle / "manifest.json").read_text()
    before = json.loads(manifest)["files"]["artifact/model.onnx"]
    (bundle / "manifest.json").write_text(
        manifest.replace(before, hashlib.sha256(file.read_bytes()).hexdigest())
    )
    code, out, _ = deploy("verify", here / "dist", "--deep", "--json")
    (found,) = json.loads(out)["bundles"]
    assert code == 8
    assert [t["name"] for t in found["tensors"] if t["differences"]] == ["/block2/Relu_output_0"]
    assert found["first_divergence"]["node"] == "/block2/Relu"
    code, out, _ = deploy("verify", bundle, "--deep")
    assert code == 8 and "✗ ort for x86-cpu" in out and "/block2/Relu" in out


def test_deep_makes_the_reference_of_a_form_again(deploy: Deploy, here: Path, digits: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    build(
        digits / "digits.onnx",
        target="android",
        runtime="tflite",
        precision="dynamic",
        measure=False,
        out=here,
    )
    code, out, _ = deploy("verify", here, "--deep", "--json")
    (found,) = json.loads(out)["bundles"]
    assert code == 0 and found["why_not"] == "" and len(found["operations"]) > 10
    assert max(operation["error"] for operation in found["operations"]) < 1e-4


def test_deep_reads_what_runs_on_its_device_only(deploy: Deploy, here: Path, digits: Path) -> None:
    build(digits / "digits.onnx", target="jetson", data=digits / "calib.npz", measure=False, out=here)
    code, out, _ = deploy("verify", here, "--deep")
    assert code == 0 and "nothing was run" in out and "values as planned" in out


def test_deep_of_a_target_that_was_a_file(
    deploy: Deploy, here: Path, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named: dict[str, object] = {}
    monkeypatch.setattr("deploy.adapter.profiles._FROM_FILES", named)
    camera = here / "camera.toml"
    camera.write_text('schema = 1\nname = "camera"\ninherits = "rpi5"\ntitle = "A camera"\n')
    build(
        digits / "digits.onnx", target=str(camera), runtime="ort", precision="float", measure=False, out=here
    )
    named.clear()  # another process knows nothing of it
    code, _, err = deploy("verify", here, "--deep")
    assert (
        code == 2
        and "profile 'camera', by which it was built, is not installed" in err
        and "--profile" in err
    )
    code, out, _ = deploy("verify", here, "--deep", "--profile", camera)
    assert code == 0 and "right" in out and "has changed" not in out
    camera.write_text(camera.read_text().replace("A camera", "Another"))
    code, out, _ = deploy("verify", here, "--deep", "--profile", camera)
    assert code == 0 and "the profile has changed since this was built" in out
    (found,) = json.loads(deploy("verify", here, "--deep", "--profile", camera, "--json")[1])["bundles"]
    assert "has changed" in found["caveat"]
    camera.write_text(camera.read_text().replace("rpi5", "microcontroller"))
    code, _, err = deploy("verify", here, "--deep", "--profile", camera)
    assert code == 2 and "profile 'camera' has no runtime 'ort' any more" in " ".join(err.split())

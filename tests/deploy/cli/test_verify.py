"""deploy verify: a sound bundle passes, a changed one is refused with the file's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

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

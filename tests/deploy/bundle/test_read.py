"""A bundle may come from anywhere: what it says is checked before anything is opened."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import deploy
from deploy.bundle.read import Bundle, file_digest, load_bundle, open_bundle
from deploy.bundle.verify import read_selftest
from deploy.errors import ToolchainError, UsageError

Json = dict[str, object]


def edit(folder: Path, change: Callable[[Json], object]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_what_was_built_is_read_back(built: Bundle) -> None:
    again = load_bundle(built.folder)
    assert again == built
    assert again.digest == file_digest(built.folder / "manifest.json")
    assert str(again) == f"{built.folder} (met)"
    assert load_bundle(str(built.folder)) == again


def test_names_go_in_and_arrays_come_out(built: Bundle) -> None:
    feeds, want = read_selftest(built.folder / "selftest.npz")
    with deploy.open_bundle(built.folder) as runner:
        got = runner.run(feeds)
        assert [spec.name for spec in runner.inputs] == ["x"]
    assert got.keys() == want.keys() == {"y"}
    np.testing.assert_array_equal(got["y"], want["y"])


def test_without_measurements_the_rest_is_read(bundle_copy: Path) -> None:
    (bundle_copy / "measurements.json").unlink()
    measurements = load_bundle(bundle_copy).measurements
    assert measurements.comparison is None
    assert measurements.why_not


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a file"])
def test_what_is_no_bundle_is_said_so(tmp_path: Path, what: str) -> None:
    path = tmp_path / "bundle"
    if what == "an empty folder":
        path.mkdir()
    elif what == "a file":
        path.write_text("text")
    with pytest.raises(UsageError, match=r"bundle: (no such folder|not a bundle)") as caught:
        load_bundle(path)
    assert "deploy build" in caught.value.hint


def files_outside(name: str) -> Callable[[Json], object]:
    def change(manifest: Json) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files[name] = "0" * 64

    return change


def artifact_files(*names: str) -> Callable[[Json], object]:
    def change(manifest: Json) -> None:
        artifact = manifest["artifact"]
        assert isinstance(artifact, dict)
        artifact["files"] = list(names)

    return change


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "artifact/../../secret", "graph.onnx\0", "link"]
)
def test_a_file_outside_the_bundle_is_refused(bundle_copy: Path, name: str) -> None:
    (bundle_copy / "link").symlink_to("/etc/passwd")
    edit(bundle_copy, files_outside(name))
    with pytest.raises(UsageError, match="outside the bundle") as caught:
        load_bundle(bundle_copy)
    assert caught.value.hint == "do not use this bundle"


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "link"])
def test_an_artifact_outside_the_bundle_is_refused(bundle_copy: Path, name: str) -> None:
    (bundle_copy / "artifact" / "link").symlink_to("/etc/passwd")
    edit(bundle_copy, artifact_files(name))
    with pytest.raises(UsageError, match="outside the bundle"):
        open_bundle(bundle_copy)


def test_an_artifact_folder_that_is_a_link_is_refused(bundle_copy: Path, tmp_path: Path) -> None:
    (bundle_copy / "artifact").rename(tmp_path / "elsewhere")
    (bundle_copy / "artifact").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="outside the bundle"):
        load_bundle(bundle_copy)


CHANGES: Mapping[str, tuple[Callable[[Json], object], str]] = {
    "another schema": (lambda m: m.update(schema=2), "'schema'"),
    "no schema of ours": (lambda m: m.update(schema="one"), "'schema'"),
    "unknown key": (lambda m: m.update(colour="red"), "unknown key 'colour'"),
    "missing key": (lambda m: m.pop("artifact"), "'artifact'"),
    "number for text": (lambda m: m.update(target=7), "'target'"),
    "text for table": (lambda m: m.update(files="all"), "'files'"),
    "nested too deep": (lambda m: m.update(files=[[]]), "'files'"),
    "no artifact file": (artifact_files(), "'artifact.files'"),
    "infinite tolerance": (lambda m: m["verification"].update(tolerance=1e999), "manifest.json"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_manifest_of_another_make_is_refused(bundle_copy: Path, what: str) -> None:
    change, named = CHANGES[what]
    edit(bundle_copy, change)
    with pytest.raises(UsageError) as caught:
        load_bundle(bundle_copy)
    assert "manifest.json" in caught.value.message
    assert named in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b"[]", b"7", b'{"schema": 1}', b"\0" * 100]
)
def test_a_manifest_that_is_no_manifest_is_refused(bundle_copy: Path, text: bytes) -> None:
    (bundle_copy / "manifest.json").write_bytes(text)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        load_bundle(bundle_copy)


@pytest.mark.parametrize("name", ["manifest.json", "measurements.json"])
def test_a_huge_document_is_refused_unread(bundle_copy: Path, name: str) -> None:
    with (bundle_copy / name).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(UsageError, match=f"{name}: {2**40} bytes"):
        load_bundle(bundle_copy)


def test_damaged_measurements_are_named(bundle_copy: Path) -> None:
    (bundle_copy / "measurements.json").write_text("{")
    with pytest.raises(UsageError, match=r"measurements\.json"):
        load_bundle(bundle_copy)


def test_a_backend_that_is_not_installed_is_named(bundle_copy: Path) -> None:
    def change(manifest: Json) -> None:
        artifact = manifest["artifact"]
        assert isinstance(artifact, dict)
        artifact["backend"] = "warp-drive"

    edit(bundle_copy, change)
    with pytest.raises(ToolchainError, match="warp-drive"):
        open_bundle(bundle_copy)

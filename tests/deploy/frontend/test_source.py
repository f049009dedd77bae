import zipfile
from pathlib import Path

import pytest

from deploy.frontend.source import factory_name, is_exported_program, kind_of


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nets:resnet", "nets:resnet"),
        ("package.nets:resnet", "package.nets:resnet"),
        ("python:package.nets:resnet", "package.nets:resnet"),
        ("model.onnx", None),
        ("folder/nets:resnet", None),
        ("C:\\model.onnx", None),
        ("nets:resnet.pt2", None),
        ("nets.py:resnet()", None),
        (":resnet", None),
        ("nets:", None),
        ("1nets:resnet", None),
    ],
)
def test_a_function_is_told_from_a_path(text: str, name: str | None) -> None:
    assert factory_name(text) == name


def test_a_file_of_that_name_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets:resnet").write_bytes(b"")
    assert factory_name("nets:resnet") is None
    assert factory_name("python:nets:resnet") == "nets:resnet"


@pytest.mark.parametrize(
    ("name", "members", "is_one"),
    [
        ("m.pt2", ["m/archive_format", "m/models/model.json"], True),
        ("renamed.bin", ["m/archive_format"], True),
        ("old.pt2", ["version", "serialized_exported_program.json"], True),
        ("strange.pt2", ["x"], True),
        ("checkpoint.pt2", ["m/data.pkl"], False),
        ("checkpoint.pt", ["m/data.pkl"], False),
        ("arrays.npz", ["x.npy"], False),
    ],
)
def test_programs_are_known_by_what_they_hold(
    tmp_path: Path, name: str, members: list[str], is_one: bool
) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for member in members:
            archive.writestr(member, b"")
    assert is_exported_program(tmp_path / name) is is_one
    assert kind_of(tmp_path / name) == ("pt2" if is_one else "onnx")


def test_what_is_not_there_is_left_to_the_reader_of_onnx(tmp_path: Path) -> None:
    assert kind_of(tmp_path / "missing.pt2") == "onnx"

"""What may lie in a .pt2 file; the files that really run code are in tests/deploy/stages/test_capture.py."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.errors import ModelError
from deploy.frontend.torch_archive import CONFIGS, PROGRAM, check_archive, check_names, check_records

GOOD = ["archive_format", "archive_version", "byteorder", ".data/version", "data/weights/weight_0",
        "data/sample_inputs/model.pt", PROGRAM, *CONFIGS]  # fmt: skip


def write(
    path: Path, names: list[str], compression: int = zipfile.ZIP_STORED, data: bytes = b'{"config": {}}'
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


def test_the_members_of_an_exported_program_are_admitted(tmp_path: Path) -> None:
    check_archive(write(tmp_path / "m.pt2", [f"m/{name}" for name in GOOD]))


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("data/aotinductor/model/wrapper.so", "compiled code"),
        ("data/constants/custom_obj_0", "TorchBind"),
        ("data/constants/opaque_obj_0", "a pickled object"),
        ("DATA/CONSTANTS/Opaque_Obj_0", "a pickled object"),
        ("data/weights/model.pt", "no exported program has"),
        ("data/constants/model.pt", "no exported program has"),
        ("models/other.json", "no exported program has"),
        ("data/weights/../../x", "no exported program has"),
        ("data.pkl", "no exported program has"),
    ],
)
def test_other_members_are_refused(tmp_path: Path, member: str, said: str) -> None:
    path = write(tmp_path / "m.pt2", [f"m/{name}" for name in [*GOOD, member]])
    with pytest.raises(ModelError, match=said) as caught:
        check_archive(path)
    assert member in caught.value.message and caught.value.hint


@pytest.mark.parametrize("missing", ["archive_format", PROGRAM, *CONFIGS])
def test_a_program_is_whole(missing: str) -> None:
    with pytest.raises(ModelError, match=f"no member '{missing}'"):
        check_names("m.pt2", [name for name in GOOD if name != missing])


def test_a_member_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ModelError, match="twice"):
        check_names("m.pt2", [*GOOD, PROGRAM])


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.pt2", [f"m/{name}" for name in GOOD], zipfile.ZIP_DEFLATED, data=bytes(10_000_000)
    )
    with pytest.raises(ModelError, match="unpacks to 90000000 bytes"):
        check_archive(path)


def test_several_roots_and_older_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"PyTorch 2\.7 or older"):
        check_archive(write(tmp_path / "old.pt2", ["version", "serialized_exported_program.json"]))
    with pytest.raises(ModelError, match="not laid out"):
        check_archive(write(tmp_path / "two.pt2", ["a/archive_format", "b/archive_format"]))


def test_a_truncated_file_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "m.pt2", [f"m/{name}" for name in GOOD])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ModelError, match="damaged"):
        check_archive(path)


def records(program: object, weights: object = None) -> Callable[[str], bytes]:
    texts = {PROGRAM: program, CONFIGS[0]: {"config": weights or {}}, CONFIGS[1]: {"config": {}}}
    return lambda name: json.dumps(texts[name]).encode()


def size(text: str) -> dict[str, object]:
    return {"graph_module": {"sym_int_values": {"s": {"as_expr": {"expr_str": text}}}}}


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "Mul(Integer(4), Symbol('s0', integer=True))",
        "4*s77 + 1",
        "FloorDiv(s0 - 1, 2) + 1",
        "Max(1, u0)",
        "s0 >= 2",
    ],
)
def test_sizes_are_arithmetic(text: str) -> None:
    check_records("m.pt2", records(size(text)))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch marker')",
        "s0.__class__",
        "open('x')",
        "Symbol('a b')",
        "[x for x in ()]",
        "lambda: 0",
        'exec("1")',
        "().__class__",
        "s0; s1",
    ],
)
def test_other_expressions_are_refused(text: str) -> None:
    """PyTorch hands them to sympy, which evaluates them as Python."""
    with pytest.raises(ModelError, match="no arithmetic"):
        check_records("m.pt2", records(size(text)))


def structure(kind: str, context: str) -> dict[str, str]:
    return {"in_spec": json.dumps([1, {"type": kind, "context": context, "children_spec": []}])}


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ({"inputs": [{"as_tensor": {"name": "x=print(1)"}}]}, "no name"),
        ({"inputs": [{"as_tensor": {"name": "x\nimport os"}}]}, "no name"),
        ({"tensor_values": {"a b()": {}}}, "no name"),
        ({"nodes": [{"target": "torch.os.system"}]}, "outside PyTorch's own"),
        ({"nodes": [{"target": "torch.ops.mine.add"}]}, "outside PyTorch's own"),
        ({"nodes": [{"target": "torch.ops.higher_order.flat_apply"}]}, "outside PyTorch's own"),
        ({"nodes": [{"target": "torch.ops.aten.from_file.default"}]}, "reads files"),
        ({"guards_code": ["__import__('os')"]}, "no arithmetic"),
        ({"range_constraints": {"__import__('os')": {}}}, "no arithmetic"),
        (structure("collections.defaultdict", "{}"), "containers"),
        (structure("builtins.dict", '{"__enum__": 1}'), "containers"),
        (structure("builtins.dict", '["a\'"]'), "containers"),
    ],
)
def test_what_would_become_code_is_refused(program: object, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        check_records("m.pt2", records(program))


def test_pickled_weights_are_refused() -> None:
    payload = {"path_name": "weight_0", "use_pickle": True}
    with pytest.raises(ModelError, match="'w' is pickled"):
        check_records("m.pt2", records({}, {"w": payload}))
    with pytest.raises(ModelError, match="lies in"):
        check_records("m.pt2", records({}, {"w": {"path_name": "../../etc/passwd", "use_pickle": False}}))


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"[" * 100_000])
def test_damaged_texts_are_refused(data: bytes) -> None:
    with pytest.raises(ModelError, match="damaged"):
        check_records("m.pt2", lambda name: data if name == PROGRAM else b'{"config": {}}')

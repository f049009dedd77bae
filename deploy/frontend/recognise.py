"""What a file is, told from its first bytes, so that everything but ONNX gets an answer and is never opened.

Nothing here unpickles or parses: a pickle can run code when it is loaded, so a checkpoint is only recognised.
Signatures: the formats' own specifications (PKZIP APPNOTE 4.3, pickle PROTO opcode, HDF5 superblock, GGUF,
safetensors header, TFLite and Core ML file identifiers).
"""

from __future__ import annotations

import codecs
import stat
import zipfile
from pathlib import Path

from deploy.errors import ModelError

MAX_WEIGHT_BYTES = 8 * 2**30
"""Weights beyond this are outside the scope: models for edge devices and single accelerators."""

MAX_PROTOBUF_BYTES = 2**31 - 1
"""Limit of one protobuf message, and so of an ONNX file without its external data."""

_TORCH_EXPORT = (
    "load it in PyTorch where it was made and hand in the network: torch.export.save(torch.export.export("
    "model.eval(), (example,)), 'model.pt2'); or name a function that returns it: package.module:function"
)
_KERAS = (
    "export it with tf2onnx: "
    "python -m tf2onnx.convert (--keras, --saved-model or --graphdef) --output model.onnx"
)

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"


def refuse_unless_onnx(path: Path) -> int:
    """The size in bytes of a regular file that may be ONNX.

    Raises ModelError where it is missing, no regular file, empty, of another format, or beyond the limits.
    """
    size = _regular_file_size(path)
    if size == 0:
        raise ModelError(f"{path}: the file is empty", hint="export or copy the model again")
    with path.open("rb") as file:
        head = file.read(64)
    kind, hint = _other_format(path, head, size)
    if kind:
        raise ModelError(f"{path}: this is {kind}, not an ONNX model", hint=hint)
    refuse_beyond_scope(path, size)
    if size > MAX_PROTOBUF_BYTES:
        raise ModelError(
            f"{path}: {size / 2**30:.1f} GiB is more than one ONNX file can hold (2 GiB)",
            hint="export the model with its weights as external data",
        )
    return size


def refuse_beyond_scope(path: Path, weight_bytes: int) -> None:
    """Raises ModelError where the weights are far beyond what this tool is made for."""
    if weight_bytes > MAX_WEIGHT_BYTES:
        raise ModelError(
            f"{path}: {weight_bytes / 2**30:.1f} GiB of weights is beyond the scope of this tool "
            f"({MAX_WEIGHT_BYTES / 2**30:.0f} GiB)",
            hint="deploy is made for models that fit an edge device or one accelerator; "
            "use a server toolchain for large language models",
        )


def _regular_file_size(path: Path) -> int:
    try:
        str(path).encode()
        status = path.stat()
    except UnicodeEncodeError as e:
        raise ModelError(
            f"{path}: the path is not UTF-8 text, and ONNX Runtime opens no other",
            hint="rename the file or its folder",
        ) from e
    except FileNotFoundError as e:
        raise ModelError(f"{path}: no such file", hint="check the path of the model") from e
    except (OSError, ValueError) as e:
        raise ModelError(f"{path}: cannot be read: {e}", hint="check the path and its permissions") from e
    if stat.S_ISDIR(status.st_mode):
        if (path / "saved_model.pb").exists():
            raise ModelError(f"{path}: this is a TensorFlow SavedModel, not an ONNX model", hint=_KERAS)
        raise ModelError(f"{path}: this is a folder", hint="name the .onnx file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path}: not a regular file", hint="save the model to disk first")
    return status.st_size


def _other_format(path: Path, head: bytes, size: int) -> tuple[str, str]:
    """Name of the format and what to do instead; empty where it may be ONNX."""
    if head.startswith(_ZIP):
        return _zip_format(path)
    if head[:1] == _PICKLE and head[1:2] in b"\x02\x03\x04\x05":
        return (
            "a pickle (a PyTorch checkpoint, say), which is never loaded because it can run code",
            _TORCH_EXPORT,
        )
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "an HDF5 file (Keras)", _KERAS
    if head.startswith(b"GGUF"):
        return "a GGUF file (llama.cpp)", "hand in the network it was converted from, exported to ONNX"
    if head[4:8] == b"TFL3":
        return (
            "a TensorFlow Lite model",
            "convert it with: python -m tf2onnx.convert --tflite FILE --output model.onnx",
        )
    if head[4:8] == b"ORTM":
        return "a model in ONNX Runtime's own format", "hand in the .onnx file it was made from"
    if _is_safetensors(head, size):
        return "a safetensors file: weights without a network", _TORCH_EXPORT
    if head.startswith((b"\x1f\x8b", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")):
        return "a compressed archive", "unpack it first"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer", "fetch the file itself: git lfs pull"
    if head.startswith(b"\x93NUMPY"):
        return "a NumPy array", "hand in the network; data go to --data"
    if _is_text(head):
        return "text", "hand in the binary .onnx file" + (
            "; a web page usually means that a download failed" if head.lstrip()[:1] == b"<" else ""
        )
    if path.suffix == ".pb" and head[:1] == b"\x0a":
        return "a TensorFlow graph or a single tensor", _KERAS
    return "", ""


def _zip_format(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "a damaged zip archive (a PyTorch checkpoint, perhaps)", _TORCH_EXPORT
    inner = {name.rpartition("/")[2] for name in names}
    if any("/code/" in f"/{name}" for name in names) and "data.pkl" in inner:
        return "a TorchScript archive", _TORCH_EXPORT
    if {"archive_format", "serialized_exported_program.json"} & inner or (
        path.suffix == ".pt2" and "data.pkl" not in inner
    ):
        return "a torch.export program", _TORCH_EXPORT
    if "data.pkl" in inner:
        return "a PyTorch checkpoint, a pickle, which is never loaded because it can run code", _TORCH_EXPORT
    if {"config.json", "model.weights.h5"} <= inner:
        return "a Keras model", _KERAS
    if any(name.endswith(".npy") for name in names):
        return "an .npz file of arrays", "hand in the network; data go to --data"
    return "a zip archive", "unpack it first"


def _is_safetensors(head: bytes, size: int) -> bool:
    """Eight bytes of header length, then JSON."""
    return len(head) > 9 and head[8:9] == b"{" and 8 + int.from_bytes(head[:8], "little") <= size


def _is_text(head: bytes) -> bool:
    printable = set(range(0x20, 0x7F)) | {0x09, 0x0A, 0x0D}
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # incremental: the last letter may be cut
    except UnicodeDecodeError:
        return False
    return all(ord(c) in printable or ord(c) > 0x9F for c in text)

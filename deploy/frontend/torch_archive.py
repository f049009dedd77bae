"""What a ``.pt2`` file (a ``torch.export`` program) may hold, checked before PyTorch sees it.

``torch.export.load`` trusts its file: it unpickles members, evaluates expressions, and writes names into
Python source that it runs. So members are admitted by name, and every text that could become code by its
alphabet.
Format: torch/export/pt2_archive and torch/_export/serde of PyTorch 2.13. Nothing here imports PyTorch.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from deploy.errors import ModelError
from deploy.frontend.recognise import refuse_beyond_scope

PROGRAM = "models/model.json"
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_MAX_TEXT_BYTES = 128 * 2**20
_SAVE_AGAIN = "save it again with torch.export.save, from a model with plain tensors for weights"
_UNTRUSTED = "it was changed by hand or made to run code: ask where it comes from; " + _SAVE_AGAIN

_MEMBER = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt|extra/[^/]+"
)
_RUNS_CODE = {
    "data/aotinductor/": "compiled code (AOTInductor), which is never run",
    "data/executorch/": "an ExecuTorch program",
    "data/constants/custom_obj_": "a custom object (TorchBind), never loaded because it can run code",
    "data/constants/opaque_obj_": "a pickled object, never loaded because it can run code",
}

_PLAIN = re.compile(r"[\w.:\-]*", re.ASCII)
"""Names of values, parameters and operations: nothing that Python would read as more than a name."""
_KEY = re.compile(r"[\w./\- ]*")
_TOKEN = re.compile(r"\s*(?:([^\W\d]\w*)|\d+(?:\.\d*)?(?:e[+-]?\d+)?|'[^\W\d]\w*'|[-+*/%(),\[\]<>=!&|~.])")
_SYMBOL = re.compile(r"[a-z]{1,3}\d+")
_WORDS = frozenset(re.findall(r"\w+", """
    Symbol Integer Float Rational Add Mul Pow Max Min Abs Mod floor ceiling Piecewise ExprCondPair Eq
    Ne Lt Le Gt Ge And Or Not true false True False positive negative nonnegative integer zero nonzero
    finite real prec precision Infinity oo NegativeInfinity int_oo IntInfinity NegativeIntInfinity
    StrictLessThan LessThan StrictGreaterThan GreaterThan Equality Unequality FloorDiv ModularIndexing
    Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural FloatPow
    FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt
    RoundDecimal ToFloat Identity half One Zero NegativeOne Half L args kwargs size stride
    storage_offset dim and or not if else math torch sym_max sym_min sym_not
"""))  # fmt: skip
"""What sizes and guards are made of, as sympy and PyTorch print them."""
_OPERATION = re.compile(
    r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(cond|while_loop|scan|associative_scan|map_impl|invoke_subgraph"
    r"|wrap_with_set_grad_enabled|wrap_with_autocast)"
    r"|torch\._?sym_\w+|_operator\.\w+|math\.\w+",
    re.ASCII,
)
_REFUSED_OPERATIONS = ("torch.ops.aten.from_file",)
_PYTREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_PROSE = ("metadata", "as_string", "torch_version", "as_strings")
_EXPRESSIONS = ("expr_str", "guards_code")
_SPECS = ("in_spec", "out_spec")


def check_archive(path: Path) -> None:
    """Look at the names and sizes in the zip's directory, then at the texts; no tensor is touched.

    Raises ModelError where it is no program that ``torch.export.save`` wrote, holds anything that would run,
    or declares more than it holds. Whoever loads the file checks it again, with the reader that loads it:
    two readers may see two things in one archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as e:
        raise ModelError(f"{path}: a damaged .pt2 file: {e}", hint="copy it again, or export it again") from e
    declared, held = sum(m.file_size for m in members), path.stat().st_size
    if declared > held:
        raise ModelError(
            f"{path}: it says that it unpacks to {declared} bytes, but a .pt2 file of {held} bytes holds its "
            "tensors as they are",
            hint=_SAVE_AGAIN,
        )
    refuse_beyond_scope(path, declared)
    roots = {m.filename.partition("/")[0] for m in members}
    if len(roots) != 1:
        old = "serialized_exported_program.json" in {m.filename for m in members}
        raise ModelError(
            f"{path}: "
            + ("written by PyTorch 2.7 or older" if old else "not laid out as torch.export.save does"),
            hint="load it in the PyTorch that wrote it, and export it with a newer one",
        )
    check_names(str(path), (m.filename.partition("/")[2] for m in members))
    longest = max(m.file_size for m in members if m.filename.endswith(".json"))
    if longest > _MAX_TEXT_BYTES:
        raise ModelError(
            f"{path}: a graph of {longest} bytes is beyond the scope of this tool", hint=_SAVE_AGAIN
        )
    root = roots.pop()

    def record(name: str) -> bytes:
        with zipfile.ZipFile(path) as archive:
            return archive.read(f"{root}/{name}")

    check_records(str(path), record)


def check_names(path: str, names: Iterable[str]) -> None:
    """``names`` are those of the members, without the folder that all of them lie in. Raises ModelError."""
    listed = list(names)
    for name in listed:
        for start, what in _RUNS_CODE.items():
            if name.lower().startswith(start):
                raise ModelError(f"{path}: member '{name}' is {what}", hint=_SAVE_AGAIN)
        if not _MEMBER.fullmatch(name):
            raise ModelError(f"{path}: no exported program has a member '{name}'", hint=_SAVE_AGAIN)
    twice = (
        sorted({name for name in listed if listed.count(name) > 1}) if len(set(listed)) < len(listed) else []
    )
    if twice:
        raise ModelError(f"{path}: member '{twice[0]}' is there twice", hint=_UNTRUSTED)
    for needed in ("archive_format", PROGRAM, *CONFIGS):
        if needed not in listed:
            raise ModelError(
                f"{path}: there is no member '{needed}': not a program that torch.export.save wrote",
                hint="export it with PyTorch 2.8 or newer",
            )


def check_records(path: str, record: Callable[[str], bytes]) -> None:
    """The texts that PyTorch turns into code, as its own reader gives them. Raises ModelError."""
    for name in CONFIGS:
        for tensor, payload in _parsed(path, name, record(name), "config").items():
            if not isinstance(payload, dict) or payload.get("use_pickle"):
                raise ModelError(
                    f"{path}: '{tensor}' is pickled, which is never loaded because it can run code",
                    hint=_SAVE_AGAIN,
                )
            if not re.fullmatch(r"(weight|tensor)_\d+", str(payload.get("path_name"))):
                raise ModelError(f"{path}: '{tensor}' lies in '{payload.get('path_name')}'", hint=_UNTRUSTED)
    program = _parsed(path, PROGRAM, record(PROGRAM), None)
    for where, text in _texts(program, ""):
        why = _objection(where, text)
        if why:
            raise ModelError(f"{path}: {why}: {text[:80]!r}", hint=_UNTRUSTED)


def _parsed(path: str, name: str, data: bytes, key: str | None) -> dict[str, object]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise ModelError(f"{path}: '{name}' is damaged: {e}", hint="copy it again, or export it again") from e
    inner = found.get(key) if key is not None and isinstance(found, dict) else found
    if not isinstance(inner, dict):
        raise ModelError(f"{path}: '{name}' is damaged", hint="copy it again, or export it again")
    return inner


def _texts(node: object, where: str) -> Iterator[tuple[str, str]]:
    """Every string with the key under which it stands; keys themselves come under ``key``."""
    if isinstance(node, str):
        yield where, node
    elif isinstance(node, list):
        for item in node:
            yield from _texts(item, where)
    elif isinstance(node, dict):
        for key, value in node.items():
            yield "range" if where == "range_constraints" else "key", key
            if key not in _PROSE:
                yield from _texts(value, key)


def _objection(where: str, text: str) -> str:
    """Why the text may not stand there; empty where it may."""
    if where in _EXPRESSIONS or where == "range":
        return "" if _is_expression(text) else "a size is no arithmetic"
    if where in _SPECS:
        return (
            "" if _is_structure(text) else "inputs or outputs are in containers other than tuple, list, dict"
        )
    if where == "target" and text and not _OPERATION.fullmatch(text):
        return "an operation outside PyTorch's own"
    if text.startswith(_REFUSED_OPERATIONS):
        return "an operation that reads files"
    return "" if _PLAIN.fullmatch(text) else "a name is no name"


def _is_expression(text: str) -> bool:
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            return False
        word = match[1]
        if word is not None and word not in _WORDS and not _SYMBOL.fullmatch(word):
            return False
        position = match.end()
    return True


def _is_structure(text: str) -> bool:
    """A pytree of plain containers. Others import modules and call what they name."""
    try:
        nodes = [json.loads(text)[1]] if text else []
        while nodes:
            node = nodes.pop()
            context = json.loads(node["context"] or "null")
            keys = context if isinstance(context, list) else []
            if node["type"] not in _PYTREES or (context is not None and not isinstance(context, list)):
                return False
            if not all(
                isinstance(key, int) or (isinstance(key, str) and _KEY.fullmatch(key)) for key in keys
            ):
                return False
            nodes += node["children_spec"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return False
    return True

"""How to run an artifact without this package: programs for its runtime, with its own names, types, sizes."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploy.bundle.read import ARTIFACT, SELFTEST, Bundle, require_inside
from deploy.bundle.report import figures
from deploy.errors import UsageError
from deploy.spec.tensors import Normalisation, TensorSpec

if TYPE_CHECKING:
    import jinja2

_SNIPPETS = Path(__file__).with_name("snippets")
_KINDS = (("sh", "Shell"), ("py", "Python"), ("kt", "Kotlin"), ("cpp", "C++"))
"""Endings of the templates, named ``<runtime>.<ending>.j2``, in the order in which they are shown."""


@dataclass(frozen=True)
class ElementType:
    """How an element type is called in C++, in ONNX Runtime's and TensorRT's enumerations and OpenVINO's."""

    cpp: str
    onnx: str
    openvino: str


_TYPES = {
    "float32": ElementType("float", "FLOAT", "f32"),
    "float64": ElementType("double", "DOUBLE", "f64"),
    "int8": ElementType("int8_t", "INT8", "i8"),
    "uint8": ElementType("uint8_t", "UINT8", "u8"),
    "int16": ElementType("int16_t", "INT16", "i16"),
    "uint16": ElementType("uint16_t", "UINT16", "u16"),
    "int32": ElementType("int32_t", "INT32", "i32"),
    "uint32": ElementType("uint32_t", "UINT32", "u32"),
    "int64": ElementType("int64_t", "INT64", "i64"),
    "uint64": ElementType("uint64_t", "UINT64", "u64"),
    "bool": ElementType("uint8_t", "BOOL", "boolean"),
}
"""Types that a program can be shown for; a snippet is left out where an input or output has another."""


@dataclass(frozen=True)
class Port:
    """An input or output in words."""

    name: str
    type: str
    shape: str
    layout: str
    normalisation: str


@dataclass(frozen=True)
class Snippet:
    """A whole program: run in the bundle's folder."""

    language: str
    file: str
    code: str


@dataclass(frozen=True)
class Running:
    """How the artifact is fed and run. ``note`` says what is special about it."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    snippets: tuple[Snippet, ...]
    note: str


@dataclass(frozen=True)
class Fed:
    """An input as the programs see it: ``shape`` is that of one inference, in numbers, ``free`` in the file.

    Raw numbers become ``(x * scale - mean) / std`` where ``mean`` is not empty, with as many channels, one
    ``stride`` elements after the other; ``broadcast`` is the shape in which they meet the input.
    """

    name: str
    dtype: str
    type: ElementType
    shape: tuple[int, ...]
    count: int
    free: bool
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stride: int
    broadcast: tuple[int, ...]


def running(bundle: Bundle) -> Running:
    """How the artifact of a bundle is run on the device."""
    artifact = bundle.manifest.artifact
    note = _memory(artifact.memory_bytes)
    if artifact.deferred:
        note = "The artifact is finished on the device: its engine belongs to one device and one version."
    states = artifact.states
    if states:
        names = ", ".join(f"{name} (then {result})" for name, result in states.items())
        note = (
            f"The artifact keeps {names} from one inference to the next: a program neither feeds nor gets it."
        )
    return Running(
        inputs=tuple(_port(spec) for spec in artifact.inputs if spec.name not in states),
        outputs=tuple(_port(spec) for spec in artifact.outputs if spec.name not in states.values()),
        snippets=snippets(bundle),
        note=note,
    )


def snippets(bundle: Bundle) -> tuple[Snippet, ...]:
    """Programs for the artifact's runtime; none where no template knows its backend or a type is unusual."""
    artifact = bundle.manifest.artifact
    sizes = _sample_shapes(bundle)
    fed = [_fed(spec, sizes.get(spec.name, ())) for spec in artifact.inputs]
    known = [_TYPES.get(spec.dtype) for spec in artifact.outputs]
    if None in fed or None in known:
        return ()
    given = {
        "model": f"{ARTIFACT}/{artifact.files[0]}",
        "files": artifact.files,
        "inputs": fed,
        "outputs": [
            {
                "name": spec.name,
                "type": _TYPES["int8"] if spec.name in artifact.codes else kind,
                "code": artifact.codes.get(spec.name),
            }
            for spec, kind in zip(artifact.outputs, known, strict=True)
        ],
        "options": bundle.manifest.options,
        "normalises": any(port is not None and port.mean for port in fed),
        "selftest": SELFTEST,
        "memory": artifact.memory_bytes,
        "codes": artifact.codes,
    }
    runtime = "micro" if bundle.manifest.options.get("micro") else artifact.backend
    environment = _environment()
    present = {path.name for path in _SNIPPETS.iterdir()}
    found = []
    for ending, language in _KINDS:
        template = f"{runtime}.{ending}.j2"
        if template in present:
            found.append(Snippet(language, f"run_{runtime}.{ending}", _render(environment, template, given)))
    return tuple(found)


def _memory(taken: Mapping[str, int]) -> str:
    """What the network takes of a small device's memory."""
    if "arena" not in taken:
        return ""
    flash = f"{taken['flash']:,} bytes of flash and " if "flash" in taken else ""
    parts = ", ".join(f"{name} {size:,}" for name, size in taken.items() if name not in ("flash", "arena"))
    return (
        f"The network takes {flash}an arena of {taken['arena']:,} bytes of memory, by estimate"
        + (f" ({parts})" if parts else "")
        + "; the program and the runtime's kernels come on top."
    )


def _render(environment: jinja2.Environment, template: str, given: Mapping[str, object]) -> str:
    import jinja2

    try:
        return environment.get_template(template).render(given)
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError) as e:
        raise UsageError(
            f"the manifest's options are not those of its runtime: {e}", hint="build the bundle again"
        ) from e


def _environment() -> jinja2.Environment:
    import jinja2

    from deploy.bundle.report.compiled import loader

    templates, compiled = loader(_SNIPPETS)
    environment = jinja2.Environment(
        loader=templates,
        bytecode_cache=compiled,
        autoescape=False,  # program text: names stand in it as literals; a page escapes the whole
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"py": ascii, "cpp": cpp_literal, "kt": kotlin_literal}
    return environment


def cpp_literal(text: str) -> str:
    """A C++ string literal of the text's UTF-8, in plain ASCII whatever it holds."""
    plain = {
        *b" !#$%&'()*+,-./0123456789:;<=>@[]^_`{|}~",
        *range(ord("A"), ord("Z") + 1),
        *range(ord("a"), ord("z") + 1),
    }
    return (
        '"' + "".join(chr(b) if b in plain else f"\\{b:03o}" for b in text.encode("utf-8", "replace")) + '"'
    )


def kotlin_literal(text: str) -> str:
    """A Kotlin string literal in plain ASCII that ends no comment: nothing in it is a template."""
    units = text.encode("utf-16-be", "replace")
    codes = (int.from_bytes(units[i : i + 2], "big") for i in range(0, len(units), 2))
    plain = {*b" !#%&'()+,-.:;<=>@[]^_`{|}~", *range(48, 58), *range(65, 91), *range(97, 123)}
    return '"' + "".join(chr(code) if code in plain else f"\\u{code:04x}" for code in codes) + '"'


def _port(spec: TensorSpec) -> Port:
    layout = "" if spec.layout == "any" else spec.layout
    said = _words(spec.normalisation)
    if spec.raw:
        pixels = "pixels from 0 to 255" if spec.dtype == "uint8" else "pixels from 0 to 255, less 128"
        said = f"{pixels}; {said}".removesuffix("; ")
    if spec.colours == "BGR":
        said = f"colours in the order BGR; {said}".removesuffix("; ")
    return Port(spec.name, spec.dtype, figures.shape(spec.shape), layout, said)


def _words(normalisation: Normalisation | None) -> str:
    if normalisation is None or normalisation.identity:
        return ""
    mean, std = (", ".join(f"{v:g}" for v in part) for part in (normalisation.mean, normalisation.std))
    words = f"(x × {normalisation.scale:.6g} − mean) ÷ std with mean {mean} and std {std}"
    return f"the artifact itself computes {words}" if normalisation.folded else words


def _fed(spec: TensorSpec, sample: tuple[int, ...]) -> Fed | None:
    kind = _TYPES.get(spec.dtype)
    shape = _one_inference(spec.shape, sample)
    if kind is None or shape is None:
        return None
    scaling = spec.normalisation
    if scaling is None or scaling.folded or scaling.identity:
        scaling = None
    channels = 1 if scaling is None else max(len(scaling.mean), len(scaling.std))
    axis = _channel_axis(spec, shape, channels)
    if scaling is not None and channels > 1 and axis is None:
        return None
    mean, std = ((), ()) if scaling is None else (_repeated(v, channels) for v in (scaling.mean, scaling.std))
    return Fed(
        name=spec.name,
        dtype=spec.dtype,
        type=kind,
        shape=shape,
        count=prod(shape),
        free=any(isinstance(size, str) for size in spec.shape),
        scale=1.0 if scaling is None else scaling.scale,
        mean=mean,
        std=std,
        stride=1 if axis is None else prod(shape[axis + 1 :]),
        broadcast=() if axis is None else tuple(channels if i == axis else 1 for i in range(len(shape))),
    )


def _repeated(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else values * channels


def _channel_axis(spec: TensorSpec, shape: tuple[int, ...], channels: int) -> int | None:
    """Where the channels lie: by the layout, else the first axis behind the samples that has as many."""
    if channels == 1 or len(shape) < 2:
        return None
    if spec.layout != "any":
        axis = 1 if spec.layout == "NCHW" else len(shape) - 1
        return axis if shape[axis] == channels else None
    return next((i for i in range(1, len(shape)) if shape[i] == channels), None)


def _one_inference(shape: tuple[int | str, ...], sample: tuple[int, ...]) -> tuple[int, ...] | None:
    """Sizes of one inference: free ones as in the self-test, the batch 1. None where that does not say."""
    if any(isinstance(size, str) for size in shape[1:]) and len(sample) != len(shape):
        return None
    first = tuple(size if isinstance(size, int) else 1 for size in shape[:1])
    rest = tuple(size if isinstance(size, int) else sample[i + 1] for i, size in enumerate(shape[1:]))
    return first + rest


def _sample_shapes(bundle: Bundle) -> dict[str, tuple[int, ...]]:
    """The shapes of the self-test's inputs, from the heads of the arrays alone: no data are read."""
    path = bundle.folder / SELFTEST
    require_inside(bundle.folder, SELFTEST)
    if not path.is_file():
        return {}
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                kind, _, name = member.removesuffix(".npy").partition("/")
                if kind == "input":
                    with archive.open(member) as file:
                        shapes[name] = _shape(io.BytesIO(file.read(_HEAD)))
    except _DAMAGES as e:
        raise UsageError(f"{path}: not a self-test that a build wrote: {e}", hint="build again") from e
    return shapes


_DAMAGES = (
    zipfile.BadZipFile, zlib.error, tokenize.TokenError, EOFError, ValueError, NotImplementedError,
    RuntimeError,
)  # fmt: skip
_HEAD = 16_384
"""Bytes that hold the head of an array file."""


def _shape(head: io.BytesIO) -> tuple[int, ...]:
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape: tuple[int, ...] = read(head)[0]
    return shape

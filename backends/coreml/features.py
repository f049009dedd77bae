"""What a package says of itself to programs that use it: inputs, outputs, states, and texts about it.

Field numbers are those of ``Model.proto`` and ``FeatureTypes.proto``, which coremltools publishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from backends.coreml.wire import Damaged, Message

Kind = Literal["array", "image", "state", "int64", "double", "string", "dictionary", "sequence"]
_KINDS: dict[int, Kind] = {
    1: "int64", 2: "double", 3: "string", 4: "image", 5: "array", 6: "dictionary", 7: "sequence", 8: "state",
}  # fmt: skip
_ARRAYS = {65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8", 65552: "float16"}
_COLOURS = {10: "gray", 20: "rgb", 30: "bgr", 40: "gray16"}
_LARGEST_SIDE = 2**20
"""Of an image, in pixels."""
_PROGRAM = 502
_OTHERS = {
    200: "a pipeline", 201: "a pipeline", 202: "a pipeline", 403: "a neural network", 303: "a neural network",
    500: "a neural network", 302: "a tree ensemble", 402: "a tree ensemble", 555: "a custom model",
    556: "a linked model", 3000: "a serialized model",
}  # fmt: skip
_AGAIN = "convert the model again: ct.convert(model, convert_to='mlprogram') writes a program"
_PARTS = "its parts are models of their own: save each one (coremltools: get_spec().pipeline.models)"
_MAC = "it needs Core ML itself, on a Mac"


class NoProgram(Damaged):
    """A model that is whole, but none of the kind that is evaluated; ``hint`` says what to do."""

    def __init__(self, text: str, hint: str) -> None:
        super().__init__(text)
        self.hint = hint


@dataclass(frozen=True)
class Feature:
    """An input, output or state. ``shape`` is empty where none is said.

    ``bounds``: the least and most of each size (None for no most) where sizes are free; ``choices``: the
    shapes that are allowed where they are listed. For images ``colour``, and height and width in ``shape``.
    """

    name: str
    kind: Kind
    dtype: str = ""
    shape: tuple[int, ...] = ()
    bounds: tuple[tuple[int, int | None], ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    colour: str = ""
    optional: bool = False
    default: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Interface:
    """What one function of a package takes and gives."""

    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Feature, ...]


@dataclass(frozen=True)
class Specification:
    """``version`` of the format: 7 is iOS 16, 8 iOS 17, 9 iOS 18. ``interfaces`` by function."""

    version: int
    interfaces: Mapping[str, Interface]
    default: str
    about: Mapping[str, str]
    metadata: Mapping[str, str]
    program: Message


def specification_of(message: Message) -> Specification:
    """The specification in a .mlmodel. Raises Damaged, also where it holds no program."""
    if not message.has(_PROGRAM):
        other = next((name for number, name in _OTHERS.items() if message.has(number)), "")
        if not other:
            raise Damaged("it holds no program")
        hint = _PARTS if "pipeline" in other else _AGAIN if "neural" in other else _MAC
        raise NoProgram(f"it holds {other}; programs alone are read (iOS 15 and later)", hint)
    description = message.message(2)
    about = description.message(100)
    functions = description.messages(20)
    interfaces = {f.text(1): _interface(f, 2, 3, 6) for f in functions}
    if not interfaces:
        interfaces = {"main": _interface(description, 1, 10, 13)}
    return Specification(
        version=message.integer(1),
        interfaces=interfaces,
        default=description.text(21) or ("main" if "main" in interfaces else next(iter(interfaces))),
        about={
            name: about.text(number)
            for name, number in (("description", 1), ("version", 2), ("author", 3), ("license", 4))
            if about.has(number)
        },
        metadata={entry.text(1): entry.text(2) for entry in about.messages(100)},
        program=message.message(_PROGRAM),
    )


def _interface(message: Message, inputs: int, outputs: int, states: int) -> Interface:
    given, made, kept = (
        tuple(_feature(found) for found in message.messages(number)) for number in (inputs, outputs, states)
    )
    return Interface(given, made, kept)


def _feature(message: Message) -> Feature:
    kind_message = message.message(3)
    number = next((n for n in _KINDS if kind_message.has(n)), None)
    if number is None:
        raise Damaged(f"'{message.text(1)}' is of a kind that is not known")
    kind, inner = _KINDS[number], kind_message.message(number)
    name, text, optional = message.text(1), message.text(2), bool(kind_message.natural(1000))
    if kind == "state":
        inner = inner.message(1)
    if kind in ("array", "state"):
        dtype = _ARRAYS.get(inner.integer(2))
        if dtype is None:
            raise Damaged(f"'{name}' is an array of type {inner.integer(2)}")
        shape = _sizes(inner, 1)
        ranges = (
            [(r.natural(1), r.integer(2)) for r in inner.message(31).messages(1)] if inner.has(31) else []
        )
        choices = tuple(_sizes(c, 1) for c in inner.message(21).messages(1)) if inner.has(21) else ()
        default = _default(inner) if optional else None
        bounds = tuple((low, high if high >= 0 else None) for low, high in ranges)
        return Feature(name, kind, dtype, shape, bounds, choices, "", optional, default, text)
    if kind == "image":
        colour = _COLOURS.get(inner.integer(3), "")
        if not colour:
            raise Damaged(f"'{name}' is an image without a colour space")
        bounds, choices = (), ()
        if inner.has(31):
            both = (inner.message(31).message(n) for n in (2, 1))
            bounds = tuple((r.natural(1), r.integer(2) if r.integer(2) >= 0 else None) for r in both)
        if inner.has(21):
            choices = tuple((c.natural(2), c.natural(1)) for c in inner.message(21).messages(1))
        size = (inner.integer(2), inner.integer(1))
        if not all(0 <= side <= _LARGEST_SIDE for side in size):
            raise Damaged(f"'{name}' is an image of {size[1]} x {size[0]} pixels")
        dtype = "float16" if colour == "gray16" else "uint8"
        return Feature(name, kind, dtype, size, bounds, choices, colour, optional, None, text)
    dtypes = {"int64": "int64", "double": "float64", "string": "string"}
    keys = "int64" if inner.has(1) else "string"
    return Feature(name, kind, dtypes.get(kind, keys if kind == "dictionary" else ""), text=text)


def _sizes(message: Message, number: int) -> tuple[int, ...]:
    sizes = tuple(int(size) for size in message.varints(number))
    if len(sizes) > 32 or any(size < 0 for size in sizes):
        raise Damaged(f"an array of sizes {list(sizes[:40])}")
    return sizes


def _default(message: Message) -> float:
    """What an input is filled with that is not fed."""
    return float(message.integer(41)) or message.real(51) or message.real(61, "<d")

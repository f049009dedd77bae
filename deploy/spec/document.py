"""What every file format of ours has in common: frozen, strict, numbered, canonical.

A document is read with `parse` and written with `render`; both round-trip exactly. Unknown
keys are errors, so that a misspelt one never changes a build silently.
"""

from __future__ import annotations

import hashlib
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic._internal._model_construction import ModelMetaclass
from pydantic_core import ErrorDetails

from deploy.errors import DeployError, UsageError
from deploy.spec.near import near_names

SCHEMA: Literal[1] = 1
"""Number of the on-disk formats described in this package. A reader refuses any other."""


class Frozen(BaseModel):
    """A value that lies on disk or passes between stages: immutable, comparable, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Telling(ModelMetaclass):
    """Documents that tell in our words what they were wrongly made of.

    By its metaclass, for a part of another document is not called: that one names the file and the line.
    """

    def __call__(self, *args: object, **given: object) -> object:
        try:
            return super().__call__(*args, **given)
        except ValidationError as e:
            kind = cast("type[BaseModel]", self)
            raise UsageError(f"{kind.__name__}: {_first_problem(e)}", hint=_schema_hint(e, kind)) from e


class Given(Frozen, metaclass=_Telling):
    """What a user's program makes, too. Raises UsageError naming the key where a value is unfit."""


_NUMBERS = re.compile(r"\[[-+.eE\d,\s]+\]")

DocumentT = TypeVar("DocumentT", bound=BaseModel)


def render(document: BaseModel) -> str:
    """The document as JSON: declared field order, two-space indent, lists of numbers on one line."""
    text = document.model_dump_json(indent=2, by_alias=True)
    return _NUMBERS.sub(lambda found: " ".join(found.group().split()), text) + "\n"


def digest(document: BaseModel) -> str:
    """SHA-256 (hex) of the document's content, independent of indentation."""
    canonical = json.dumps(document.model_dump(mode="json", by_alias=True), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def parse(
    kind: type[DocumentT], text: str, *, origin: Path | str, error: type[DeployError] = UsageError
) -> DocumentT:
    """Read a JSON document of type ``kind``; ``origin`` names it in messages.

    Raises ``error`` with the line and the offending key where the text is not such a document.
    """
    try:
        return kind.model_validate_json(text)
    except ValidationError as e:
        line = line_in_json(text, _leading(e)["loc"])
        where = f"{origin}:{line}" if line else str(origin)
        raise error(f"{where}: {_first_problem(e)}", hint=_schema_hint(e, kind)) from e


def parse_toml(kind: type[DocumentT], text: str, *, origin: Path | str) -> DocumentT:
    """Read a TOML document of type ``kind``. Raises UsageError naming the line and the key."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise UsageError(f"{origin}: not valid TOML: {e}", hint="fix the line named above") from e
    try:
        return kind.model_validate(data)
    except ValidationError as e:
        location = _leading(e)["loc"]
        line = _line_of(text, location)
        where = f"{origin}:{line}" if line else str(origin)
        raise UsageError(f"{where}: {_first_problem(e)}", hint=_schema_hint(e, kind)) from e


def _leading(error: ValidationError) -> ErrorDetails:
    """The problem that explains others: another schema, then a misspelt key; else the first."""

    def rank(problem: ErrorDetails) -> int:
        return 0 if problem["loc"] == ("schema",) else 1 if problem["type"] == "extra_forbidden" else 2

    return min(error.errors(), key=rank)


def _first_problem(error: ValidationError) -> str:
    first = _leading(error)
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key '{key}'{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"'{key}': {message}{more}" if key else f"{message}{more}"


def _schema_hint(error: ValidationError, kind: type[BaseModel]) -> str:
    if any(e["loc"] == ("schema",) for e in error.errors()):
        return f"this version reads schema {SCHEMA}; use the version of deploy that wrote the file"
    if any(e["type"] == "json_invalid" for e in error.errors()):
        return "give a whole file as deploy wrote it"
    if any(e["type"] == "extra_forbidden" for e in error.errors()):
        near = " or ".join(f"'{name}'" for name in near_names(kind, _leading(error)["loc"]))
        meant = f"did you mean {near}? else " if near else ""
        return f"{meant}remove the key, or look up its spelling in the documents, under Reference"
    return "correct the value of that key"


def line_in_json(text: str, location: Sequence[int | str]) -> int | None:
    """The line, from 1, of the value that ``location`` (keys, numbers of items) leads to in JSON ``text``.

    Of what is not there (a missing key, the tag of a union) that of the deepest part which is. None where
    nothing of it is, or the text is no JSON.

    >>> line_in_json('{"points": [\\n  1,\\n  "two"\\n]}', ("points", 1))
    3
    """
    found, position = None, 0
    try:
        for part in location:
            inner = dict(_members(text, position))
            if part in inner:
                found = position = inner[part]
    except (ValueError, RecursionError):
        return None
    return None if found is None else text.count("\n", 0, found) + 1


_BLANK = re.compile(r"[ \t\n\r]*")


def _members(text: str, position: int) -> Iterator[tuple[int | str, int]]:
    """What an object or array holds: keys, or numbers from 0, and where their values begin."""
    decoder = json.JSONDecoder()

    def past(sign: str, position: int) -> int:
        position = past_blank(position)
        if text[position : position + 1] != sign:
            raise ValueError(f"no {sign} at {position}")
        return past_blank(position + 1)

    def past_blank(position: int) -> int:
        blank = _BLANK.match(text, position)
        return blank.end() if blank else position

    position = past_blank(position)
    opened = text[position : position + 1]
    if opened not in ("{", "["):
        return
    position, number = past(opened, position), 0
    while text[position : position + 1] not in ("}", "]"):
        key: int | str = number
        if opened == "{":
            key, position = decoder.raw_decode(text, position)
            position = past(":", position)
        yield key, position
        _, position = decoder.raw_decode(text, position)
        position = past_blank(position)
        if text[position : position + 1] == ",":
            position = past(",", position)
        number += 1


def _line_of(text: str, location: tuple[int | str, ...]) -> int | None:
    """The line of the deepest part of ``location`` that the TOML text spells out, tables in order."""
    lines = text.splitlines()
    found: int | None = None
    start = 0
    path: list[str] = []
    occurrence = 0
    for part in location:
        if isinstance(part, int):
            occurrence = part
            continue
        path.append(part)
        headers = ("[" + ".".join(path) + "]", "[[" + ".".join(path) + "]]")
        matches = [i for i, line in enumerate(lines) if line.split("#")[0].strip() in headers]
        if matches:
            start = matches[min(occurrence, len(matches) - 1)]
            found, occurrence = start + 1, 0
            continue
        for i in range(start, len(lines)):
            if i > start and lines[i].lstrip().startswith("["):
                break
            if lines[i].split("=")[0].strip().strip('"') in (part, ".".join(path[-2:])):
                found = i + 1
                break
    return found

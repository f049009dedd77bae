"""What a key that a document does not know may have been meant for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def near_names(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Keys that are spelt like the last part of ``location``, of the table of ``kind`` that it lies in.

    >>> from pydantic import create_model
    >>> inner = create_model("Inner", words=str)
    >>> outer = create_model("Outer", rules=dict[str, inner])
    >>> near_names(outer, ("rules", "one", "word"))
    ['words']
    """
    if not location:
        return []
    tables = [kind]
    for part in location[:-1]:
        tables = [inner for table in tables for inner in _inner(table, part)]
    names = {field.alias or name for table in tables for name, field in _fields(table)}
    return difflib.get_close_matches(str(location[-1]), sorted(names), n=2, cutoff=0.6)


def _fields(table: Any) -> list[tuple[str, Any]]:
    return list(table.model_fields.items()) if _is_model(table) else []


def _inner(kind: Any, part: int | str) -> list[Any]:
    """The types that ``part`` of a value of that type may have."""
    if _is_model(kind):
        fields = {field.alias or name: field.annotation for name, field in _fields(kind)}
        return _plain(fields[part]) if part in fields else []
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _plain(arguments[1])
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return [inner for argument in arguments if argument is not Ellipsis for inner in _plain(argument)]
    return []


def _plain(kind: Any) -> list[Any]:
    """The types of a union, without what is said beside them."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in (Union, UnionType):
        return [inner for argument in arguments for inner in _plain(argument)]
    return [kind]


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)

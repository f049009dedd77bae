"""What is asked of an artifact's inputs and outputs beyond what the model has, where formats have words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

from deploy.spec.document import Frozen

_SPAN = re.compile(r"([1-9]\d{0,8})\.\.(?:([1-9]\d{0,8})\.\.)?([1-9]\d{0,8})")
_FORMS = '[1, 3, 224, "128..512"] or [[1, 3, 224, 224], [1, 3, 320, 320]]'


def _checked(value: object) -> object:
    """Raises ValueError with one sentence, where a union of types would say one for each."""
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"sizes are a list: {_FORMS}")
    if all(isinstance(shape, list | tuple) for shape in value):
        if len({len(shape) for shape in value}) > 1 or not all(_is_size(n) for shape in value for n in shape):
            raise ValueError(f"shapes have whole numbers from 1, as many each: {_FORMS}")
        return value
    for size in value:
        if isinstance(size, str):
            found = _SPAN.fullmatch(size)
            if found is None:
                raise ValueError(f'"{size}" is no range of sizes: write "32..512", or "32..224..512"')
            least, usual, most = span(size)
            if not least <= usual <= most:
                raise ValueError(f'"{size}": sizes go from the least over the usual one to the most')
        elif not _is_size(size):
            raise ValueError(f"{size} is no size: {_FORMS}")
    return value


def _is_size(value: object) -> bool:
    return isinstance(value, int) and value is not True and 1 <= value < 10**9


Sizes = Annotated[tuple[int | str | tuple[int, ...], ...], BeforeValidator(_checked)]
"""Of one input: a size or a range for each axis, or the shapes that are taken, the usual one first.

A range goes from the least to the most; the usual size, which else is the least, may stand between:
``"32..512"``, ``"32..224..512"``.
"""


def span(size: int | str) -> tuple[int, int, int]:
    """Least, usual and greatest size of an axis.

    >>> span("32..224..512"), span("8..64"), span(3)
    ((32, 224, 512), (8, 8, 64), (3, 3, 3))
    """
    if isinstance(size, int):
        return size, size, size
    found = _SPAN.fullmatch(size)
    assert found is not None
    return int(found[1]), int(found[2] or found[1]), int(found[3])


def shapes_of(sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """The usual shape, and the others that bound what is taken.

    >>> shapes_of((1, "8..16..32"))
    ((1, 16), (1, 8), (1, 32))
    >>> shapes_of(((1, 8), (1, 16)))
    ((1, 8), (1, 16))
    """
    listed = tuple(shape for shape in sizes if isinstance(shape, tuple))
    if listed:
        return listed
    spans = [span(size) for size in sizes if isinstance(size, int | str)]
    least, usual, most = (tuple(one[at] for one in spans) for at in range(3))
    return tuple(dict.fromkeys((usual, least, most)))


def bounds_of(sizes: Mapping[str, Sizes]) -> list[dict[str, tuple[int, ...]]]:
    """The shapes of all inputs together: the usual ones, the least, the greatest; of lists row by row.

    An input with a shorter list keeps its usual shape.

    >>> bounds_of({"x": (1, "2..4..8"), "z": (1, "1..3")})[1:]
    [{'x': (1, 2), 'z': (1, 1)}, {'x': (1, 8), 'z': (1, 3)}]
    """
    rows: list[dict[str, tuple[int, ...]]] = []
    for at in range(max((len(_row(said)) for said in sizes.values()), default=0)):
        row = {name: _row(said)[at if at < len(_row(said)) else 0] for name, said in sizes.items()}
        rows += [] if row in rows else [row]
    return rows


def _row(sizes: Sizes) -> tuple[tuple[int, ...], ...]:
    """Shapes of one input: the listed ones, or the usual, the least and the greatest."""
    spans = [span(size) for size in sizes if not isinstance(size, tuple)]
    return tuple(zip(*((usual, least, most) for least, usual, most in spans), strict=True)) or shapes_of(
        sizes
    )


class Ends(Frozen):
    """``states``: inputs that the artifact keeps for the next inference -> the outputs that they are then.
    ``sizes``: what free sizes may be, by input. ``classes``: their names, where it is to give them itself."""

    states: dict[str, str] = {}
    sizes: dict[str, Sizes] = {}
    classes: tuple[str, ...] = ()


NOTHING_ASKED = Ends()

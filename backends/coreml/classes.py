"""Names of the classes that a package tells apart."""

from __future__ import annotations

import json

from backends.coreml.package import Package
from backends.coreml.program import Function

CLASSES = "classes"
"""Our entry of metadata with the names of the classes, a JSON list in the order of their numbers."""
_MOST = 100_000


def class_names(package: Package, function: Function) -> tuple[str, ...]:
    """Those of a classifier in the order of its probabilities, else what we wrote beside a program.

    Empty where there are none. Raises Damaged where they cannot be read.
    """
    classified = [o for o in function.block.operations if o.type == "classify" and "classes" in o.inputs]
    if not classified:
        return _noted(package.specification.metadata.get(CLASSES, ""))
    (binding, *_) = classified[-1].inputs["classes"] or ("",)
    values = [binding]
    if isinstance(binding, str):
        made = (o for o in function.block.operations if o.type == "const")
        values = [o.attributes["val"] for o in made if o.name == binding and "val" in o.attributes]
    found = [package.constant(value) for value in values if not isinstance(value, str)]
    return tuple(str(one) for one in found[0].reshape(-1)[:_MOST]) if found else ()


def _noted(text: str) -> tuple[str, ...]:
    try:
        found = json.loads(text) if text else []
    except (ValueError, RecursionError):
        return ()
    return tuple(str(name) for name in found[:_MOST]) if isinstance(found, list) else ()

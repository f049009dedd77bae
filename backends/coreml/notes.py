"""What we write beside a program into its metadata, to know it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from backends.coreml.package import Package, open_package
from deploy.errors import BackendError
from deploy.spec.tensors import Layout

METADATA = "deploy"


@dataclass(frozen=True)
class Notes:
    """``planned`` are (name, variable, whether for some readers only), ``ends`` the graph's names of the
    program's inputs and outputs, ``images`` the order NCHW or NHWC in which the graph takes the pixels of
    those that are images, ``states`` the graph's input and output by the state that stands for them,
    ``scored`` its output that is classified, empty where none is, ``values`` the variables of inner values,
    ``by_outputs`` the matrices that are stored turned, ``weights`` the variables of float constants, in
    whatever form these are, ``nodes`` the graph's nodes by the variables that were made for them."""

    planned: list[tuple[str, str, bool]]
    ends: dict[str, str]
    images: dict[str, Layout]
    states: dict[str, tuple[str, str]]
    scored: str
    values: dict[str, str]
    by_outputs: list[str]
    weights: dict[str, str]
    nodes: dict[str, str]

    def text(self) -> str:
        """As it is stored."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))


_NOTES = TypeAdapter(Notes)


def notes_of(package: Package) -> Notes | None:
    """What we wrote beside the program; None where somebody else wrote the package."""
    return notes_in(package.specification.metadata.get(METADATA))


def notes_in(text: str | None) -> Notes | None:
    """The same of the entry's text."""
    if text is None:
        return None
    try:
        return _NOTES.validate_json(text)
    except ValidationError:
        return None


def required_notes(path: Path) -> Notes:
    """What we wrote into a package. Raises BackendError for one that somebody else wrote."""
    with open_package(path) as package:
        return ours(path, notes_of(package))


def ours(path: Path, notes: Notes | None) -> Notes:
    """The notes of a package. Raises BackendError where there are none."""
    if notes is None:
        raise BackendError(f"{path.name} was not written by deploy", hint="build it again")
    return notes

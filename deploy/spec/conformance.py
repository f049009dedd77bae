"""What a backend takes of the ONNX standard, as the standard's own node cases show it.

Each backend brings one such document; `docs/coverage.py` writes it by running the cases, `deploy support` and
the reference pages show it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deploy.spec.document import SCHEMA, Frozen


class OperationCases(Frozen):
    """The node cases of one operation.

    ``types`` are those of the data that it is taken for: as the backend's table says, else of the cases that
    are taken. ``taken`` of the cases are written, ``agree`` of these give what the standard says. ``refused``
    and ``unsure`` (it cannot be said before trying) hold names of cases by reason; ``differ`` says of those
    that are taken and known to differ why.
    """

    types: tuple[str, ...] = ()
    taken: int = Field(default=0, ge=0)
    agree: int = Field(default=0, ge=0)
    refused: dict[str, tuple[str, ...]] = {}
    unsure: dict[str, tuple[str, ...]] = {}
    differ: dict[str, str] = {}

    @property
    def cases(self) -> int:
        return self.taken + sum(map(len, (*self.refused.values(), *self.unsure.values())))


class Conformance(Frozen):
    """The operations of one backend by name, under the rules of ``profile``'s runtime of the same name.

    ``runtime`` is what ran the cases, with its version, ``onnx`` the version of the standard's package. Where
    it is not ``ran`` the backend alone was asked, and nothing is known to agree. ``table``: the backend
    writes the operations of a table of its own; it has none where the runtime itself is asked.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    backend: str
    profile: str
    runtime: str
    onnx: str
    opset: int
    ran: bool = True
    table: bool = True
    operations: dict[str, OperationCases]

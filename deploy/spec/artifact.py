"""What a backend writes, and what it says of every node beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from deploy.spec.document import Frozen
from deploy.spec.plan import QuantParams
from deploy.spec.tensors import TensorSpec


class Options(Frozen):
    """How an artifact is opened. A backend with settings of its own derives one class from this."""

    threads: int = Field(default=1, ge=1, le=1024)


class Verdict(Frozen):
    """Whether a backend can run one node; ``unknown`` where it cannot be said before trying."""

    node: str
    op: str
    support: Literal["supported", "unsupported", "unknown"]
    reason: str = ""


class Description(Frozen):
    """What is known of a model beside what it computes, for formats that have a place for it.

    ``inputs`` have the normalisation that is left to do to raw data; ``classes`` may be empty. ``facts`` are
    more that may be said, by name: what it was built by, the digest of its plan.
    """

    name: str
    text: str
    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...] = ()
    author: str = ""
    license: str = ""
    facts: dict[str, str] = {}


class Artifact(Frozen):
    """Files in the backend's own format. ``files`` are relative to ``folder``, the main one first.

    ``values`` maps inner values of the graph to their names in the artifact, for comparing layer by layer.
    ``weight_bytes`` counts the constants in the file, quantization parameters included; ``stored`` says how
    many of them lie in a smaller form that says the same, by that form in words. A ``deferred``
    artifact is finished on the device; here it was checked by other means. ``foreign`` files were not written
    by this process: whoever opens one may not let it crash us. ``memory_bytes`` is what it takes to run where
    that is known beforehand: ``flash`` for the network, ``arena`` for what changes while it runs, and parts.
    ``codes`` are the outputs that the file gives as integers q, meaning (q - zero point) * scale; a runner
    gives the meaning, of the type that ``outputs`` says. ``states`` are the inputs that it keeps itself, with
    the outputs that they become; a runner takes and gives them all the same (`adapter/protocol.py`).
    """

    backend: str
    files: tuple[str, ...] = Field(min_length=1)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    values: dict[str, str] = {}
    weight_bytes: int = Field(default=0, ge=0)
    stored: dict[str, int] = {}
    memory_bytes: dict[str, int] = {}
    codes: dict[str, QuantParams] = {}
    states: dict[str, str] = {}
    deferred: bool = False
    toolchain: dict[str, str] = {}
    folder: Path = Field(default=Path(), exclude=True)
    foreign: bool = Field(default=False, exclude=True)

    @property
    def main(self) -> Path:
        return self.folder / self.files[0]

    def size_bytes(self) -> int:
        """Size of the model, with weights that lie in a file of their own and without scripts beside it."""
        model = [name for name in self.files if name == self.files[0] or name.endswith((".data", ".bin"))]
        return sum((self.folder / name).stat().st_size for name in model)

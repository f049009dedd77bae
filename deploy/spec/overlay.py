"""What was measured on one machine: the cost of kernels by runtime, and the machine's own figures.

An overlay lies beside the profiles and is never part of one: a profile says what a kind of device can do, an
overlay what one machine took, with which versions, and when. Plain JSON.
"""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import Field, model_validator

from deploy.spec.document import SCHEMA, Frozen
from deploy.spec.profile import Figure
from deploy.spec.tensors import Precision

KernelClass = Literal[
    "conv", "pointwise", "depthwise", "grouped", "transposed", "stem",
    "gemm", "batched", "recurrent", "gru",
    "elementwise", "activation", "hard", "transcendental", "softmax", "norm",
    "reduce", "pool", "resize", "concat", "transpose", "move",
    "convert", "entry", "overhead",
]  # fmt: skip
"""What a kernel does; `deploy/predict/kernels.py` says which operations are which.

``gru`` is the one whose reset gate acts before the product (linear_before_reset 0), for which some runtimes
have only a slow kernel; all other recurrent layers are ``recurrent``. ``convert`` is one change between float
and integers with the changes of layout that it brings, ``entry`` what an input and an output cost on their
way into and out of the runtime's own form, ``overhead`` a graph that does nothing.
"""

_MOST = 2**62
"""Of anything counted: files come from elsewhere, and a float holds it."""
_LONGEST_MS = 1e7


class Cost(Frozen):
    """One measured point: the milliseconds that a kernel of a class takes at a size, in a chain of its like.

    ``macs`` are multiply-accumulates, ``bytes`` what the kernel reads and writes in its precision, weights
    included, and the patches that a first convolution gathers; ``depth`` how many products are summed into
    one number (1 where none are), ``align`` the largest power of two, 64 at most, that divides its channels.
    ``spread`` is the interquartile range over the median, ``shape`` what was measured, in words.
    """

    op: KernelClass
    precision: Precision
    macs: int = Field(ge=0, le=_MOST)
    bytes: int = Field(ge=0, le=_MOST)
    depth: int = Field(default=1, ge=1, le=_MOST)
    align: int = Field(default=1, ge=1, le=_MOST)
    ms: float = Field(ge=0, le=_LONGEST_MS)
    spread: float = Field(ge=0)
    shape: str = ""


class Failure(Frozen):
    """A point that could not be measured, and why."""

    op: KernelClass
    precision: Precision
    shape: str
    reason: str


class RuntimeCosts(Frozen):
    """The points of one runtime. ``settings`` are the profile's options by which artifacts were opened;
    ``runner`` is the number of our own code between feeds and the runtime, whose time is in every point."""

    name: str
    version: str
    threads: int = Field(ge=1, le=1024)
    settings: dict[str, bool | int | str] = {}
    runner: int = Field(default=1, ge=1)
    cost: tuple[Cost, ...]
    failures: tuple[Failure, ...] = ()


class Machine(Frozen):
    """What an overlay belongs to. ``features`` are the CPU's flags that runtimes choose their kernels by."""

    cpu: str
    arch: str
    features: tuple[str, ...]
    cores: int = Field(ge=1, le=2**20)
    device: str = ""
    """The accelerator that was measured, where it was not the CPU."""


class Overlay(Frozen):
    """One survey of one machine. ``facts`` are its figures: bandwidth, caches, clocks, temperature.

    ``noise`` is the median spread of the points: above 0.2 the machine was too busy to be believed.
    """

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    profile: str
    """The profile by whose rules it was measured."""
    machine: Machine
    date: date
    command: str
    quick: bool = False
    seconds: float = Field(ge=0)
    noise: float = Field(ge=0)
    facts: dict[str, Figure] = {}
    runtime: tuple[RuntimeCosts, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _runtimes_differ(self) -> Overlay:
        names = [runtime.name for runtime in self.runtime]
        if len(set(names)) != len(names):
            raise ValueError("a runtime stands there twice")
        return self

    def runtime_named(self, name: str) -> RuntimeCosts | None:
        """The points of that runtime, None where it was not measured."""
        return next((runtime for runtime in self.runtime if runtime.name == name), None)

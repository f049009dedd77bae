"""What a backend and an opened artifact must offer; nothing else is asked of a vendor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

import numpy as np

from deploy.graph.palette import PaletteForms
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Description, Options, Verdict
from deploy.spec.conformance import Conformance
from deploy.spec.contents import FileContents
from deploy.spec.manifest import KnownHazard
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime
from deploy.spec.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir  # children that open artifacts start without it, in half the time

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Availability:
    """Whether the runtime behind a backend is here. ``missing`` says what to install, empty when found.

    ``deferred``: the runtime is needed on the device only, artifacts are written and checked without it.
    """

    runtime: str
    version: str | None
    missing: str = ""
    deferred: bool = False

    @property
    def usable(self) -> bool:
        """Whether this machine can build for the runtime."""
        return self.version is not None or self.deferred


class Runner(Protocol):
    """An opened artifact. A context manager; arrays go in and out by name."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    executed_by: str
    """What really computes, with its version, for the manifest: the runtime, or what stands in for it."""

    def run(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """The outputs for ``feeds``, plus those of the inner values named in ``want`` that exist here.

        Raises DataError where the feeds do not fit, BackendError where the runtime fails.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Backend(Protocol):
    """One vendor's format and runtime. ``runtime`` is the profile's table for it: rules, opset, options."""

    name: str
    options_type: type[Options]
    """The class of its options, by which a manifest is read."""

    def available(self) -> Availability: ...

    def options(self, runtime: Runtime, threads: int) -> Options:
        """The settings an artifact is opened with."""

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """Supported, unsupported with the reason, or unknown: for every node."""

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        """Write the Q/DQ graph that carries ``plan`` in the backend's own format into ``workdir``.

        Raises UnsupportedError listing every node that it cannot express, BackendError where a vendor's
        toolchain fails.
        """

    def read_plan(self, artifact: Artifact) -> Plan:
        """The tensors' parameters as they stand in the written file, never from memory."""

    def open(self, artifact: Artifact, options: Options) -> Runner:
        """Open it as often as wanted. A ``foreign`` one may be made to harm: where the runtime is not proof
        against that, it is opened in a child process (`adapter/child.py`).

        Raises ToolchainError where the runtime is missing, BackendError where it cannot open the file.
        """

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        """Milliseconds of one inference by node of the lowered graph, from the runtime's own profiler.

        A kernel that several nodes became counts for the node that makes its result; what belongs to no node
        (copies, changes of format) stands under an empty name. Empty where the runtime cannot say.
        """


@runtime_checkable
class Inspects(Protocol):
    """A backend that can say what a file of its format holds, whoever wrote it."""

    suffixes: tuple[str, ...]
    """Ends of file names, small letters with the dot."""

    def contents(self, path: Path) -> FileContents:
        """Raises BackendError for a file that is damaged, ToolchainError where the runtime is missing."""


class OpenedFile(Runner, Protocol):
    """A runner over a file that no bundle describes."""

    classes: tuple[str, ...]
    """Names of the classes that it tells apart, as far as it says them."""
    usual: Mapping[str, tuple[int, ...]]
    """Sizes that the file itself names for its inputs, also where others are allowed."""


@runtime_checkable
class Opens(Inspects, Protocol):
    """A backend that runs files of its format, whoever wrote them."""

    def open_file(self, path: Path) -> OpenedFile:
        """In a child process, where the file may do no harm; it says itself what it takes and gives.

        Raises BackendError for a file that is damaged or needs what is not here.
        """


class Piece(Protocol):
    """A part of an artifact that lies between values of the graph it was lowered from, and runs alone."""

    @property
    def node(self) -> str:
        """The node whose result it makes; empty for a change of type or order, or where nobody knows."""

    @property
    def reads(self) -> tuple[str, ...]: ...

    @property
    def result(self) -> str: ...

    def run(self, feeds: Arrays) -> np.ndarray:
        """The result for the values read, both as the graph has them."""


@runtime_checkable
class Divides(Protocol):
    """A backend whose artifacts can be run operation by operation, so that these answer for the whole."""

    cut: str
    """What the parts are, in a few words."""

    def pieces(self, artifact: Artifact, options: Options, known: Collection[str]) -> Iterator[Piece]:
        """The parts of an artifact of ours in the order in which they run; ``known`` are values to feed."""


@runtime_checkable
class Splits(Protocol):
    """A backend whose artifacts can be looked at in parts, which tell where a fault is; of the whole, whose
    parts a runtime may fuse otherwise, they prove nothing."""

    cut: str
    """What the parts are, in a few words."""

    def parts(self, artifact: Artifact, options: Options, known: Collection[str]) -> Iterator[Piece]:
        """As `Divides.pieces`."""


@runtime_checkable
class Stores(Protocol):
    """A backend that can read the integers of constants out of an artifact."""

    def codes(self, artifact: Artifact) -> dict[str, np.ndarray]:
        """By the names of the values that they stand for, axes in ONNX's order; of 4 bits one in a byte."""


@runtime_checkable
class Warns(Protocol):
    """A backend that can say what its runtime makes of an artifact that costs speed."""

    def hazards(self, artifact: Artifact, options: Options) -> list[KnownHazard]: ...


@dataclass(frozen=True)
class Variant:
    """Other settings that an artifact may be opened with; ``name`` says in a few words how they differ.

    ``around`` is what floats are then computed in, where that is not what the profile says: results differ,
    the artifact's file does not. None: results are the same.
    """

    name: str
    options: Options
    around: Literal["float32", "bfloat16"] | None = None


@runtime_checkable
class Tunes(Protocol):
    """A backend whose settings, beside threads, change what an artifact takes on one machine or another."""

    def variants(self, runtime: Runtime, options: Options) -> list[Variant]:
        """Settings worth trying instead of ``options``, with as many threads, the most promising first."""


@runtime_checkable
class Revised(Protocol):
    """A backend whose runner has a number. Who makes it take another time than before raises that, and what
    was measured through the old one is not used any more; without it the number is 1."""

    runner: int


@runtime_checkable
class Yields(Protocol):
    """A backend whose threads can wait without holding their core."""

    def yielding(self, options: Options) -> Options:
        """The same options for work that nobody times."""


@runtime_checkable
class Keeps(Protocol):
    """A backend whose artifacts can keep inputs themselves (`Runtime.asked`)."""

    def keeps(self, runtime: Runtime) -> str:
        """Why they cannot for this runtime, and what to do; empty where they can."""


@runtime_checkable
class Narrows(Protocol):
    """A backend whose format may lack what a profile's rules take for granted: those of a later release."""

    def narrowed(self, runtime: Runtime) -> tuple[Runtime, str]:
        """The runtime with the rules that can be followed, and why the others cannot; empty where all can."""


@runtime_checkable
class Names(Protocol):
    """A backend whose artifacts can give the name of a class (`Runtime.asked`)."""

    names_classes: Literal[True]


@runtime_checkable
class Remembers(Runner, Protocol):
    """A runner whose artifact may keep some of its inputs from one inference to the next.

    `Runner.run` feeds and gives them all the same, and neither reads nor changes what is kept.
    """

    states: Mapping[str, str]
    """Those inputs, with the outputs whose values they have the next time; empty where nothing is kept."""

    def step(self, feeds: Arrays, want: Sequence[str] = ()) -> dict[str, np.ndarray]:
        """As `Runner.run`, without feeds for what is kept, and after the steps before."""

    def reset(self) -> None:
        """What is kept becomes zeros, as it is when a runner is opened."""


@runtime_checkable
class Conforms(Protocol):
    """A backend that brings what ONNX's own node cases show of it."""

    def conformance(self) -> Conformance: ...


@runtime_checkable
class Palettizes(Protocol):
    """A backend whose format stores a codebook and indices for weights that share values."""

    def palette_forms(self, runtime: Runtime) -> PaletteForms: ...


@runtime_checkable
class Unpacks(Protocol):
    """A backend that can read weights out of an artifact, in whatever form they lie there."""

    def weights(self, artifact: Artifact, names: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Those of the constants called ``names`` that the artifact holds, as the graph has them: floats in
        the type that it stores, with the graph's order of axes."""


@runtime_checkable
class Describes(Protocol):
    """A backend whose format has a place for names of classes and the like."""

    def describe(self, artifact: Artifact, description: Description) -> None:
        """Write it into the artifact's file, after `lower` and before anything is read back or verified."""

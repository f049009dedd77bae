"""The artifact is one package, ``model.mlpackage``: what Xcode and Core ML open on a device."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir

from backends.coreml.child import ForeignRunner, contents
from backends.coreml.describe import describe
from backends.coreml.emitter import TARGETS
from backends.coreml.ends import Ends
from backends.coreml.file import FileRunner
from backends.coreml.interface import pinned
from backends.coreml.lower import require, walk
from backends.coreml.notes import required_notes
from backends.coreml.ops.stored import palette_forms
from backends.coreml.package import open_package
from backends.coreml.parts import ProgramPart, parts
from backends.coreml.predict import hazards
from backends.coreml.readback import read_stored, read_weights
from backends.coreml.runner import CoreMLOptions, CoreMLRunner
from backends.coreml.sdk import sdk, version
from backends.coreml.write import write
from deploy.adapter.conformance import read_conformance
from deploy.adapter.parts import ForeignParts
from deploy.adapter.protocol import Arrays, Availability, Runner
from deploy.errors import ToolchainError
from deploy.graph.fixed import pin_batch
from deploy.graph.fold import fold_shapes
from deploy.graph.palette import PaletteForms
from deploy.graph.shapes import batch_axis, free_dimensions, pin
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Description, Options, Verdict
from deploy.spec.conformance import Conformance
from deploy.spec.contents import FileContents
from deploy.spec.manifest import KnownHazard
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

PACKAGE = "model.mlpackage"


class CoreML:
    """The ``coreml`` backend."""

    name = "coreml"
    options_type: type[Options] = CoreMLOptions
    suffixes: tuple[str, ...] = (".mlpackage", ".mlmodel", ".mlmodelc")
    cut = "operations of the saved package, each alone, by the reference interpreter"
    names_classes: Literal[True] = True

    def available(self) -> Availability:
        """Whether it can be loaded; that a package is listed as installed does not say so."""
        try:
            sdk()
            return Availability("coremltools", version())
        except ToolchainError as e:
            return Availability("coremltools", None, f"{e.message}; {e.hint}")

    def conformance(self) -> Conformance:
        return read_conformance(Path(__file__).with_name("conformance.json"))

    def keeps(self, runtime: Runtime) -> str:
        """States came with iOS 18."""
        target = _target(runtime)
        if TARGETS.get(target, 18) >= 18:
            return ""
        return (
            f"Core ML keeps states from iOS 18 (macOS 15) on, and this is for {target}: build for "
            "iphone15-ios18, or a profile of your own that sets minimum_deployment_target"
        )

    def narrowed(self, runtime: Runtime) -> tuple[Runtime, str]:
        """Activations are rounded from iOS 17 on, 4 bits are stored from iOS 18 on."""
        target = _target(runtime)
        level = TARGETS.get(target, 18)
        lacks = []
        if level < 17 and runtime.quant is not None:
            runtime = runtime.model_copy(update={"quant": None})
            lacks.append("activations stay float, which iOS 17 (macOS 14) is the first to round")
        if level < 18 and "w4" in runtime.forms:
            forms = tuple(form for form in runtime.forms if form != "w4")
            weights = {form: rules for form, rules in runtime.weights.items() if form != "w4"}
            runtime = runtime.model_copy(update={"forms": forms, "weights": weights})
            lacks.append("there are no weights of 4 bits, which iOS 18 (macOS 15) is the first to store")
        reason = " and ".join(lacks)
        return runtime, f"packages for {target}: {reason} (minimum_deployment_target)" if reason else ""

    def options(self, runtime: Runtime, threads: int) -> Options:
        compute = "float16" if _precision(runtime) == "FLOAT16" else "float32"
        return CoreMLOptions.model_validate({"threads": threads, "compute": compute})

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """A dry run of `lower`."""
        return walk(_batched(_sized(graph, runtime), runtime), _target(runtime), asked=runtime.asked).verdicts

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        """The plan's palettes are stored as such; what else it says stands in the graph."""
        sized = _sized(graph, runtime)
        graph = _batched(sized, runtime)
        if graph is not sized:
            progress.note("the Neural Engine takes fixed sizes: the batch is fixed at 1")
        target = _target(runtime)
        walked = walk(graph, target, plan, half=_precision(runtime) == "FLOAT16", asked=runtime.asked)
        require(walked)
        path = workdir / PACKAGE
        values = write(graph, walked, target, _precision(runtime), path)
        with open_package(path) as package:
            weights = package.weight_bytes()
        files = sorted(str(p.relative_to(workdir)) for p in path.rglob("*") if p.is_file())
        return Artifact(
            backend=self.name,
            files=tuple(sorted(files, key=lambda name: (not name.endswith("Manifest.json"), name))),
            inputs=tensor_specs(graph.graph.inputs),
            outputs=tensor_specs(graph.graph.outputs),
            values=values,
            weight_bytes=weights,
            stored=dict(sorted(walked.out.forms.items())),
            states=runtime.asked.states,
            toolchain={"coremltools": version()},
            folder=workdir,
        )

    def read_plan(self, artifact: Artifact) -> Plan:
        """Of one that we did not write, in a child process."""
        if artifact.foreign:
            with ForeignParts(artifact, CoreMLOptions()) as read:
                return read.read_plan()
        tensors, palettes = read_stored(artifact.main.parent)
        return Plan(graph_sha256="", target="", runtime=self.name, tensors=tensors, palettes=palettes)

    def palette_forms(self, runtime: Runtime) -> PaletteForms:
        """One codebook for a weight; for each group of channels from iOS 18 on."""
        return palette_forms(
            TARGETS.get(_target(runtime), min(TARGETS.values())), _precision(runtime) == "FLOAT16"
        )

    def weights(self, artifact: Artifact, names: Collection[str]) -> Iterator[tuple[str, np.ndarray]]:
        """As they are expanded on the device."""
        return read_weights(artifact.main.parent, names)

    def parts(self, artifact: Artifact, options: Options, known: Collection[str]) -> Iterator[ProgramPart]:
        own = options if isinstance(options, CoreMLOptions) else CoreMLOptions(threads=options.threads)
        return parts(artifact.main.parent, known, own.compute)

    def open(self, artifact: Artifact, options: Options) -> Runner:
        own = options if isinstance(options, CoreMLOptions) else CoreMLOptions(threads=options.threads)
        path = artifact.main.parent
        inner = ForeignRunner(path, own) if artifact.foreign else CoreMLRunner(path, own)
        try:
            return Ends(inner, artifact)
        except BaseException:
            inner.close()
            raise

    def describe(self, artifact: Artifact, description: Description) -> None:
        """Into the package's own metadata, sizes as the package has them; names of classes as an entry."""
        path = artifact.main.parent
        shapes = {one.name: one.shape for one in (*artifact.inputs, *artifact.outputs)}
        inputs, outputs = (
            tuple(one.model_copy(update={"shape": shapes.get(one.name, one.shape)}) for one in told)
            for told in (description.inputs, description.outputs)
        )
        own = description.model_copy(update={"inputs": inputs, "outputs": outputs})
        describe(path, required_notes(path), own)

    def contents(self, path: Path) -> FileContents:
        """What a package holds, whoever wrote it; read in a child process."""
        return contents(path)

    def hazards(self, artifact: Artifact, options: Options) -> list[KnownHazard]:
        """On macOS, where Core ML itself does not give what the interpreter does."""
        own = options if isinstance(options, CoreMLOptions) else CoreMLOptions(threads=options.threads)
        return hazards(artifact.main.parent, own)

    def open_file(self, path: Path) -> FileRunner:
        """Whoever wrote it; in a child process, with an axis of samples throughout."""
        return FileRunner(path, CoreMLOptions())

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        """None: what interprets a package here says nothing of a device's time."""
        del artifact, options, feeds
        return {}


def _target(runtime: Runtime) -> str:
    return str(runtime.options.get("minimum_deployment_target", "iOS17"))


def _precision(runtime: Runtime) -> Literal["FLOAT16", "FLOAT32"]:
    return "FLOAT32" if runtime.around == "float32" else "FLOAT16"


def _sized(graph: ir.Model, runtime: Runtime) -> ir.Model:
    """The graph with the sizes that were asked for."""
    if not runtime.asked.sizes:
        return graph
    graph = pin(graph, {name: pinned(sizes) for name, sizes in runtime.asked.sizes.items()})
    fold_shapes(graph)
    return graph


def _batched(graph: ir.Model, runtime: Runtime) -> ir.Model:
    """The graph with its batch fixed, unless the sizes that were asked for or the profile want it free."""
    batch = batch_axis(graph)
    places = () if batch is None else free_dimensions(graph)[batch]
    if runtime.options.get("flexible_batch") or any(name in runtime.asked.sizes for name, _ in places):
        return graph
    return pin_batch(graph)

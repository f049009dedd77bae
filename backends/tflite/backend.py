"""The artifact is one file, ``model.tflite``."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from backends.tflite.child import ForeignRunner, contents
from backends.tflite.lower import emit, emitted
from backends.tflite.metadata import add as add_metadata
from backends.tflite.micro.arena import arena
from backends.tflite.micro.fit import adapt, floats, judged, refusals, require_kernels
from backends.tflite.micro.sdk import toolchain as micro_toolchain
from backends.tflite.micro.source import HEADER, SOURCE, write_sources
from backends.tflite.partitions import split
from backends.tflite.pieces import OperatorPiece, pieces
from backends.tflite.profile import operation_times
from backends.tflite.readback import read_codes, read_tensors
from backends.tflite.runner import TFLiteOptions, TFLiteRunner
from backends.tflite.sdk import interpreter, version
from backends.tflite.write import opened, write_file
from deploy.adapter.conformance import read_conformance
from deploy.adapter.protocol import Arrays, Availability, Runner
from deploy.errors import ToolchainError
from deploy.graph.fixed import fix_batch
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Description, Options, Verdict
from deploy.spec.conformance import Conformance
from deploy.spec.contents import FileContents
from deploy.spec.manifest import KnownHazard
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

_FILE = "model.tflite"
_FLOAT_OUTPUTS = KnownHazard(
    kind="float-outputs",
    severity="note",
    text="outputs stay float although integers were asked for: what makes them computes in float",
    nodes=(),
)


class TFLite:
    """The ``tflite`` backend."""

    name = "tflite"
    runner = 1
    options_type: type[Options] = TFLiteOptions
    suffixes: tuple[str, ...] = (".tflite",)
    cut = "operators of the file, each in a file of its own, by LiteRT's kernels"

    def available(self) -> Availability:
        """Whether it can be loaded; that a package is listed as installed does not say so."""
        try:
            interpreter()
            return Availability("LiteRT", version())
        except ToolchainError as e:
            return Availability("LiteRT", None, f"{e.message}; {e.hint}")

    def conformance(self) -> Conformance:
        return read_conformance(Path(__file__).with_name("conformance.json"))

    def options(self, runtime: Runtime, threads: int) -> Options:
        return TFLiteOptions.model_validate({"threads": threads, **runtime.options})

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """A dry run of `lower`. Raises UnsupportedError where a size is free that must be fixed."""
        fixed = fix_batch(graph) if runtime.static_shapes else graph
        walk = emit(fixed, integers=None if runtime.quant is None else runtime.quant.compute)
        if not runtime.options.get("micro"):
            return walk.verdicts
        adapt(walk.out)
        return judged(walk.verdicts, refusals(walk.out))

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        # All else that the plan says stands in the Q/DQ graph.
        rounding = {name for b in plan.blocks if b.precision == "dynamic" for name in b.nodes}
        if runtime.static_shapes:
            given, graph = graph, fix_batch(graph)
            if graph is not given:
                progress.note("this device takes fixed sizes only: the batch is fixed at 1")
        out, values = emitted(
            graph,
            rounding,
            None if runtime.quant is None else runtime.quant.compute,
            integer_outputs=bool(runtime.options.get("integer_outputs")),
            folds=runtime.options.get("delegate") == "xnnpack",
        )
        micro = bool(runtime.options.get("micro"))
        if micro:
            adapt(out, {n for block in plan.blocks if block.precision == "int8" for n in block.nodes})
            out.prune()
            require_kernels(out)
        inputs, outputs = tensor_specs(graph.graph.inputs), tensor_specs(graph.graph.outputs)
        content = write_file(workdir / _FILE, out, inputs, outputs)
        memory = write_sources(workdir, content, out, arena(out)) if micro else {}
        return Artifact(
            backend=self.name,
            files=(_FILE, HEADER, SOURCE) if micro else (_FILE,),
            inputs=inputs,
            outputs=outputs,
            values=values,
            weight_bytes=sum(tensor.stored_bytes for tensor in out.tensors),
            memory_bytes=memory,
            codes={
                spec.name: params
                for spec, index in zip(outputs, out.outputs, strict=True)
                if (params := out.tensors[index].params) is not None
            },
            toolchain={"ai-edge-litert": version(), **(micro_toolchain() if micro else {})},
            folder=workdir,
        )

    def describe(self, artifact: Artifact, description: Description) -> None:
        """TFLITE_METADATA and the names of classes; a microcontroller's C array has no use of it."""
        if artifact.files == (_FILE,):
            add_metadata(artifact.main, description)

    def read_plan(self, artifact: Artifact) -> Plan:
        with opened(artifact.main) as file:
            tensors = read_tensors(file)
        return Plan(graph_sha256="", target="", runtime=self.name, tensors=tensors)

    def codes(self, artifact: Artifact) -> dict[str, np.ndarray]:
        with opened(artifact.main) as file:
            return read_codes(file)

    def open(self, artifact: Artifact, options: Options) -> Runner:
        """In this process, or in a child where the file is not of our own writing."""
        own = _own(options)
        if artifact.foreign:
            interpreter()  # where it is missing, the error is ours
            return ForeignRunner(artifact, own)
        return TFLiteRunner(artifact.main, artifact.inputs, artifact.outputs, artifact.values, own)

    def contents(self, path: Path) -> FileContents:
        """What a file holds, whoever wrote it; read in a child process."""
        interpreter()
        return contents(path)

    def pieces(self, artifact: Artifact, options: Options, known: Collection[str]) -> Iterator[OperatorPiece]:
        """The file's operations, each between the values of the graph next to it."""
        return pieces(artifact.main, known, _own(options))

    def hazards(self, artifact: Artifact, options: Options) -> list[KnownHazard]:
        """What keeps XNNPACK from computing the whole network in one part, or a small device from INT8."""
        own = _own(options)
        found = floats(artifact.main) if own.micro else split(artifact.main, own)
        if own.integer_outputs:
            left = [s.name for s in artifact.outputs if s.name not in artifact.codes and s.dtype == "float32"]
            found += [_FLOAT_OUTPUTS.model_copy(update={"nodes": tuple(left)})] if left else []
        return found

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        return operation_times(artifact.main, feeds, _own(options))


def _own(options: Options) -> TFLiteOptions:
    return options if isinstance(options, TFLiteOptions) else TFLiteOptions(threads=options.threads)

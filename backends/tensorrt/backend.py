"""Deferred: the artifact is an ONNX file with all types decided, and a script that builds the engine from it.

An engine belongs to one device and one TensorRT version, so it is built on the device. What decides about
accuracy happens here: the Q/DQ pairs carry the plan, and from opset 19 on the float16 types stand in the file
(strong typing), so that TensorRT has nothing left to choose but kernels.

TensorRT 8 reads files up to opset 17, in which Q/DQ scales are float32 (a float16 one it misreads). For it
the file stays float32, and the script allows float16 kernels.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import onnx_ir as ir

from backends.tensorrt.runner import OnnxRuntimeStandIn
from backends.tensorrt.support import verdict
from deploy.adapter.conformance import read_conformance
from deploy.adapter.protocol import Arrays, Availability
from deploy.adapter.refusal import refusal
from deploy.frontend.onnx_file import write
from deploy.frontend.opset import retarget
from deploy.graph.edit import all_nodes, weight_bytes
from deploy.graph.legalize import to_float16, without_casts
from deploy.graph.qdq import read_tensors
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Options, Verdict
from deploy.spec.conformance import Conformance
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

MODEL = "model.onnx"
SCRIPT = "build_engine.py"
_FIRST_TYPED_OPSET = 19
"""The first opset whose QuantizeLinear takes float16."""


class TensorRT:
    """The ``tensorrt`` backend."""

    name = "tensorrt"
    options_type = Options

    def available(self) -> Availability:
        """The bindings are needed on the device only, where build_engine.py runs."""
        try:
            bindings = import_module("tensorrt")
        except (ImportError, OSError):
            return Availability(
                "tensorrt", None, "nothing here: build_engine.py needs TensorRT on the device", deferred=True
            )
        return Availability("tensorrt", str(bindings.__version__), deferred=True)

    def conformance(self) -> Conformance:
        return read_conformance(Path(__file__).with_name("conformance.json"))

    def options(self, runtime: Runtime, threads: int) -> Options:
        """Threads of the stand-in; the device's own settings are arguments of build_engine.py."""
        del runtime
        return Options(threads=threads)

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """By NVIDIA's table of ONNX operators, the bodies of If, Loop and Scan included."""
        return [verdict(node, runtime.onnx_opset) for node in all_nodes(graph)]

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        """Write the ONNX file and the script. Blocks that the plan computes in ``float`` stay float32.

        Raises UnsupportedError listing every node that TensorRT cannot run, ValueError where a scale of the
        plan is no float16 number although the runtime's rules ask for that.
        """
        del progress  # casting and writing are quick
        if error := refusal("TensorRT", self.check(graph, runtime)):
            raise error
        # First the opset: what it writes out as several operations then gets its types by the same rules.
        typed = retarget(graph, runtime.onnx_opset)
        if runtime.around == "float16" and runtime.onnx_opset >= _FIRST_TYPED_OPSET:
            present = {node.name for node in typed.graph}
            single = {name for block in plan.blocks if block.precision == "float" for name in block.nodes}
            typed = to_float16(typed, keep=single & present)
        write(typed, workdir / MODEL)
        (workdir / SCRIPT).write_bytes(Path(__file__).with_name(SCRIPT).read_bytes())
        data = sorted(p.name for p in workdir.glob(MODEL + ".data"))  # weights of more than 2 GB
        return Artifact(
            backend=self.name,
            files=(MODEL, *data, SCRIPT),
            inputs=tensor_specs(graph.graph.inputs),
            outputs=tensor_specs(graph.graph.outputs),
            weight_bytes=weight_bytes(typed),
            deferred=True,
            toolchain={"tensorrt": ", ".join(runtime.versions) or "unknown"},
            folder=workdir,
        )

    def read_plan(self, artifact: Artifact) -> Plan:
        """The parameters as they stand in the file, under the names of the graph before float16."""
        tensors = read_tensors(without_casts(ir.load(artifact.main)))
        return Plan(graph_sha256="", target="", runtime=self.name, tensors=tensors)

    def open(self, artifact: Artifact, options: Options) -> OnnxRuntimeStandIn:
        """ONNX Runtime in TensorRT's place."""
        return OnnxRuntimeStandIn(artifact.main, threads=options.threads)

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        """None: what a stand-in takes says nothing of the device."""
        del artifact, options, feeds
        return {}

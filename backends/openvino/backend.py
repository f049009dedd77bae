"""The artifact is an OpenVINO IR: ``model.xml`` holds the operations, ``model.bin`` the numbers."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from backends.openvino.convert import save, to_openvino
from backends.openvino.profile import operation_times
from backends.openvino.readback import read_tensors
from backends.openvino.runner import OpenVinoOptions, OpenVinoRunner, read_file, settings
from backends.openvino.sdk import core, reason
from deploy.adapter.protocol import Arrays, Availability
from deploy.errors import BackendError, UnsupportedError
from deploy.frontend.opset import retarget
from deploy.graph.blocks import reads
from deploy.graph.edit import is_constant
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Options, Verdict
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

Support = Literal["supported", "unsupported", "unknown"]

_XML, _BIN = "model.xml", "model.bin"


class OpenVino:
    """The ``openvino`` backend."""

    name = "openvino"
    options_type: type[Options] = OpenVinoOptions

    def available(self) -> Availability:
        try:
            return Availability("openvino", version("openvino"))
        except PackageNotFoundError:
            return Availability("openvino", None, "pip install 'deploy-compiler[openvino]'")

    def options(self, runtime: Runtime, threads: int) -> Options:
        """Threads, what floats are computed in, and what the profile says of device, hint and streams."""
        precision = "bf16" if runtime.around == "bfloat16" else "f32"
        given = {"threads": threads, "inference_precision": precision, **runtime.options}
        return OpenVinoOptions.model_validate(given)

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """OpenVINO says itself what it cannot run: the whole graph is tried first, then node by node."""
        del runtime
        if not _refusal(graph):
            return [_verdict(node, "supported") for node in graph.graph]
        return [_alone(graph, node) for node in graph.graph]

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        del plan, progress  # the Q/DQ graph carries the plan
        refused = [v for v in self.check(graph, runtime) if v.support == "unsupported"]
        if refused:
            listed = "; ".join(f"{v.op} '{v.node}': {v.reason}" for v in refused)
            raise UnsupportedError(
                f"OpenVINO cannot run {len(refused)} nodes: {listed}",
                hint="replace these operations in the model",
            )
        save(to_openvino(retarget(graph, runtime.onnx_opset)), workdir / _XML, workdir / _BIN)
        return Artifact(
            backend=self.name,
            files=(_XML, _BIN),
            inputs=tensor_specs(graph.graph.inputs),
            outputs=tensor_specs(graph.graph.outputs),
            weight_bytes=(workdir / _BIN).stat().st_size,
            toolchain={"openvino": version("openvino")},
            folder=workdir,
        )

    def read_plan(self, artifact: Artifact) -> Plan:
        tensors = read_tensors(read_file(artifact.main))
        return Plan(graph_sha256="", target="", runtime=self.name, tensors=tensors)

    def open(self, artifact: Artifact, options: Options) -> OpenVinoRunner:
        own = options if isinstance(options, OpenVinoOptions) else OpenVinoOptions(threads=options.threads)
        return OpenVinoRunner(artifact.main, artifact.inputs, artifact.outputs, own)

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        own = options if isinstance(options, OpenVinoOptions) else OpenVinoOptions(threads=options.threads)
        return {} if own.device != "CPU" else operation_times(artifact.main, feeds, own)


def _refusal(graph: ir.Model) -> str:
    """Why OpenVINO does not take a graph; empty where it does."""
    try:
        model = to_openvino(graph)
    except BackendError as e:
        return e.message.partition(": ")[2]
    try:
        core().compile_model(model, "CPU", settings(OpenVinoOptions(), "CPU"))
    except Exception as e:  # noqa: BLE001 (whatever it is, it is OpenVINO's answer)
        return reason(e)
    return ""


def _verdict(node: ir.Node, support: Support, reason: str = "") -> Verdict:
    return Verdict(node=node.name or "", op=node.op_type, support=support, reason=reason)


def _alone(model: ir.Model, node: ir.Node) -> Verdict:
    """What OpenVINO says of one node by itself, fed with all that it reads, in bodies too."""
    inputs = [value for value in reads(node) if not is_constant(value)]
    if any(value.type is None for value in inputs):
        return _verdict(node, "unknown", "the type of its input is unknown")
    outputs = [value for value in node.outputs if value.name]
    part = ir.convenience.extract(model.graph, inputs, outputs or node.outputs)
    alone = ir.Model(part, ir_version=model.ir_version)
    said = _refusal(alone)
    return _verdict(node, "unsupported" if said else "supported", said)

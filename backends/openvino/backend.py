"""The artifact is an OpenVINO IR: ``model.xml`` holds the operations, ``model.bin`` the numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from backends.openvino.convert import save, to_openvino
from backends.openvino.parts import IrPart, parts
from backends.openvino.profile import operation_times
from backends.openvino.readback import read_codes, read_tensors
from backends.openvino.runner import DTYPES, OpenVinoOptions, OpenVinoRunner, read_file
from backends.openvino.sdk import version
from backends.openvino.support import verdicts
from deploy.adapter.conformance import read_conformance
from deploy.adapter.protocol import Arrays, Availability, Variant
from deploy.adapter.refusal import refusal
from deploy.errors import ToolchainError, UnsupportedError
from deploy.frontend.opset import retarget
from deploy.graph.fixed import fix_batch
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Options, Verdict
from deploy.spec.conformance import Conformance
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

if TYPE_CHECKING:
    import openvino

_XML, _BIN = "model.xml", "model.bin"


class OpenVino:
    """The ``openvino`` backend."""

    name = "openvino"
    runner = 1
    cut = "parts of the file, each compiled alone by OpenVINO's CPU plugin"
    options_type: type[Options] = OpenVinoOptions

    def available(self) -> Availability:
        """Whether it can be loaded; that a package is listed as installed does not say so."""
        try:
            return Availability("openvino", version())
        except ToolchainError as e:
            return Availability("openvino", None, f"{e.message}; {e.hint}")

    def conformance(self) -> Conformance:
        return read_conformance(Path(__file__).with_name("conformance.json"))

    def options(self, runtime: Runtime, threads: int) -> Options:
        """Threads, what floats are computed in, and what the profile says of device, hint and streams."""
        precision = "bf16" if runtime.around == "bfloat16" else "f32"
        given = {"threads": threads, "inference_precision": precision, **runtime.options}
        return OpenVinoOptions.model_validate(given)

    def variants(self, runtime: Runtime, options: Options) -> list[Variant]:
        """Floats in float32 where the profile has them in bfloat16, which around integers and in depthwise
        networks costs changes of form; threads bound to cores."""
        if not isinstance(options, OpenVinoOptions) or options.device != "CPU":
            return []
        found: list[Variant] = []
        if runtime.around == "bfloat16" and options.inference_precision == "bf16":
            wide = options.model_copy(update={"inference_precision": "f32"})
            found.append(Variant("floats in float32", wide, "float32"))
        if options.threads > 1:
            found.append(Variant("threads bound to cores", options.model_copy(update={"pinned": True})))
        return found

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """OpenVINO's own word for each node, and ours where it is known to be wrong.

        What the compiler in the NPU's driver takes is not known here: what OpenVINO reads is ``unknown``.
        """
        found = verdicts(graph)
        if _device(runtime) == "CPU":
            return found
        unsure = {"support": "unknown", "reason": "only the compiler in the NPU's driver can tell"}
        return [v if v.support == "unsupported" else v.model_copy(update=unsure) for v in found]

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        del plan  # the Q/DQ graph carries it
        if runtime.static_shapes:
            graph = _fixed(graph, progress)
        if error := refusal("OpenVINO", self.check(graph, runtime)):
            raise error
        inputs, outputs = tensor_specs(graph.graph.inputs), tensor_specs(graph.graph.outputs)
        for spec in (*inputs, *outputs):
            if spec.dtype not in DTYPES.values():
                raise UnsupportedError(
                    f"OpenVINO takes and gives no arrays of {spec.dtype}: {spec}",
                    hint="cast it to another type inside the model",
                )
        model = to_openvino(retarget(graph, runtime.onnx_opset))
        if runtime.static_shapes:
            _require_static(model)
        save(model, workdir / _XML, workdir / _BIN)
        return Artifact(
            backend=self.name,
            files=(_XML, _BIN),
            inputs=inputs,
            outputs=outputs,
            weight_bytes=(workdir / _BIN).stat().st_size,
            toolchain={"openvino": version()},
            folder=workdir,
        )

    def read_plan(self, artifact: Artifact) -> Plan:
        tensors = read_tensors(read_file(artifact.main))
        return Plan(graph_sha256="", target="", runtime=self.name, tensors=tensors)

    def codes(self, artifact: Artifact) -> dict[str, np.ndarray]:
        return read_codes(read_file(artifact.main))

    def parts(self, artifact: Artifact, options: Options, known: Collection[str]) -> Iterator[IrPart]:
        own = options if isinstance(options, OpenVinoOptions) else OpenVinoOptions(threads=options.threads)
        return parts(artifact.main, known, own)

    def open(self, artifact: Artifact, options: Options) -> OpenVinoRunner:
        own = options if isinstance(options, OpenVinoOptions) else OpenVinoOptions(threads=options.threads)
        return OpenVinoRunner(artifact.main, artifact.inputs, artifact.outputs, own)

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        own = options if isinstance(options, OpenVinoOptions) else OpenVinoOptions(threads=options.threads)
        return {} if own.device != "CPU" else operation_times(artifact.main, feeds, own)


def _device(runtime: Runtime) -> str:
    return str(runtime.options.get("device", "CPU"))


def _fixed(graph: ir.Model, progress: Progress) -> ir.Model:
    fixed = fix_batch(graph)
    if fixed is not graph:
        progress.note("this device takes fixed sizes only: the batch is fixed at 1")
    return fixed


def _require_static(model: openvino.Model) -> None:
    """Raise UnsupportedError listing every operation whose result has a size that depends on the data."""
    free = [
        op for op in model.get_ordered_ops() if any(o.get_partial_shape().is_dynamic for o in op.outputs())
    ]
    if free:
        listed = ", ".join(f"{op.get_type_name()} '{op.get_friendly_name()}'" for op in free)
        raise UnsupportedError(
            f"this device takes fixed sizes only; those of {len(free)} results depend on data: {listed}",
            hint="cut these operations off the model and run them elsewhere",
        )

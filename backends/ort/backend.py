"""The artifact is the Q/DQ graph itself as one ``model.onnx``; ONNX Runtime fuses it into integer kernels.

Only products that round while running are written as its kernels (`integer.py`, `nbits.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx_ir as ir
from pydantic import Field

from backends.ort.integer import integer_products, read_products
from backends.ort.nbits import grouped_products, read_grouped
from backends.ort.parts import KernelPart, parts
from backends.ort.profile import operation_times
from deploy.adapter.conformance import read_conformance
from deploy.adapter.protocol import Arrays, Availability, Runner, Variant
from deploy.adapter.refusal import refusal
from deploy.errors import BackendError
from deploy.execute.reference import YIELDING, Session, open_graph
from deploy.execute.refusals import refusal as why_not
from deploy.frontend.onnx_file import write
from deploy.frontend.opset import retarget
from deploy.graph.edit import constant, weight_bytes
from deploy.graph.qdq import plain, read_tensors
from deploy.graph.summary import tensor_specs
from deploy.progress import Progress
from deploy.spec.artifact import Artifact, Options, Verdict
from deploy.spec.conformance import Conformance
from deploy.spec.plan import Plan
from deploy.spec.profile import Runtime

Support = Literal["supported", "unsupported", "unknown"]

_FILE = "model.onnx"
_THREADED = (
    ("waiting threads sleep", "session.intra_op.allow_spinning", "0"),
    ("work in smaller parts", "session.dynamic_block_base", "4"),
)


class OrtOptions(Options):
    """``session`` holds ONNX Runtime's configuration keys, such as ``session.intra_op.allow_spinning``."""

    session: dict[str, str] = Field(default_factory=dict)


class OnnxRuntime:
    """The ``ort`` backend."""

    name = "ort"
    runner = 1
    cut = "the kernels that ONNX Runtime makes of the file, each alone, all in the file's own layout"
    options_type: type[Options] = OrtOptions

    def available(self) -> Availability:
        try:
            import onnxruntime
        except (ImportError, OSError) as e:
            return Availability("onnxruntime", None, f"it cannot be loaded: {e}; pip install onnxruntime")
        return Availability("onnxruntime", onnxruntime.__version__)

    def conformance(self) -> Conformance:
        return read_conformance(Path(__file__).with_name("conformance.json"))

    def options(self, runtime: Runtime, threads: int) -> Options:
        """Threads, and the session settings that the profile lists (ONNX Runtime's configuration keys)."""
        settings = {k: str(int(v) if isinstance(v, bool) else v) for k, v in runtime.options.items()}
        return OrtOptions(threads=threads, session=settings)

    def variants(self, runtime: Runtime, options: Options) -> list[Variant]:
        """How threads wait for each other, and share work. With one thread nothing is faster than what is
        taken anyway: 30 other settings were tried on seven networks, float and INT8."""
        del runtime
        if options.threads == 1 or not isinstance(options, OrtOptions):
            return []
        return [
            Variant(name, options.model_copy(update={"session": {**options.session, key: value}}))
            for name, key, value in _THREADED
        ]

    def yielding(self, options: Options) -> Options:
        if not isinstance(options, OrtOptions) or options.threads == 1:
            return options
        return options.model_copy(update={"session": {**options.session, **YIELDING}})

    def check(self, graph: ir.Model, runtime: Runtime) -> list[Verdict]:
        """ONNX Runtime says itself what it cannot run: the whole graph is tried first, then node by node."""
        del runtime
        try:
            with open_graph(graph, optimised=False):
                return [_verdict(node, "supported") for node in graph.graph]
        except BackendError:
            return [_alone(graph, node) for node in graph.graph]

    def lower(
        self, graph: ir.Model, plan: Plan, runtime: Runtime, workdir: Path, progress: Progress
    ) -> Artifact:
        del progress  # writing it is quick
        if error := refusal("ONNX Runtime", self.check(graph, runtime)):
            raise error
        graph = grouped_products(integer_products(graph, plan), plan)
        write(retarget(graph, runtime.onnx_opset), workdir / _FILE)
        return Artifact(
            backend=self.name,
            files=tuple(sorted((p.name for p in workdir.iterdir()), key=lambda n: (n != _FILE, n))),
            inputs=tensor_specs(graph.graph.inputs),
            outputs=tensor_specs(graph.graph.outputs),
            weight_bytes=weight_bytes(graph),
            toolchain={"onnxruntime": version("onnxruntime")},
            folder=workdir,
        )

    def read_plan(self, artifact: Artifact) -> Plan:
        model = ir.load(artifact.main)
        tensors = read_tensors(model) | read_products(model) | read_grouped(model)
        return Plan(graph_sha256="", target="", runtime=self.name, tensors=tensors)

    def codes(self, artifact: Artifact) -> dict[str, np.ndarray]:
        found = {}
        for node in ir.load(artifact.main).graph:
            if node.op_type == "DequantizeLinear" and (codes := constant(node.inputs[0])) is not None:
                found[node.outputs[0].name or ""] = plain(codes)
        return found

    def parts(self, artifact: Artifact, options: Options, known: Collection[str]) -> Iterator[KernelPart]:
        settings = options.session if isinstance(options, OrtOptions) else {}
        return parts(artifact.main, known, threads=options.threads, settings=settings)

    def open(self, artifact: Artifact, options: Options) -> Runner:
        settings = options.session if isinstance(options, OrtOptions) else {}
        return Session(artifact.main, threads=options.threads, settings=settings)

    def operation_times(self, artifact: Artifact, options: Options, feeds: Arrays) -> dict[str, float]:
        settings = options.session if isinstance(options, OrtOptions) else {}
        return operation_times(artifact.main, feeds, threads=options.threads, settings=settings)


def _verdict(node: ir.Node, support: Support, reason: str = "") -> Verdict:
    return Verdict(node=node.name or "", op=node.op_type, support=support, reason=reason)


def _alone(model: ir.Model, node: ir.Node) -> Verdict:
    reason = why_not(model, node)
    if reason is None:
        return _verdict(node, "unknown", "the type of its input is unknown")
    return _verdict(node, "unsupported" if reason else "supported", reason)

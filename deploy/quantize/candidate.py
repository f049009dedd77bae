"""From a choice of float blocks to a written artifact that provably carries its plan."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.protocol import Backend, Describes
from deploy.errors import VerificationError
from deploy.frontend.onnx_file import digest, release
from deploy.graph.blocks import Block
from deploy.graph.qdq import insert
from deploy.progress import SILENT
from deploy.quantize.adopt import adopt
from deploy.quantize.assign import Assignment, Found, assign
from deploy.quantize.correct import Corrected
from deploy.quantize.forms import BY_THE_USER, WeightForm, form_plans, store_weights
from deploy.quantize.palettes import palette_forms, palettes_of
from deploy.quantize.place import Chain, Placement, outline, place
from deploy.quantize.ranges import Histogram
from deploy.quantize.refine import NOTHING_REFINED, Refinement
from deploy.quantize.zeros import with_zeros
from deploy.spec.artifact import Artifact, Description, Options
from deploy.spec.document import digest as document_digest
from deploy.spec.plan import BlockPlan, Plan, TensorPlan, differences
from deploy.spec.profile import Runtime
from deploy.spec.project import Observer
from deploy.spec.tensors import Precision

FOR_ACCURACY_WIDE = "activations of 16 bits to hold the accuracy budget"


@dataclass(frozen=True, eq=False)
class Subject:
    """What does not change while candidates are tried: one graph for one runtime of one target. It equals
    itself alone.

    ``form`` is how weights are stored, where a form was asked for that concerns them alone. ``refinement`` is
    what the accuracy ladder has added.
    """

    graph: ir.Model
    graph_sha256: str
    target: str
    runtime: Runtime
    backend: Backend
    options: Options
    blocks: tuple[Block, ...]
    chains: list[Chain]
    histograms: Mapping[str, Histogram]
    observer: Observer
    excluded: frozenset[str]
    imported: Mapping[str, TensorPlan] = field(default_factory=dict)
    form: WeightForm | None = None
    description: Description | None = None
    refinement: Refinement = NOTHING_REFINED

    @cached_property
    def unbounded(self) -> frozenset[str]:
        """Nodes that read or make a value which becomes infinite: no integer can stand for it."""
        values = {name for name, histogram in self.histograms.items() if not histogram.bounded}
        return frozenset(
            node.name or ""
            for node in self.graph.graph
            if any(v is not None and v.name in values for v in (*node.inputs, *node.outputs))
        )

    @property
    def kept_float(self) -> frozenset[str]:
        """Nodes that stay float whatever is chosen."""
        return self.excluded | self.unbounded

    @property
    def left_out(self) -> frozenset[str]:
        """The nodes that the user excluded, each with all that it is fused with."""
        apart = (block.nodes for block in self.blocks if not self.excluded.isdisjoint(block.nodes))
        return frozenset(name for nodes in apart for name in nodes)

    @property
    def float_precision(self) -> Precision:
        return self.runtime.float_precision

    @property
    def integer_precision(self) -> Precision:
        """What blocks with quantized activations compute in, as long as none is widened."""
        wide = self.runtime.quant is not None and self.runtime.quant.activation == "int16"
        return "w8a16" if wide else "int8"

    def integers_of(self, block: str) -> Precision:
        """What a block computes in where its activations are quantized."""
        return "w8a16" if block in self.refinement.wide else self.integer_precision

    def int8_blocks(self) -> list[str]:
        """Ids of the blocks that hold an integer kernel and may therefore be INT8, in graph order."""
        if self.imported:
            return [b.id for b in self.blocks if any(self._computes_integers(name) for name in b.nodes)]
        heads = {
            chain.nodes[0].name
            for chain in self.chains
            if not self.kept_float.intersection(node.name or "" for node in chain.nodes)
        }
        return [block.id for block in self.blocks if heads & set(block.nodes)]

    def assignment(self, float_blocks: Collection[str]) -> Assignment:
        """Parameters and integers when ``float_blocks`` stay float."""
        if self.runtime.quant is None:
            return Assignment({}, {})
        if self.imported:
            everything = {b.id for b in self.blocks} <= set(float_blocks)
            return Assignment({}, {}) if everything else adopt(self.graph, self.imported, self.runtime.quant)
        refined = self.refinement
        if (
            refined.trained is not None
            and not refined.wide
            and set(float_blocks).isdisjoint(self.int8_blocks())
        ):
            return refined.trained
        placement = self.placement(float_blocks)
        rules, ranges = self.runtime.quant, refined.ranges
        return refined.with_rounding(
            assign(self.graph, placement, self.histograms, rules, self.observer, ranges, self._found)
        )

    @cached_property
    def _found(self) -> Found:
        return {}

    def quantization(self, float_blocks: Collection[str]) -> Corrected:
        """The float graph and what is quantized of it; biases are corrected where that rung was climbed."""
        assignment, correct = self.assignment(float_blocks), self.refinement.correction
        if correct is None or not assignment.tensors:
            return Corrected(self.graph, assignment)
        return correct(assignment)

    def quantized(self, float_blocks: Collection[str]) -> dict[str, TensorPlan]:
        """Which values would be quantized, and for whom: all that a prediction needs, before any range."""
        if self.runtime.quant is None or self.imported:
            return self.assignment(float_blocks).tensors
        return outline(self.placement(float_blocks), self.runtime.quant)

    def placement(self, float_blocks: Collection[str]) -> Placement:
        """What is quantized when ``float_blocks`` stay float."""
        precision: dict[str, Precision] = {
            b.id: self.float_precision if b.id in float_blocks else self.integers_of(b.id)
            for b in self.blocks
        }
        apart = self.kept_float | self.refinement.apart
        return place(self.graph, self.blocks, precision, self.chains, self.runtime, apart)

    def _computes_integers(self, name: str) -> bool:
        """Whether a node of the imported model has an integer kernel and reads quantized values."""
        node = self._nodes[name]
        rules = self.runtime.quant
        return (
            rules is not None
            and node.op_type in rules.compute
            and any(v is not None and v.name in self.imported for v in node.inputs)
        )

    def node(self, name: str) -> ir.Node:
        """The node of that name. Raises KeyError."""
        return self._nodes[name]

    @cached_property
    def _nodes(self) -> dict[str, ir.Node]:
        return {node.name or "": node for node in self.graph.graph}


@dataclass(frozen=True)
class Candidate:
    """A plan, the float graph that it quantizes, the artifact that they became, and the graph that says, node
    by node, what that computes."""

    plan: Plan
    graph: ir.Model
    qdq: ir.Model
    artifact: Artifact


def build_candidate(
    subject: Subject,
    float_blocks: Collection[str],
    workdir: Path,
    *,
    sqnr: Mapping[str, float] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Candidate:
    """Assign, insert, lower, describe, read back. Raises VerificationError where the file carries another
    plan."""
    return proven(subject, lowered(subject, float_blocks, workdir, sqnr=sqnr, reasons=reasons))


def lowered(
    subject: Subject,
    float_blocks: Collection[str],
    workdir: Path,
    *,
    sqnr: Mapping[str, float] | None = None,
    reasons: Mapping[str, str] | None = None,
) -> Candidate:
    """A candidate to be scored; one that may ship is `proven` before."""
    tensors: Mapping[str, TensorPlan]
    graph, graph_sha256 = subject.graph, subject.graph_sha256
    if subject.form is not None:
        stored = store_weights(subject.graph, subject.form, subject.runtime, subject.left_out)
        tensors, qdq, literal = stored.tensors, stored.graph, stored.literal()
        blocks = form_plans(stored, subject.form, subject.blocks, subject.runtime, subject.left_out)
    else:
        found = subject.quantization(float_blocks)
        assignment, tensors = found.assignment, found.assignment.tensors
        if found.graph is not graph:
            graph, graph_sha256 = found.graph, digest(found.graph)
        qdq = insert(graph, tensors, assignment.codes) if tensors else graph
        literal, blocks = qdq, _block_plans(subject, assignment, float_blocks, sqnr or {}, reasons or {})
    plan = Plan(
        graph_sha256=graph_sha256,
        target=subject.target,
        runtime=subject.runtime.name,
        tensors=dict(tensors),
        palettes=palettes_of(qdq, palette_forms(subject.backend, subject.runtime)),
        blocks=with_zeros(blocks, qdq),
    )
    workdir.mkdir(parents=True, exist_ok=True)
    artifact = subject.backend.lower(qdq, plan, subject.runtime, workdir, SILENT)
    release(subject.graph)  # of large weights only the integers are needed from here on
    return Candidate(plan, graph, literal, artifact)


def proven(subject: Subject, candidate: Candidate) -> Candidate:
    """The candidate with its file described and read back. Raises VerificationError where that carries
    another plan."""
    if subject.description is not None and isinstance(subject.backend, Describes):
        facts = {**subject.description.facts, "plan_sha256": document_digest(candidate.plan)}
        description = subject.description.model_copy(update={"facts": facts})
        subject.backend.describe(candidate.artifact, description)
    wrong = differences(candidate.plan, subject.backend.read_plan(candidate.artifact))
    if wrong:
        listed = "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise VerificationError(
            f"the {subject.runtime.name} artifact does not carry the plan: {listed}",
            hint="this is a defect of the backend: report it with the model",
        )
    return candidate


def _block_plans(
    subject: Subject,
    assignment: Assignment,
    float_blocks: Collection[str],
    sqnr: Mapping[str, float],
    reasons: Mapping[str, str],
) -> tuple[BlockPlan, ...]:
    able = set(subject.int8_blocks())
    plans = []
    for block in subject.blocks:
        integer = bool(assignment.tensors) and block.id in able and block.id not in float_blocks
        plans.append(
            BlockPlan(
                id=block.id,
                nodes=block.nodes,
                precision=subject.integers_of(block.id) if integer else subject.float_precision,
                reason=reasons.get(block.id, "") or _reason(subject, block, able, integer),
                sqnr_db=_finite(sqnr.get(block.id)),
            )
        )
    return tuple(plans)


def _reason(subject: Subject, block: Block, able: Collection[str], integer: bool) -> str:
    if integer:
        wide = FOR_ACCURACY_WIDE if block.id in subject.refinement.wide else ""
        return "as the source was quantized" if subject.imported else wide
    if subject.excluded & set(block.nodes):
        return BY_THE_USER
    if subject.unbounded & set(block.nodes):
        return "one of its values becomes infinite"
    if block.id not in able:
        return f"{subject.runtime.name} has no integer kernel for {block.kind} here"
    quantizes = bool(subject.histograms or subject.imported)
    return "kept float to hold the accuracy budget" if quantizes else "float build"


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(value, 2)

"""From the file as given to the graph that everything starts from, every step proved by running it.

    read -> pin shapes -> compare with the file -> give the inputs their form -> clean -> fuse

Two graphs come out: ``clean`` with batch norm as nodes, which compression and training work on, and
``fused``, which is quantized and lowered.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.errors import BackendError, ModelError, UnsupportedError
from deploy.execute.compare import (
    largest_error,
    prover,
    random_feeds,
    relative_error,
    tolerance,
    workable_feeds,
)
from deploy.execute.reference import Session, open_graph
from deploy.execute.refusals import refusal
from deploy.frontend.onnx_file import Source, write
from deploy.frontend.opset import OPSET
from deploy.frontend.quantized import import_quantized
from deploy.graph.clean import Rewritten, clean
from deploy.graph.cost import macs, parameters
from deploy.graph.edit import weight_bytes
from deploy.graph.ends import table_rows
from deploy.graph.fuse import fuse
from deploy.graph.hazards import grouped, hazards
from deploy.graph.interface import adapt_inputs
from deploy.graph.shapes import infer, model_inputs, name_dimensions, pin
from deploy.graph.summary import tensor_specs
from deploy.spec.ablation import Ablation
from deploy.spec.document import Frozen, parse, render
from deploy.spec.manifest import KnownHazard, SourceInfo
from deploy.spec.plan import TensorPlan
from deploy.spec.profile import Runtime
from deploy.spec.project import InputSection, IoSection
from deploy.spec.tensors import TensorSpec
from deploy.spec.unit import Rewriting
from deploy.stages.ends import check_sizes, usual_feeds
from deploy.stages.interface import adapted_specs, input_forms, trial_of

_CLEAN, _FUSED, _FACTS, _TRIAL = "clean.onnx", "fused.onnx", "prepared.json", "trial.npz"

EMBEDDED = 64 * 2**20
"""In the cache, more weights than this lie in a file of their own, from which they are mapped, not read."""


class Facts(Frozen):
    """What was found while preparing; it lies beside the graphs in the cache.

    ``inputs`` are those of both graphs, with the normalisation that the graphs do themselves;
    ``folded_inputs`` those that are fed otherwise than the model as given.
    """

    source: SourceInfo
    clean_sha256: str
    fused_sha256: str
    inputs: tuple[TensorSpec, ...]
    folded_inputs: tuple[str, ...]
    imported: dict[str, TensorPlan] = {}
    notes: tuple[str, ...]
    hazards: tuple[KnownHazard, ...] = ()


@dataclass(frozen=True)
class FloatGraph:
    """A graph that is calibrated, quantized and lowered, and the file in the cache that it is read from."""

    model: ir.Model
    sha256: str
    path: Path


@dataclass(frozen=True)
class Prepared:
    """``clean`` and ``fused`` compute what the file computes; both are read lazily from the cache.

    ``own`` holds, by a profile's rules, what these made of the fused graph where they changed anything.
    ``ablation`` says what a recipe's steps won and cost; ``curves`` are the files of their trainings, by the
    names that they get in the bundle.
    """

    folder: Path
    facts: Facts
    clean: ir.Model
    fused: ir.Model
    own: Mapping[tuple[Rewriting, ...], FloatGraph] = field(default_factory=dict)
    ablation: Ablation | None = None
    curves: tuple[tuple[str, Path], ...] = ()

    def graph_for(self, runtime: Runtime) -> FloatGraph:
        """What a runtime compiles: the fused graph, or its own form of it."""
        shared = FloatGraph(self.fused, self.facts.fused_sha256, self.fused_path)
        return self.own.get(runtime.rewrites, shared)

    @property
    def trial(self) -> dict[str, np.ndarray]:
        """Random inputs that the graphs take: for want of data they say what sizes work."""
        with np.load(self.folder / _TRIAL, allow_pickle=False) as stored:
            return {key.removeprefix("input/"): stored[key] for key in stored.files}

    @property
    def clean_path(self) -> Path:
        return self.folder / _CLEAN

    @property
    def fused_path(self) -> Path:
        return self.folder / _FUSED


def prepare(
    source: Source,
    folder: Path,
    *,
    shapes: Mapping[str, Sequence[int]],
    sections: Mapping[str, InputSection],
    io: IoSection,
    seed: int,
    threads: int,
) -> None:
    """Write both graphs and the facts into ``folder``; `load` reads them back.

    Raises ModelError where the model does not run, or where bringing it to the pinned operator set changes
    what it computes, UnsupportedError listing all that cannot be fed or that ONNX Runtime cannot run.
    """
    model = name_dimensions(source.model.clone())
    _refuse_interface(model, source.name)
    if shapes:
        model = pin(model, shapes)
    model = infer(model)
    notes: list[str] = []
    feeds = _trial_feeds(model, source, seed, threads)
    model, feeds = _usable_batch(model, feeds, notes, threads)
    forms = input_forms(tensor_specs(model_inputs(model)), sections, io)
    if forms:
        model = infer(adapt_inputs(model, forms))
    inputs = adapted_specs(_with_tables(model), forms)
    check_sizes(io.sizes, inputs)
    feeds = usual_feeds(io.sizes, inputs, trial_of(inputs, feeds, seed), seed)
    taken = import_quantized(model)
    model, imported = taken if taken is not None else (model, {})
    prove = prover([feeds, other_feeds(model, inputs, feeds, seed + 1, threads)], threads)
    cleaned = clean(model, prove)
    # What came quantized is final: folding anything into its weights would move them off their codes.
    fused = Rewritten(cleaned.model, ()) if imported else fuse(cleaned.model, prove)
    for result in (cleaned, fused):
        notes += rolled_back(result)
    clean_model, fused_model = cleaned.model, fused.model
    clean_sha256 = write(clean_model, folder / _CLEAN, embed=EMBEDDED)
    fused_sha256 = write(fused_model, folder / _FUSED, embed=EMBEDDED)
    np.savez(folder / _TRIAL, allow_pickle=False, **{f"input/{name}": a for name, a in feeds.items()})
    facts = Facts(
        source=SourceInfo(
            name=source.name,
            sha256=source.given_sha256 or source.sha256,
            bytes=source.bytes,
            opset=source.opset,
            parameters=parameters(clean_model),
            macs=macs(fused_model),
            weight_bytes=weight_bytes(source.model),
            made_by=dict(source.made_by),
        ),
        clean_sha256=clean_sha256,
        fused_sha256=fused_sha256,
        inputs=inputs,
        folded_inputs=tuple(sorted(name for name, form in forms.items() if not form.as_it_is)),
        imported=imported,
        notes=tuple(notes),
        hazards=grouped(hazards(clean_model)),
    )
    (folder / _FACTS).write_text(render(facts))


def advance(before: Prepared, model: ir.Model, folder: Path, threads: int) -> tuple[ir.Model, ir.Model]:
    """Write what a step of the recipe made of the clean graph, fused anew, into ``folder``; both graphs."""
    feeds = before.trial
    other = other_feeds(model, before.facts.inputs, feeds, 1, threads)
    model = infer(model)
    fused = fuse(model, prover([feeds, other], threads))
    fused_model = fused.model
    clean_sha256 = write(model, folder / _CLEAN, embed=EMBEDDED)
    fused_sha256 = write(fused_model, folder / _FUSED, embed=EMBEDDED)
    shutil.copyfile(before.folder / _TRIAL, folder / _TRIAL)
    facts = before.facts.model_copy(
        update={
            "clean_sha256": clean_sha256,
            "fused_sha256": fused_sha256,
            "notes": (*before.facts.notes, *rolled_back(fused)),
            "hazards": grouped(hazards(model)),
        }
    )
    (folder / _FACTS).write_text(render(facts))
    return model, fused_model


def load(folder: Path) -> Prepared:
    """What `prepare` left in ``folder``; types and shapes were inferred before they were written."""
    facts = parse(Facts, (folder / _FACTS).read_text(), origin=folder / _FACTS)
    return Prepared(folder, facts, ir.load(folder / _CLEAN), ir.load(folder / _FUSED))


def _refuse_interface(model: ir.Model, name: str) -> None:
    if not model_inputs(model):
        raise ModelError(
            f"{name}: the model has no inputs, all that it computes is a constant",
            hint="export it with its input as an argument",
        )
    ends = [("input", v) for v in model_inputs(model)] + [("output", v) for v in model.graph.outputs]
    odd = [f"{end} '{v.name}' is {v.type}" for end, v in ends if v.type is not None and not _fed(v.type)]
    if odd:
        raise UnsupportedError(
            f"{name}: only tensors of numbers can be fed and compared, but {', '.join(odd)}",
            hint="cut the model where numbers begin and end, and do the rest in your program",
        )


def _fed(type_: ir.TypeProtocol) -> bool:
    """Whether numpy itself has arrays of this type, with numbers in them."""
    if not isinstance(type_, ir.TensorType):
        return False
    dtype = type_.dtype.numpy()
    return dtype.isbuiltin == 1 and dtype.kind in "fiub"


def _with_tables(model: ir.Model) -> list[TensorSpec]:
    """The inputs, with the tables that their numbers look up."""
    values = model_inputs(model)
    specs = zip(tensor_specs(values), values, strict=True)
    return [spec.model_copy(update={"table_rows": table_rows(value)}) for spec, value in specs]


def other_feeds(
    model: ir.Model,
    inputs: Sequence[TensorSpec],
    feeds: Mapping[str, np.ndarray],
    seed: int,
    threads: int,
) -> Mapping[str, np.ndarray]:
    """Other random numbers of the same shapes and types; the same ones where the model takes no others."""
    specs = [spec.model_copy(update={"shape": feeds[spec.name].shape}) for spec in inputs]
    other = random_feeds(specs, seed)
    with open_graph(model, optimised=False, threads=threads) as session:
        try:
            session.run(other)
        except BackendError:
            return feeds
    return other


def _trial_feeds(model: ir.Model, source: Source, seed: int, threads: int) -> dict[str, np.ndarray]:
    """Random inputs on which the graph at the pinned operator set equals the file as given."""
    try:
        upgraded = open_graph(model, optimised=False, threads=threads)
    except BackendError as e:
        raise _refused(model, source.name) or e from e
    with upgraded:
        feeds = workable_feeds(upgraded, seed)
        got = upgraded.run(feeds)
    if source.path is not None:
        with _as_given(source.path, threads) as given:
            try:
                want = given.run(feeds)
            except BackendError as e:
                raise UnsupportedError(
                    f"{source.path}: ONNX Runtime, with which everything is compared, cannot run the file as "
                    f"given: {e.message.partition(': ')[2]}",
                    hint=f"export it at operator set {OPSET} or older",
                ) from e
        error = largest_error(want, got)
        if error > tolerance(model):
            raise ModelError(
                f"{source.name}: operator set {source.opset} brought to 21 computes something else "
                f"(outputs differ by {error:.2g} of their magnitude)",
                hint="export the model at operator set 17 or newer, and report this model",
            )
    return feeds


def _refused(model: ir.Model, name: str) -> UnsupportedError | None:
    """The error that lists every node which ONNX Runtime, the reference here, does not take."""
    reasons = {node: refusal(model, node) for node in model.graph}
    listed = [f"\n  {node.op_type} '{node.name}': {why}" for node, why in reasons.items() if why]
    if not listed:
        return None
    return UnsupportedError(
        f"{name}: ONNX Runtime, with which everything is compared, cannot run {len(listed)} of "
        f"{len(reasons)} nodes:{''.join(listed)}",
        hint="export the model in float32: model.float()"
        if any(v.dtype == ir.DataType.DOUBLE for n, why in reasons.items() if why for v in n.outputs)
        else "replace these operations in the model, or their types",
    )


def _as_given(path: Path, threads: int) -> Session:
    try:
        return Session(path, optimised=False, threads=threads)
    except BackendError as e:
        raise UnsupportedError(
            f"{path}: ONNX Runtime, with which everything is compared, cannot open the file as given: "
            + e.message.partition(": ")[2],
            hint="export it for an older version: opset_version=21 (and ir_version 10 in the file)",
        ) from e


def _usable_batch(
    model: ir.Model, feeds: dict[str, np.ndarray], notes: list[str], threads: int
) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Pin the batch to 1 where the file says that it is free but samples cannot be computed together.

    Also the feeds that fit. An input whose first dimension is a number is taken to have no batch.
    """
    free = {v.name: len(v.shape) for v in model.graph.inputs if v.shape and not isinstance(v.shape[0], int)}
    if not free or _batch_elsewhere(model):
        return model, feeds
    one, other = ({n: a[i : i + 1] if n in free else a for n, a in feeds.items()} for i in range(2))
    if all(len(feeds[name or ""]) > 1 for name in free):
        with open_graph(model, optimised=False, threads=threads) as session:
            together, first, second = session.run(feeds), session.run(one), session.run(other)
        allowed = tolerance(model)
        if all(_independent(together[n], first[n], second[n], allowed) for n in together):
            return model, feeds
        notes.append(f"samples in one batch influence each other{_training(model)}: the batch is pinned to 1")
    else:
        notes.append("the model runs one sample at a time, whatever its file says: the batch is pinned to 1")
    shapes = {name or "": (1, *[None] * (rank - 1)) for name, rank in free.items()}
    return infer(pin(model, shapes)), one


def _batch_elsewhere(model: ir.Model) -> bool:
    """Whether a first dimension stands further behind in another input, as in time-major sequences and their
    lengths: then samples do not lie along the first axis."""
    shapes = [v.shape for v in model_inputs(model) if v.shape]
    first = {shape[0] for shape in shapes if not isinstance(shape[0], int)}
    return any(dim in first for shape in shapes for dim in shape[1:])


def _training(model: ir.Model) -> str:
    """The likeliest reason, if it is the reason."""
    for node in model.graph:
        if node.op_type == "BatchNormalization" and node.attributes.get_int("training_mode", 0) != 0:
            return f" ({node.name} is in training mode: call model.eval() before exporting)"
    return ""


def _independent(together: np.ndarray, first: np.ndarray, second: np.ndarray, allowed: float) -> bool:
    """Whether two samples give together what they give apart; an output without a batch does not change."""
    apart = first
    if first.ndim and len(together) == len(first) + len(second):
        apart = np.concatenate([first, second])
    return relative_error(together, apart) <= allowed


def rolled_back(result: Rewritten) -> list[str]:
    """What is to be said of steps that were not right."""
    return [f"step '{r.step}' was rolled back: {r.why}" for r in result.rewrites if not r.kept]

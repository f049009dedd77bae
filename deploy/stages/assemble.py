"""Puts a bundle together: artifact, graph, plan, lock, self-test, and the manifest that vouches for them."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from deploy.bundle.read import (
    ARTIFACT,
    GRAPH,
    LOCK,
    LOG,
    MANIFEST,
    MEASUREMENTS,
    PLAN,
    SELFTEST,
    file_digest,
    load_bundle,
)
from deploy.bundle.report.page import PAGE, write_page
from deploy.bundle.write import copy_artifact
from deploy.errors import DeployError
from deploy.frontend.onnx_file import write as write_graph
from deploy.graph.shapes import infer
from deploy.spec.ablation import StepChoice
from deploy.spec.document import digest, render
from deploy.spec.manifest import CalibrationInfo, Lock, Manifest, Measurements, Sizes
from deploy.spec.plan import Plan
from deploy.spec.project import WITHOUT_RANGES
from deploy.spec.residency import Residency
from deploy.spec.tensors import TensorSpec
from deploy.stages.compile import Compiled
from deploy.stages.compress import choices
from deploy.stages.foresee import Foreseen
from deploy.stages.front import carried
from deploy.stages.interface import fed_specs
from deploy.stages.job import Ingredients
from deploy.stages.prepare import FloatGraph
from deploy.stages.record import Record
from deploy.stages.replay import front_of
from deploy.stages.residency import residencies
from deploy.stages.training import CURVES


def assemble(
    made_of: Ingredients, foreseen: Foreseen, compiled: Compiled, plan: Plan, folder: Path, record: Record
) -> None:
    """Everything a bundle holds, into ``folder``."""
    prepared, pick = made_of.prepared, made_of.request.pick
    with record.stage("bundle") as stage:
        artifact = compiled.artifact
        copy_artifact(artifact, folder / ARTIFACT)
        shutil.copyfile(artifact.folder.parent / SELFTEST, folder / SELFTEST)
        refined = artifact.folder.parent / GRAPH
        graph = next(
            prepared.graph_for(r.runtime) for r in made_of.target.routes if r.runtime.name == plan.runtime
        )
        if refined.exists():
            write_graph(ir.load(refined), folder / GRAPH)
        elif graph.path.with_name(f"{graph.path.name}.data").exists():
            write_graph(graph.model, folder / GRAPH)  # weights beside it bear the name of the file
        else:
            shutil.copyfile(graph.path, folder / GRAPH)
        (folder / PLAN).write_text(render(plan))
        (folder / LOCK).write_text(render(_lock(made_of, compiled)))
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        hashes = {p.relative_to(folder).as_posix(): file_digest(p) for p in files}
        manifest = _manifest(made_of, foreseen, compiled, plan, hashes)
        manifest = manifest.model_copy(update={"residency": _residency(made_of, compiled, graph, refined)})
        (folder / MANIFEST).write_text(render(manifest))
        before, after = manifest.size_bytes.baseline, manifest.size_bytes.artifact
        change = (
            f"{before / after:.2f} times smaller" if after <= before else f"{after / before:.2f} times larger"
        )
        stage.outcome = f"{after / 1e6:.3g} MB, {change}"
    measurements = Measurements(
        comparison=compiled.comparison,
        why_not=compiled.why_not_measured,
        doubts=compiled.doubts,
        missed=compiled.missed,
        attempts=compiled.attempts,
        front=compiled.front if pick is None else carried(front_of(made_of.request), pick),
        compression=prepared.ablation,
        ladder=compiled.ladder,
        blocks=compiled.blocks,
        explained=compiled.explained,
        stages=tuple(record.times),
    )
    (folder / MEASUREMENTS).write_text(render(measurements))
    for name, path in prepared.curves:
        (folder / CURVES).mkdir(exist_ok=True)
        shutil.copyfile(path, folder / CURVES / name)
    (folder / LOG).write_text(record.log())
    try:
        write_page(load_bundle(folder))
    except DeployError as e:  # a bundle without a page is better than none
        record.progress.warn(f"no {PAGE}: {e.message}")


def _manifest(
    made_of: Ingredients, foreseen: Foreseen, compiled: Compiled, plan: Plan, hashes: dict[str, str]
) -> Manifest:
    target, prepared, request = made_of.target, made_of.prepared, made_of.request
    calibration, unranged = made_of.roles.calibration, compiled.precision in WITHOUT_RANGES
    facts, artifact = prepared.facts.source, compiled.artifact
    counts = {p: sum(b.precision == p for b in plan.blocks) for p in {b.precision for b in plan.blocks}}
    return Manifest(
        target=target.name,
        profile=target.profile.name,
        runtime=plan.runtime,
        source=facts,
        recipe=request.recipe,
        compression=None if prepared.ablation is None else prepared.ablation.lasting,
        plan_sha256=digest(plan),
        precision=dict(sorted(counts.items())),
        files=hashes,
        artifact=artifact.model_copy(update={"inputs": _as_fed(artifact.inputs, made_of)}),
        options=compiled.options,
        size_bytes=Sizes(
            baseline=facts.bytes,
            artifact=artifact.size_bytes(),
            baseline_weights=facts.weight_bytes,
            weights=artifact.weight_bytes,
        ),
        calibration=None
        if calibration is None or not plan.quantized or prepared.facts.imported or unranged
        else CalibrationInfo(
            sha256=calibration.digest,
            samples=min(request.samples, len(calibration)),
            observer=request.observer,
            random=made_of.roles.random,
        ),
        evaluation=compiled.evaluation,
        verification=compiled.verification,
        verdict=compiled.verdict,
        hazards=(*foreseen.joined(prepared.facts.hazards, plan.runtime), *compiled.hazards),
        notes=prepared.facts.notes,
        classes=made_of.roles.classes,
        deferred=artifact.deferred,
        executed_by=compiled.verification.executed_by,
        toolchain={
            "deploy-compiler": version("deploy-compiler"),
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "onnx", "onnx_ir", "onnxruntime")},
            **artifact.toolchain,
        },
        seed=request.seed,
    )


def _residency(
    made_of: Ingredients, compiled: Compiled, graph: FloatGraph, refined: Path
) -> tuple[Residency, ...]:
    """What the accelerators would compute of the graph that became the artifact."""
    name = compiled.artifact.backend
    runtime = next(r.runtime for r in made_of.target.routes if r.runtime.name == name)
    if not runtime.unit:
        return ()
    model = infer(ir.load(refined)) if refined.exists() else graph.model
    return residencies(model, runtime, compiled.options)


def _as_fed(inputs: tuple[TensorSpec, ...], made_of: Ingredients) -> tuple[TensorSpec, ...]:
    """What must still be done to raw data, and what the artifact does itself, in the manifest's words."""
    told = {spec.name: spec for spec in fed_specs(made_of.prepared.facts.inputs, made_of.request.inputs)}
    return tuple(
        spec.model_copy(
            update={
                "normalisation": told[spec.name].normalisation,
                "layout": told[spec.name].layout,
                "colours": told[spec.name].colours,
                "table_rows": told[spec.name].table_rows,
            }
        )
        if spec.name in told
        else spec
        for spec in inputs
    )


def _lock(made_of: Ingredients, compiled: Compiled) -> Lock:
    calibration = made_of.roles.calibration
    return Lock(
        source_sha256=made_of.prepared.facts.source.sha256,
        runtime=compiled.artifact.backend,
        calibration_sha256=None if calibration is None else calibration.digest,
        profile_sha256=digest(made_of.target.profile),
        seed=made_of.request.seed,
        choices=compiled.choices,
        float_blocks=compiled.float_blocks,
        rungs=compiled.rungs,
        sparse_blocks=compiled.sparse_blocks,
        wide_blocks=compiled.wide_blocks,
        recipe=_choices(made_of),
        precision=compiled.precision,
        threads=made_of.request.threads,
        any_threads=made_of.request.any_threads,
        options=compiled.options,
        looks=0 if compiled.evaluation is None else compiled.evaluation.looks,
    )


def _choices(made_of: Ingredients) -> tuple[StepChoice, ...]:
    ablation = made_of.prepared.ablation
    return () if ablation is None else choices(ablation, made_of.request.recipe.steps)

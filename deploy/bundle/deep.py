"""A bundle looked at closely: its plan as it stands in the artifact's file, and each operation by itself.

Each operation of the artifact is fed the values of the reference (`reference.py`), so that none answers for
one before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
from pydantic import ValidationError

from deploy.adapter.batching import fixed_batch, sample_count
from deploy.adapter.discover import find_backend
from deploy.adapter.parts import ForeignParts
from deploy.adapter.profiles import load_profile, profile_names
from deploy.adapter.protocol import Backend, Divides, Splits
from deploy.bundle.operations import LARGEST_ERROR, SAMPLES, Deviation, checked, uncovered, values_of
from deploy.bundle.read import (
    ARTIFACT,
    MANIFEST,
    SELFTEST,
    Bundle,
    caveat_of,
    load_bundle,
    load_lock,
    load_plan,
)
from deploy.bundle.reference import reference_of
from deploy.bundle.verify import read_selftest, require_unchanged, self_test
from deploy.errors import UsageError, VerificationError
from deploy.execute.compare import HALF_TOLERANCE
from deploy.progress import SILENT, Progress
from deploy.spec.artifact import Options
from deploy.spec.manifest import Lock
from deploy.spec.plan import Plan, TensorPlan, differences
from deploy.spec.profile import FLOATS, Profile, Runtime
from deploy.spec.tensors import RANGES

_ALLOWED = {"float32": LARGEST_ERROR, "float16": HALF_TOLERANCE, "bfloat16": 2.0**-5}
"""By how much of its magnitude a float operation may be off, by the type that it computes in. In bfloat16,
which rounds by 2^-8, a recurrent layer of 49 steps was off by 0.021."""
LIMIT_S = 300.0


@dataclass(frozen=True)
class TensorCheck:
    """One value's parameters as planned and as they were read from the file; ``wrong`` says what differs."""

    name: str
    planned: TensorPlan | None
    read: TensorPlan | None
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class DeepCheck:
    """What was found in one bundle.

    ``how`` says what the operations that were run are, ``why_not`` why none was, where that is so;
    ``caveat`` why what they are held against may not be what the bundle was built by;
    ``unchecked`` for how many no time was left, ``uncovered`` which of the ``nodes`` of the reference lie in
    none of those that were run; ``failed`` what is wrong with the self-test, empty where it is right.
    """

    bundle: Bundle
    runtime: str
    tensors: tuple[TensorCheck, ...]
    operations: tuple[Deviation, ...]
    how: str = ""
    unchecked: int = 0
    nodes: int = 0
    uncovered: tuple[str, ...] = ()
    why_not: str = ""
    failed: str = ""
    caveat: str = ""

    @property
    def first(self) -> Deviation | None:
        """The first operation that is wrong."""
        return next((operation for operation in self.operations if operation.wrong), None)

    @property
    def right(self) -> bool:
        return not self.failed and self.first is None and not any(t.wrong for t in self.tensors)


def bundles_in(path: Path | str) -> list[Path]:
    """The bundle at ``path``, or those of all targets in that folder, by name. Raises UsageError for none."""
    folder = Path(path)
    if (folder / MANIFEST).is_file() or not folder.is_dir():
        return [folder]
    found = sorted(inner.parent for inner in folder.glob(f"*/{MANIFEST}"))
    if not found:
        raise UsageError(f"{folder}: not a bundle, and there is none in it", hint="build first")
    return found


def look_deep(path: Path | str, *, limit_s: float = LIMIT_S, progress: Progress = SILENT) -> DeepCheck:
    """Verify a bundle, then compare its plan and its operations; no operation is begun after ``limit_s``.

    Raises VerificationError where a file was changed, what opening raises.
    """
    until = time.monotonic() + limit_s
    bundle = load_bundle(path)
    require_unchanged(bundle)
    try:
        self_test(bundle)
        failed = ""
    except VerificationError as e:  # what follows says where that comes from
        failed = e.message
    plan = load_plan(bundle)
    backend = find_backend(bundle.manifest.artifact.backend)
    artifact = bundle.manifest.artifact.model_copy(
        update={"folder": (bundle.folder / ARTIFACT).resolve(), "foreign": True}
    )
    with ForeignParts(artifact, _options(backend, bundle)) as parts:
        tensors = compare_plans(plan, parts.read_plan())
        why_not = _why_not(backend, plan)
        if why_not:
            return DeepCheck(bundle, plan.runtime, tensors, (), why_not=why_not, failed=failed)
        profile, lock = _profile(bundle), load_lock(bundle)
        runtime = computed_in(_runtime(bundle, profile, plan), plan, lock)
        graph = reference_of(bundle, plan, runtime, cache(parts.codes))
        pieces = parts.pieces(_fed(graph))
        rounding = {name for b in plan.blocks if b.precision == "dynamic" for name in b.nodes}
        floats = {name for b in plan.blocks if b.precision == runtime.float_precision for name in b.nodes}
        allowed = _ALLOWED[runtime.around]
        found: list[Deviation] = []
        for feeds in _inferences(bundle):
            again = checked(graph, pieces, artifact.inputs, feeds, rounding, allowed, until, floats)
            for number, deviation in enumerate(again):
                if number < len(found):
                    found[number] = found[number].joined(deviation)
                else:
                    found.append(deviation)
                    progress.advance(len(found), len(pieces))
    return DeepCheck(
        bundle,
        plan.runtime,
        tensors,
        tuple(found),
        parts.how,
        unchecked=len(pieces) - len(found),
        nodes=sum(node.op_type not in ("QuantizeLinear", "DequantizeLinear") for node in graph.graph),
        uncovered=tuple(uncovered(graph, ((p.reads, p.result) for p in pieces[: len(found)]))),
        failed=failed,
        caveat=caveat_of(profile, lock),
    )


def computed_in(runtime: Runtime, plan: Plan, lock: Lock) -> Runtime:
    """The rules of a runtime with the type in which a bundle's floats were really computed.

    Its blocks say so; float16 may be only how their weights are stored. A profile has what a build uses if
    nothing else is asked for or found faster, and is believed where no block is float.
    """
    found = {block.precision for block in plan.blocks}
    stored = {"fp16"} if lock.precision == "fp16" else set()
    said = [around for around, precision in FLOATS.items() if precision in found - stored]
    return runtime.model_copy(update={"around": said[0]}) if len(said) == 1 else runtime


def _inferences(bundle: Bundle) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of the self-test: at once, or sample by sample where the artifact takes a fixed number."""
    feeds, _ = read_selftest(bundle.folder / SELFTEST)
    size = fixed_batch(bundle.manifest.artifact.inputs)
    count = sample_count(feeds)
    if size is None or count <= size:
        yield feeds
        return
    for start in range(0, min(count - size + 1, SAMPLES), size):
        yield {name: array[start : start + size] for name, array in feeds.items()}


def _fed(graph: ir.Model) -> set[str]:
    """Values that operations may be fed: instead of what integers stand for these themselves."""
    meanings = (node.outputs[0] for node in graph.graph if node.op_type == "DequantizeLinear")
    return values_of(graph) - {v.name or "" for v in meanings if not v.is_graph_output()}


def compare_plans(decided: Plan, read: Plan) -> tuple[TensorCheck, ...]:
    """Every value that either has, with what differs."""

    def only(plan: Plan, name: str) -> Plan:
        tensors = {name: plan.tensors[name]} if name in plan.tensors else {}
        return plan.model_copy(update={"tensors": tensors, "palettes": {}})

    tensors = [
        TensorCheck(
            name,
            decided.tensors.get(name),
            read.tensors.get(name),
            tuple(
                line.removeprefix(f"{name}: ") for line in differences(only(decided, name), only(read, name))
            ),
        )
        for name in sorted(decided.tensors.keys() | read.tensors.keys())
    ]
    for name in sorted(read.palettes):
        one = decided.model_copy(update={"tensors": {}})
        other = read.model_copy(update={"tensors": {}, "palettes": {name: read.palettes[name]}})
        wrong = tuple(line.removeprefix(f"{name}: ") for line in differences(one, other))
        tensors += [TensorCheck(name, None, None, wrong)] if wrong else []
    return tuple(tensors)


def _profile(bundle: Bundle) -> Profile:
    name = bundle.manifest.profile
    if name not in profile_names():
        raise UsageError(
            f"{bundle.folder}: the profile '{name}', by which it was built, is not installed here",
            hint=f"name its file: deploy verify --deep {bundle.folder} --profile {name}.toml",
        )
    return load_profile(name)


def _runtime(bundle: Bundle, profile: Profile, plan: Plan) -> Runtime:
    found = next((runtime for runtime in profile.runtime if runtime.name == plan.runtime), None)
    if found is None:
        raise UsageError(
            f"{bundle.folder}: the profile '{profile.name}' has no runtime '{plan.runtime}' any more, by "
            "which it was built",
            hint="name the profile's file as it was then: --profile",
        )
    return found


def _why_not(backend: Backend, plan: Plan) -> str:
    if not isinstance(backend, (Divides, Splits)):
        return f"{plan.runtime} runs on its device only: its file was read, nothing was run"
    return ""


def _options(backend: Backend, bundle: Bundle) -> Options:
    try:
        return backend.options_type.model_validate(bundle.manifest.options)
    except ValidationError as e:
        raise UsageError(
            f"{bundle.folder}: {backend.name} does not know the manifest's options: {e.errors()[0]['msg']}",
            hint="build the bundle again",
        ) from e


def alike(checks: Sequence[DeepCheck]) -> tuple[int, list[str]]:
    """Of the values that several plans have: how many have the same parameters in all, and which have not.

    Codes of another type with the same steps between the same bounds are the same; scales may differ by what
    float16 rounds away.
    """
    found: dict[str, list[TensorPlan]] = {}
    for check in checks:
        for tensor in check.tensors:
            if tensor.read is not None:
                found.setdefault(tensor.name, []).append(tensor.read)
    several = {name: plans for name, plans in found.items() if len(plans) > 1}
    unlike = [name for name, plans in several.items() if any(not _same(plans[0], p) for p in plans[1:])]
    return len(several) - len(unlike), sorted(unlike)


def _same(one: TensorPlan, other: TensorPlan) -> bool:
    if len(one.scale) != len(other.scale) or one.axis != other.axis:
        return False
    near = np.allclose(one.scale, other.scale, rtol=2.0**-10, atol=0)
    places = [
        np.asarray(plan.zero_point) - (RANGES[plan.type][0] + RANGES[plan.type][1] + 1) // 2
        for plan in (one, other)
    ]
    return bool(near and np.array_equal(places[0], places[1]))

"""Proof on the host: the artifact, in its runtime, computes what the reference graph says.

The reference is the Q/DQ graph taken literally, node by node. What may differ is measured, not guessed. The
same graph is run optimised too; once with inputs that are off by a float32's last bits, for one that lies
half-way between two codes is rounded either way (pixels are, with a range of exactly -1 to 1); and where the
artifact computes in float16 or bfloat16, a few times more with its inputs and float constants shaken by about
what these round away. How far all this strays from the reference is the noise floor. Where a quantized
artifact strays further than a few times that, its operations are checked one by one, each fed the reference's
values, as far as its runtime can do that. What is wrong then, or the first value that differs, is named.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import run_samples, sample_count
from deploy.adapter.protocol import Arrays, Remembers, Runner
from deploy.bundle.ends import Stray, at_other_sizes, kept, stored, strays
from deploy.bundle.operations import deviations
from deploy.bundle.read import (
    ARTIFACT,
    GRAPH,
    LOCK,
    PLAN,
    SELFTEST,
    Bundle,
    file_digest,
    load_bundle,
    open_artifact,
)
from deploy.errors import VerificationError
from deploy.execute.compare import largest_error, relative_error
from deploy.execute.reference import open_graph
from deploy.graph.edit import constant
from deploy.graph.legalize import held_back
from deploy.graph.summary import tensor_specs
from deploy.quantize.candidate import Candidate, Subject
from deploy.quantize.zeros import prove_zeros
from deploy.spec.manifest import Verification

_FLOOR_FACTOR = 4.0
_EXACT = 1e-5
"""Relative error that float32 sums in another order may always have."""
_ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Relative error of any value rounded to these types, and so of an output."""
_LAST_BITS = 2.0**-22
_FLIPPING = 2.0**-17
"""By how much inputs are shaken where products round them while running: a code in a thousand flips, as some
do in another kernel. A network may amplify one to what all rounding costs, so that kernels do round, and how,
shows at single products (tests/backends/test_weight_forms.py), not here."""
_FLOAT_PRODUCTS = {"session.qdq_matmulnbits_accuracy_level": "1"}
"""ONNX Runtime would round activations where weights alone are integers, and so make noise of its own."""
_SECOND_IS_EXACT = ("QuantizeLinear", "DequantizeLinear", "Resize")
_SHAKEN_BY = 2.0
_SHAKEN_SAMPLES = 64
"""By how many roundings numbers are shaken, and on how many samples in total. Whether a code flips is
chance, and flips near the output are rare and large: rounding once to float16 takes 39 of 240 right artifacts
of small random networks for wrong ones, rounding to the nearest, up and down 2, this none."""


def verify(
    candidate: Candidate, subject: Subject, samples: Arrays
) -> tuple[Verification, dict[str, np.ndarray]]:
    """Compare the artifact with its reference graph on ``samples``; also the reference's outputs.

    A failed verification is returned, not raised, with the first diverging operation named.
    """
    count = sample_count(samples)
    want, floor = _expected(candidate, subject, samples)
    with subject.backend.open(candidate.artifact, subject.options) as runner:
        got = run_samples(runner, samples, count)
        error = largest_error(want, got)
        tolerance = _FLOOR_FACTOR * floor + _EXACT
        passed, single, divergence = error <= tolerance, 0, None
        if not passed and math.isfinite(error) and candidate.plan.quantized:
            found = deviations(candidate, subject, samples)
            divergence = next((str(deviation) for deviation in found if deviation.wrong), None)
            passed, single = bool(found) and divergence is None, len(found)
        if not passed and divergence is None:
            divergence = first_divergence(candidate.qdq, runner, samples, tolerance)
        beyond: list[str] = []
        skipped: list[str] = []
        if passed:
            stray = _beyond(candidate, subject, runner, samples, floor, beyond, skipped)
            if stray is not None:
                passed, divergence = False, stray.where
                error, tolerance = stray.error, stray.allowed
    return (
        Verification(
            passed=passed,
            samples=count,
            error=min(error, 1e30),
            noise_floor=floor,
            tolerance=tolerance,
            executed_by=runner.executed_by,
            first_divergence=divergence,
            operations=single if passed else 0,
            beyond=tuple(beyond) if passed else (),
            skipped=tuple(skipped),
            sparsity=prove_zeros(candidate.plan.blocks, candidate.qdq, candidate.artifact, subject.backend),
        ),
        {name: got[name] for name in want},
    )


def _expected(candidate: Candidate, subject: Subject, samples: Arrays) -> tuple[dict[str, np.ndarray], float]:
    """What the reference graph makes of the samples, and the noise floor."""
    count, states = sample_count(samples), candidate.artifact.states
    with open_graph(candidate.qdq, optimised=False) as literal:  # one by one: a session holds all weights
        want = run_samples(literal, samples, count)
        generator = np.random.default_rng(0)
        by = _FLIPPING if _rounds_in_products(subject) else _LAST_BITS
        nudged = {name: _shaken(array, generator, by) for name, array in samples.items()}
        floor = _finite(largest_error(want, run_samples(literal, nudged, count)))
        if states:
            halved = kept(run_samples(literal, stored(samples, states), count), states)
            floor = max(floor, largest_error(want, halved))
    with open_graph(candidate.qdq, settings=_FLOAT_PRODUCTS) as optimised:
        floor = max(floor, largest_error(want, run_samples(optimised, samples, count)))
    around = "float16" if subject.form == "fp16" else subject.runtime.around
    if around != "float32":
        # Float16 weights let a runtime compute in float16, which this machine need not do.
        shaken = subject.graph if subject.form == "fp16" else candidate.qdq
        floor += _ROUNDING[around] + _half_noise(shaken, samples, want, around)
    return want, floor


def _beyond(
    candidate: Candidate,
    subject: Subject,
    runner: Runner,
    samples: Arrays,
    floor: float,
    done: list[str],
    skipped: list[str],
) -> Stray | None:
    """Where the artifact strays beyond one inference of one size; None where it does not. What was right goes
    to ``done``, what is too large for a check to ``skipped``."""
    if candidate.artifact.states and isinstance(runner, Remembers):
        steps = 0
        with open_graph(candidate.qdq, optimised=False) as literal:
            for one in strays(literal, runner, samples, floor, _FLOOR_FACTOR, _EXACT):
                if one.error > one.allowed:
                    return one
                steps += 1
        done.append(f"{steps} inferences in a row")
    inputs = tensor_specs(candidate.qdq.graph.inputs)
    for words, feeds in at_other_sizes(subject.runtime.asked.sizes, inputs, samples):
        if feeds is None:
            skipped.append(words)
            continue
        want, noise = _expected(candidate, subject, feeds)
        got = run_samples(runner, feeds, sample_count(feeds))
        error, allowed = largest_error(want, got), _FLOOR_FACTOR * noise + _EXACT
        if error > allowed:
            return Stray(f"an inference of {words}", error, allowed)
        done.append(words)
    return None


def _rounds_in_products(subject: Subject) -> bool:
    form = subject.form
    rules = None if form is None or form == "fp16" else subject.runtime.weights.get(form)
    return rules is not None and rules.rounds != "nothing"


def _half_noise(model: ir.Model, samples: Arrays, want: Arrays, around: str) -> float:
    """How far the results move when inputs and constants are off by what ``around`` rounds away."""
    generator = np.random.default_rng(0)
    by = _SHAKEN_BY * _ROUNDING[around]
    count, worst = sample_count(samples), 0.0
    exact = _exact_constants(model)
    for _ in range(max(4, _SHAKEN_SAMPLES // count)):
        feeds = {name: _shaken(array, generator, by) for name, array in samples.items()}
        shaken = _with_shaken_constants(model, generator, by, around, exact)
        with open_graph(shaken, optimised=False) as session:
            worst = max(worst, _finite(largest_error(want, run_samples(session, feeds, count))))
    return worst


def _finite(error: float) -> float:
    """A shaken root of 0 is NaN, and says nothing of rounding."""
    return error if math.isfinite(error) else 0.0


def _with_shaken_constants(
    model: ir.Model, generator: np.random.Generator, by: float, around: str, exact: Collection[str | None]
) -> ir.Model:
    """A copy with the constants shaken that ``around`` rounds: not those called ``exact``, nor lone numbers
    that the type holds (an exponent of 2)."""
    copy = model.clone()
    for name, value in sorted(copy.graph.initializers.items()):
        array = constant(value)
        if array is None or array.dtype != np.float32 or name in exact:
            continue
        if array.size == 1 and _holds(around, array):
            continue
        value.const_value = ir.tensor(_shaken(array, generator, by), name=name)
    return copy


def _exact_constants(model: ir.Model) -> frozenset[str | None]:
    """Not shaken: scales, which an integer kernel takes as they are, and what stays float32 in float16 graphs
    (the scales of a Resize, a step of Range)."""
    held = held_back(model)
    return frozenset(
        value.name
        for node in model.graph
        for index, value in enumerate(node.inputs)
        if value is not None and (node.name in held or (index > 0 and node.op_type in _SECOND_IS_EXACT))
    )


def _holds(around: str, number: np.ndarray) -> bool:
    """Whether a lone float32 is a number of that type; bfloat16 is the upper half of a float32."""
    if around == "bfloat16":
        return int(number.reshape(()).view(np.uint32)) & 0xFFFF == 0
    return bool(np.float16(number.item()) == number.item())


def _shaken(array: np.ndarray, generator: np.random.Generator, by: float) -> np.ndarray:
    if array.dtype != np.float32:
        return array
    noise = generator.uniform(-by, by, array.shape)
    return np.asarray(array * (1 + noise), np.float32)


def first_divergence(reference: ir.Model, runner: Runner, samples: Arrays, tolerance: float) -> str | None:
    """The first node, in graph order, whose value in ``runner`` is off by more than ``tolerance``.

    None where no inner value that both sides have differs, so that only the outputs do.
    """
    inner = [
        (node, out.name)
        for node in reference.graph
        for out in node.outputs
        if out.name and out.dtype == ir.DataType.FLOAT and any(v is not None for v in node.inputs)
    ]
    names = [name for _, name in inner]
    count = sample_count(samples)
    with open_graph(reference, optimised=False, expose=names) as literal:
        want = run_samples(literal, samples, count, names)
    got = run_samples(runner, samples, count, names)
    for node, name in inner:
        if name not in got:
            continue
        error = relative_error(want[name], got[name].astype(np.float32))
        if error > tolerance:
            return f"{node.op_type} '{node.name}' (value '{name}', off by {error:.2g} of its magnitude)"
    return None


def verify_bundle(path: Path | str) -> Verification:
    """Check a bundle offline: every file's hash, then the recorded self-test through the artifact's runtime.

    Raises VerificationError naming the file that changed, or the output that differs.
    """
    bundle = load_bundle(path)
    require_unchanged(bundle)
    return self_test(bundle)


def require_unchanged(bundle: Bundle) -> None:
    """Raises VerificationError naming the file that is not the one of which the manifest has the hash."""
    manifest = bundle.manifest
    parts = {GRAPH, PLAN, LOCK, SELFTEST, *(f"{ARTIFACT}/{name}" for name in manifest.artifact.files)}
    unknown = sorted(parts - manifest.files.keys())
    if unknown:
        raise VerificationError(
            f"{bundle.folder}: the manifest holds no SHA-256 of {unknown[0]}",
            hint="this is no bundle as a build writes it: build again",
        )
    for name, expected in manifest.files.items():
        file = bundle.folder / name
        if not file.is_file():
            raise VerificationError(f"{file}: the file is missing", hint="copy the whole bundle again")
        if file_digest(file) != expected:
            raise VerificationError(
                f"{file}: its SHA-256 is not the manifest's: it was changed or damaged",
                hint="build again, or copy the bundle again",
            )


def self_test(bundle: Bundle) -> Verification:
    """Run what was recorded through the artifact's runtime. Raises VerificationError naming an output that
    differs."""
    feeds, want = read_selftest(bundle.folder / SELFTEST)
    with open_artifact(bundle) as runner:
        if {s.name for s in runner.inputs} != feeds.keys() or {s.name for s in runner.outputs} != want.keys():
            raise VerificationError(
                f"{bundle.folder / SELFTEST}: recorded for other inputs or outputs than the artifact has",
                hint="build again",
            )
        got = run_samples(runner, feeds, sample_count(feeds))
    errors = {name: relative_error(want[name], got[name]) for name in want}
    worst = max(errors, key=lambda name: errors[name])
    manifest = bundle.manifest
    tolerance = manifest.verification.tolerance
    if errors[worst] > tolerance:
        raise VerificationError(
            f"self-test failed: output '{worst}' is off by {errors[worst]:.3g} of its magnitude, "
            f"{tolerance:.3g} is allowed",
            hint="this runtime computes something else than the one that the bundle was built with: "
            + json.dumps(dict(manifest.toolchain)),
        )
    return manifest.verification.model_copy(update={"error": errors[worst], "samples": sample_count(feeds)})


def write_selftest(path: Path, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """``input/<name>`` and ``output/<name>`` arrays in one npz; equal content gives equal bytes."""
    arrays = {f"input/{n}": a for n, a in sorted(feeds.items())}
    arrays |= {f"output/{n}": a for n, a in sorted(outputs.items())}
    np.savez(path, allow_pickle=False, **arrays)


def read_selftest(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays that `write_selftest` stored: feeds, outputs. Nothing is ever unpickled.

    Raises VerificationError where the file holds anything else.
    """
    parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            for key in archive.files:
                kind, _, name = key.partition("/")
                parts[kind == "output"][name] = archive[key]
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError, TypeError) as e:
        raise VerificationError(f"{path}: not a self-test that a build wrote: {e}", hint="build again") from e
    return parts

"""Proof on the host: the artifact, in its runtime, computes what the reference graph says.

The reference is the Q/DQ graph taken literally, node by node. What may differ is measured, not guessed: the
same graph is run optimised too, and how far that strays is the noise floor. Where the artifact strays
further, the first operation whose value differs is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from deploy.adapter.batching import run_samples
from deploy.adapter.protocol import Arrays, Options, Runner
from deploy.bundle.read import SELFTEST, file_digest, load_bundle, open_artifact
from deploy.errors import VerificationError
from deploy.execute.compare import largest_error, relative_error
from deploy.execute.reference import open_graph
from deploy.quantize.candidate import Candidate, Subject
from deploy.spec.manifest import Verification

_FLOOR_FACTOR = 4.0
_EXACT = 1e-5
"""Relative error that float32 sums in another order may always have."""
_HALF = 3e-2
"""Added where the artifact computes in float16: 11 significant bits, and now and then one code of INT8."""


def verify(
    candidate: Candidate, subject: Subject, samples: Arrays, options: Options
) -> tuple[Verification, dict[str, np.ndarray]]:
    """Compare the artifact with its reference graph on ``samples``; also the reference's outputs.

    A failed verification is returned, not raised, with the first diverging operation named.
    """
    count = len(next(iter(samples.values())))
    with open_graph(candidate.qdq, optimised=False) as literal, open_graph(candidate.qdq) as optimised:
        want = run_samples(literal, samples, count)
        floor = largest_error(want, run_samples(optimised, samples, count))
    with subject.backend.open(candidate.artifact, options) as runner:
        got = run_samples(runner, samples, count)
        error = largest_error(want, got)
        tolerance = _FLOOR_FACTOR * floor + (_HALF if subject.runtime.around == "float16" else _EXACT)
        passed = error <= tolerance
        divergence = None if passed else first_divergence(candidate.qdq, runner, samples, tolerance)
    return (
        Verification(
            passed=passed,
            samples=count,
            error=min(error, 1e30),
            noise_floor=floor,
            tolerance=tolerance,
            executed_by=runner.executed_by,
            first_divergence=divergence,
        ),
        {name: got[name] for name in want},
    )


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
    count = len(next(iter(samples.values())))
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
    manifest = bundle.manifest
    for name, expected in manifest.files.items():
        file = bundle.folder / name
        if not file.is_file():
            raise VerificationError(f"{file}: the file is missing", hint="copy the whole bundle again")
        if file_digest(file) != expected:
            raise VerificationError(
                f"{file}: its SHA-256 is not the manifest's: it was changed or damaged",
                hint="build again, or copy the bundle again",
            )
    feeds, want = read_selftest(bundle.folder / SELFTEST)
    with open_artifact(bundle) as runner:
        got = run_samples(runner, feeds, len(next(iter(feeds.values()))))
    errors = {name: relative_error(want[name], got[name]) for name in want}
    worst = max(errors, key=lambda name: errors[name])
    tolerance = manifest.verification.tolerance
    if errors[worst] > tolerance:
        raise VerificationError(
            f"self-test failed: output '{worst}' is off by {errors[worst]:.3g} of its magnitude, "
            f"{tolerance:.3g} is allowed",
            hint="this runtime computes something else than the one that the bundle was built with: "
            + json.dumps(dict(manifest.toolchain)),
        )
    return manifest.verification.model_copy(
        update={"error": errors[worst], "samples": len(next(iter(feeds.values())))}
    )


def write_selftest(path: Path, feeds: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> None:
    """``input/<name>`` and ``output/<name>`` arrays in one npz; equal content gives equal bytes."""
    arrays = {f"input/{n}": a for n, a in sorted(feeds.items())}
    arrays |= {f"output/{n}": a for n, a in sorted(outputs.items())}
    np.savez(path, allow_pickle=False, **arrays)


def read_selftest(path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays that :func:`write_selftest` stored: feeds, outputs."""
    parts: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    with np.load(path, allow_pickle=False) as archive:
        for key in archive.files:
            kind, _, name = key.partition("/")
            parts[kind == "output"][name] = archive[key]
    return parts

"""What choosing from the table alone costs: `--tune off` against `--tune quick`, timed in turn in one run.

    python benchmarks/regret.py --cases DIR [--only NAME] [--out DIR] [--keep] [--threads N] [--max-drop D]
        [--markdown FILE]

Each folder of DIR holds model.onnx, calib.npz and eval.npz. `off` chooses runtime and mixture by the costs of
kernels that were measured here before (`deploy profile`), `quick` by timing what may win. Both bundles' own
artifacts are then timed interleaved, batch 1, opened anew five times: one session in a few is unlucky with
its memory for all of its life, by up to 12 %. Regret is 1 - speed of the one over speed of the other: below
zero the table chose better, and none where both chose the same bytes. ``--keep`` takes the bundles that lie
in --out from an earlier run.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import deploy
from deploy.adapter.discover import find_backend
from deploy.adapter.protocol import Runner
from deploy.bundle.read import ARTIFACT, Bundle, load_bundle
from deploy.measure.latency import Timing, TimingPlan, measure, speedup
from deploy.spec.project import Budget, Tune

SHAPES = {"ppocr_direction_cls": {"x": (1, 3, 48, 192)}}
"""Of models with free sizes."""
GOAL = 0.1
SESSIONS = 5
HEADER = """\
| case | by the table | predicted, ms | measured, ms | by the clock | predicted, ms | measured, ms \
| regret, % [95 %] |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Compared:
    """A case built both ways; ``ratio`` is the speed of what the table chose in that of the other."""

    case: str
    off: Bundle
    quick: Bundle
    times: tuple[Timing, Timing]
    ratio: float
    interval: tuple[float, float]

    @property
    def regret(self) -> float:
        return 1 - self.ratio


def built(
    case: Path, tune: Tune, out: Path, *, threads: int, target: str, max_drop: float, keep: bool
) -> Bundle:
    """The bundle of one way to choose, or that of an earlier run where it is to be kept."""
    folder = out / case.name / tune
    if keep and (folder / target / "manifest.json").is_file():
        return load_bundle(folder / target)
    return deploy.build(
        case / "model.onnx",
        target=target,
        data=case / "calib.npz",
        eval=case / "eval.npz",
        shapes=SHAPES.get(case.name),
        budget=Budget(max_drop=max_drop),
        tune=tune,
        threads=threads,
        out=folder,
        cache=out / "cache",
    )


def opened(bundle: Bundle) -> Runner:
    """The artifact in this process, as while building: it was just written by ourselves."""
    artifact = bundle.manifest.artifact.model_copy(update={"folder": bundle.folder / ARTIFACT})
    backend = find_backend(artifact.backend)
    return backend.open(artifact, backend.options_type.model_validate(bundle.manifest.options))


def compared(case: Path, off: Bundle, quick: Bundle, plan: TimingPlan) -> Compared:
    """Both artifacts timed in turn on one sample, in a few sessions of each."""
    with np.load(case / "calib.npz") as arrays:
        feeds = {spec.name: arrays[spec.name][:1] for spec in off.manifest.artifact.inputs}
    order = [("off", off), ("quick", quick)]
    parts: dict[str, list[Timing]] = {name: [] for name, _ in order}
    for _ in range(SESSIONS):
        with ExitStack() as stack:
            runners = {name: stack.enter_context(opened(bundle)) for name, bundle in order}
            for name, timing in measure(runners, feeds, plan).items():
                parts[name].append(timing)
        order.reverse()
    times = {
        name: Timing(np.concatenate([t.runs for t in own]), np.concatenate([t.rounds for t in own]))
        for name, own in parts.items()
    }
    ratio, interval = speedup(times["quick"], times["off"])
    if same(off, quick):
        ratio, interval = 1.0, (1.0, 1.0)
    return Compared(case.name, off, quick, (times["off"], times["quick"]), ratio, interval)


def same(one: Bundle, other: Bundle) -> bool:
    """Whether both hold the same bytes, run with the same options."""
    a, b = (bundle.manifest for bundle in (one, other))
    files = a.artifact.files
    return (files, a.options) == (b.artifact.files, b.options) and all(
        (one.folder / ARTIFACT / name).read_bytes() == (other.folder / ARTIFACT / name).read_bytes()
        for name in files
    )


def row(found: Compared) -> str:
    """One line of the table."""
    low, high = (100 * (1 - ratio) for ratio in reversed(found.interval))
    cells = [found.case]
    for bundle, timing in zip((found.off, found.quick), found.times, strict=True):
        expected = bundle.measurements.explained.predicted_ms
        cells += [
            chosen(bundle),
            "unknown" if expected is None else f"{expected:.3f}",
            f"{timing.summary().p50:.3f}",
        ]
    return f"| {' | '.join(cells)} | {100 * found.regret:+.1f} [{low:+.1f}, {high:+.1f}] |"


def chosen(bundle: Bundle) -> str:
    """``ort: 7 of 11 blocks int8``"""
    counts = bundle.manifest.precision
    integers = counts.get("int8", 0)
    whole = sum(counts.values())
    form = f"{integers} of {whole} blocks int8" if integers else ", ".join(counts)
    return f"{bundle.manifest.runtime}: {form}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=Path, required=True, help="folder of case folders")
    parser.add_argument("--only", action="append", help="only this case; may be repeated")
    parser.add_argument("--target", default="x86-cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--max-drop", type=float, default=0.01, help="the budget")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing a case")
    parser.add_argument("--out", type=Path, help="keep the bundles there")
    parser.add_argument("--keep", action="store_true", help="take bundles that lie in --out")
    parser.add_argument("--markdown", type=Path, help="write the table there, too")
    arguments = parser.parse_args()
    found = sorted(p.parent for p in arguments.cases.glob("*/model.onnx"))
    cases = [case for case in found if not arguments.only or case.name in arguments.only]
    if not cases:
        raise SystemExit(f"no case with a model.onnx under {arguments.cases}")
    plan = TimingPlan(seconds=arguments.seconds / SESSIONS, rounds=12)
    with tempfile.TemporaryDirectory() as scratch:
        out = arguments.out or Path(scratch)
        print(HEADER)
        lines = [HEADER]
        results = []
        for case in cases:
            bundles = [
                built(
                    case,
                    tune,
                    out,
                    threads=arguments.threads,
                    target=arguments.target,
                    max_drop=arguments.max_drop,
                    keep=arguments.keep,
                )
                for tune in ("off", "quick")
            ]
            results.append(compared(case, bundles[0], bundles[1], plan))
            lines.append(row(results[-1]))
            print(lines[-1], flush=True)
    worst = max(results, key=lambda r: r.regret)
    lines.append(
        f"\nWorst: {worst.case}, {100 * worst.regret:.1f} % of speed lost (goal: at most {100 * GOAL:.0f} %)."
    )
    print(lines[-1])
    if arguments.markdown:
        arguments.markdown.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

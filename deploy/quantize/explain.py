"""Why each block of an artifact is computed as it is, in words with numbers.

What a block takes in either form is what the cost model says of its kernels; what it would bring to change it
alone is reckoned with the borders (`pays.problem_of`), so it is what the choice went by. What a block costs
in accuracy cannot be measured for all of them: it is its share, by relative noise power, of a drop that was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from deploy.predict.kernels import UnknownSizeError
from deploy.predict.latency import CostSource, Prediction, predict
from deploy.quantize.candidate import FOR_ACCURACY_WIDE, Subject
from deploy.quantize.decide import SLOWER_SO, Decided
from deploy.quantize.eligible import mixes
from deploy.quantize.knapsack import Problem
from deploy.quantize.mix import harm_of
from deploy.quantize.pays import forecast, problem_of
from deploy.quantize.trial import Trial
from deploy.quantize.widen import able_to_widen
from deploy.spec.explanation import Explained, Explanation
from deploy.spec.overlay import KernelClass
from deploy.spec.plan import BlockPlan, Plan
from deploy.spec.tensors import INTEGER, Precision

_WORDS: Mapping[KernelClass, str] = {
    "conv": "convolution",
    "stem": "first convolution",
    "pointwise": "1x1 convolution",
    "depthwise": "depthwise convolution",
    "grouped": "grouped convolution",
    "transposed": "transposed convolution",
    "gemm": "matrix product",
    "batched": "product of two values",
    "recurrent": "recurrent layer",
    "gru": "recurrent layer",
}
"""Kernel classes as people call them; others go by their operation."""
_NOTHING_MS = 1e-6
"""What no reason is worth."""
_FOR_ACCURACY = "kept float to hold the accuracy budget"


@dataclass(frozen=True)
class Table:
    """What a choice takes, by the costs of kernels. ``changes`` and ``instead`` as in `Explanation`."""

    float_ms: Mapping[str, float]
    integer_ms: Mapping[str, float]
    changes: Mapping[str, float]
    instead: Mapping[str, float]
    words: Mapping[str, str]
    form: str
    """What the integers are called."""
    carried: frozenset[str]
    """Blocks that only move data, and move integers here."""
    zeros: Mapping[str, float]
    """How many times as fast blocks are by the 2:4 zeros in their weights."""
    predicted_ms: float


def explain(
    subject: Subject,
    decided: Decided,
    costs: CostSource | None = None,
    *,
    basis: str = "",
    why_not: str = "",
    trials: Iterable[Trial] = (),
) -> Explained:
    """The blocks of what was ``decided``. Without ``costs`` (``why_not`` says why there are none) no time is
    known. ``trials`` are what was scored on the way, in whatever form."""
    plan = decided.candidate.plan
    table: Table | None = None
    if costs is not None and subject.form is None:
        try:
            table = table_of(subject, plan, costs)
        except UnknownSizeError as e:
            why_not = f"a size at '{e.node}' is free"
        except LookupError as e:
            why_not = str(e)
    harm = harm_of(decided.sqnr)
    points = _points(plan, decided, harm, [*decided.trials, *trials])
    able = set(subject.int8_blocks())
    noise = {block: harm[block] for block in able if block in harm}
    whole = sum(noise.values())
    why_not_wide = _why_not_wide(subject, plan)
    blocks = []
    for block in plan.blocks:
        share = noise[block.id] / whole if whole and block.id in noise else None
        blocks.append(
            Explanation(
                id=block.id,
                precision=block.precision,
                sqnr_db=block.sqnr_db,
                noise=_rounded(share),
                points=points.get(block.id),
                reason=_with_zeros(
                    _reason(block, table, share, block.id in able) + why_not_wide.get(block.id, ""),
                    block,
                    table,
                ),
                **_figures(block.id, table),
            )
        )
    return Explained(
        basis="" if table is None else basis,
        why_not=why_not if table is None else "",
        predicted_ms=None if table is None else _rounded(table.predicted_ms),
        blocks=tuple(blocks),
    )


def table_of(subject: Subject, plan: Plan, costs: CostSource) -> Table:
    """What every block takes in either form under ``plan``. Raises UnknownSizeError and LookupError where a
    kernel's cost is not known."""
    problem = problem_of(subject, costs, {})
    chosen = followed(problem, {b.id: b.precision for b in plan.blocks if b.precision in INTEGER})
    now = problem.ms(chosen)
    as_float = forecast(subject, costs)
    float_ms = as_float.by_block(subject.blocks)
    float_ms |= {b: o.ms for b, options in problem.options.items() for o in options if not o.integer}
    able = subject.int8_blocks()
    instead = {b: problem.ms(followed(problem, _turned(subject, chosen, b))) - now for b in able}
    return Table(
        float_ms=float_ms,
        integer_ms={b: o.ms for b, options in problem.options.items() for o in options if o.integer},
        changes={b: sum(border.ms for border in problem.changes(chosen, b)) for b in problem.options},
        instead=instead,
        words=_words(subject, as_float),
        form="INT8 by INT16" if subject.integer_precision == "w8a16" else "INT8",
        carried=frozenset(b for b in problem.follows if chosen[b] in INTEGER),
        zeros=_zeros(subject, plan, costs),
        predicted_ms=predict(subject.graph, plan.tensors, subject.runtime, costs).ms,
    )


def _zeros(subject: Subject, plan: Plan, costs: CostSource) -> dict[str, float]:
    thin = [block.id for block in plan.blocks if block.sparsity is not None]
    if not thin or subject.runtime.sparsity_gain <= 1:
        return {}
    blind = subject.runtime.model_copy(update={"sparsity": None})
    ms, dense = (
        predict(subject.graph, plan.tensors, runtime, costs).by_block(subject.blocks)
        for runtime in (subject.runtime, blind)
    )
    return {block: dense[block] / ms[block] for block in thin if ms[block] > 0}


def followed(problem: Problem, integers: Mapping[str, Precision]) -> dict[str, Precision]:
    """The choice for every block of ``problem`` where ``integers`` are in integers, and of those that follow
    others the ones that do so."""
    chosen: dict[str, Precision] = {}
    for block, options in problem.options.items():
        rest = next(o.precision for o in options if not o.integer)
        chosen[block] = integers.get(block, rest) if block not in problem.follows else rest
    turned = True
    while turned:
        turned = False
        for block, others in problem.follows.items():
            if chosen[block] not in INTEGER and any(chosen[other] in INTEGER for other in others):
                chosen[block] = next(o.precision for o in problem.options[block] if o.integer)
                turned = True
    return chosen


def _turned(subject: Subject, chosen: Mapping[str, Precision], block: str) -> dict[str, Precision]:
    """``chosen`` with one block in its other form."""
    other = subject.float_precision if chosen[block] in INTEGER else subject.integers_of(block)
    return {**chosen, block: other}


def _words(subject: Subject, as_float: Prediction) -> dict[str, str]:
    """What each block mainly is: its longest kernel."""
    owner = {name: block for block in subject.blocks for name in block.nodes}
    longest: dict[str, float] = {}
    words = {block.id: block.kind for block in subject.blocks}
    for part in as_float.parts:
        block = owner[part.kernel.nodes[0]]
        if part.estimate.ms > longest.get(block.id, -1.0):
            longest[block.id] = part.estimate.ms
            words[block.id] = _WORDS.get(part.kernel.op, block.kind)
    return words


def _figures(block: str, table: Table | None) -> dict[str, float | None]:
    if table is None:
        return {}
    return {
        "float_ms": _rounded(table.float_ms.get(block)),
        "integer_ms": _rounded(table.integer_ms.get(block)),
        "changes_ms": _rounded(table.changes.get(block)),
        "instead_ms": _rounded(table.instead.get(block)),
    }


def _points(
    plan: Plan, decided: Decided, harm: Mapping[str, float], trials: Iterable[Trial]
) -> dict[str, float]:
    """Shares of measured drops. A drop below zero is none: noise does not make networks better."""
    found: dict[str, float] = {}
    most = max(
        (trial for trial in trials if trial.drop is not None),
        key=lambda trial: len(_integers(trial.plan)),
        default=None,
    )
    if most is not None and most.drop is not None:
        found |= _shared(most.drop.drop, {b: harm[b] for b in _integers(most.plan) if b in harm})
    own = {block for block in _integers(plan) if block not in decided.subject.refinement.wide}
    found = {block: points for block, points in found.items() if block not in own}
    if decided.drop is not None:
        found |= _shared(decided.drop.drop, {b: harm[b] for b in own if b in harm})
    return found


def _shared(drop: float, harm: Mapping[str, float]) -> dict[str, float]:
    whole = sum(harm.values())
    return {b: float(f"{max(0.0, drop) * h / whole:.3g}") for b, h in harm.items()} if whole else {}


def _integers(plan: Plan) -> set[str]:
    return {block.id for block in plan.blocks if block.precision in INTEGER}


def _reason(block: BlockPlan, table: Table | None, share: float | None, able: bool) -> str:
    """Why, with numbers as far as there are any."""
    noisy = "" if share is None else f"it makes {_percent(share)} of the noise"
    if table is None or block.id not in table.integer_ms:
        return _with_noise(block, noisy)
    if not able:
        moved = (
            "integers, as its neighbours are" if block.id in table.carried else "floats, as its readers want"
        )
        return f"only moves data: {moved}"
    speed, now = _speed(block.id, table), block.precision in INTEGER
    faster = table.integer_ms[block.id] < table.float_ms[block.id]
    instead = table.instead[block.id]
    here = f"{table.form} {table.words[block.id]} is {_times(speed)} float here"
    kernel = abs(table.integer_ms[block.id] - table.float_ms[block.id])
    # What changes of form would cost more, were the block in its other form.
    around = instead - (kernel if faster == now else -kernel)
    if now:
        said = f"{here}; as float the whole would take {_more(instead)}"
        if not faster and around > _NOTHING_MS:
            said = f"{here}, but as float it would cost {_ms(around)} in changes of form"
        return f"{block.reason}; {said}" if block.reason else said
    if instead < -_NOTHING_MS:
        said = f"{table.form} would save {_ms(-instead)}, its borders counted"
        if block.reason == SLOWER_SO and noisy:
            return f"kept float to hold the budget: {noisy}; {said}"
    elif faster:
        said = f"{table.form} would save {_ms(kernel)}, the changes of form around it cost {_ms(around)}"
    else:
        said = here + (f", and changes of form would cost {_ms(around)}" if around > _NOTHING_MS else "")
    if block.reason == SLOWER_SO:
        return said
    if block.reason != _FOR_ACCURACY:  # a race, a lock, a user: the table may think otherwise
        said = f"by the costs of kernels {said}"
    return f"{_with_noise(block, noisy)}; {said}"


def _why_not_wide(subject: Subject, plan: Plan) -> dict[str, str]:
    """By block that is float for accuracy's sake why it has no activations of 16 bits instead, where the
    runtime has such."""
    if not mixes(subject.runtime):
        return {}
    able, rules = set(able_to_widen(subject)), subject.runtime.quant16
    cheaper = rules is not None and rules.instead_of_float
    floats = [b.id for b in plan.blocks if b.precision not in INTEGER and b.reason == _FOR_ACCURACY]
    return {
        block: "; it has no kernel for activations of 16 bits"
        if block not in able
        else "; activations of 16 bits did not hold it"
        if cheaper
        else "; activations of 16 bits are slower than floats here"
        for block in floats
    }


def _with_zeros(reason: str, block: BlockPlan, table: Table | None) -> str:
    """The reason, and what the zeros of a block bring where that is known."""
    if block.sparsity is None:
        return reason
    times = None if table is None else table.zeros.get(block.id)
    said = "2:4 zeros" + ("" if times is None else f": {_times(times)} dense")
    return f"{reason}; {said}" if reason else said


def _speed(block: str, table: Table) -> float:
    """How many times as fast as float its integers are."""
    return table.float_ms[block] / table.integer_ms[block] if table.integer_ms[block] > 0 else 1.0


def _with_noise(block: BlockPlan, noisy: str) -> str:
    if block.reason == _FOR_ACCURACY and noisy:
        return f"kept float to hold the budget: {noisy}"
    if block.reason == FOR_ACCURACY_WIDE and noisy:
        return f"activations of 16 bits to hold the budget: in INT8 {noisy}"
    return block.reason


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.01 else "less than 1 %"


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 10 else f"{ratio:.0f} times"


def _ms(value: float) -> str:
    return f"{float(f'{value:.2g}'):g} ms"


def _more(ms: float) -> str:
    if abs(ms) <= _NOTHING_MS:
        return "as long"
    return f"{_ms(ms)} more" if ms > 0 else f"{_ms(-ms)} less"


def _rounded(value: float | None) -> float | None:
    """Four digits: more would be noise."""
    return None if value is None else float(f"{value:.4g}")

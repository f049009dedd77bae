"""What an accelerator of the device computes of a model: a prediction from rules, with who says each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.bundle.report import figures
from deploy.spec.residency import STATES, BlockResidency, Residency, RuleFound, State

BLOCK_HEADER = ("block", "operation", "there", "MACs elsewhere", "why")
RULE_HEADER = ("rule", "effect", "why", "said by", "source")

_SAID = {"vendor": "the vendor", "developer": "developers, who tried it"}
_WORDS: dict[State, tuple[str, str]] = {
    "stays": ("stays", "stay"),
    "unknown": ("is unknown", "are unknown"),
    "may leave": ("may leave", "may leave"),
    "leaves": ("leaves", "leave"),
}
"""Of one and of several."""


@dataclass(frozen=True)
class UnitBlock:
    """A block that does not simply stay, or is slower there; ``kept`` says that it stays."""

    id: str
    kind: str
    state: str
    macs: str
    why: str
    kept: bool

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `BLOCK_HEADER`."""
        return (self.id, self.kind, self.state, self.macs, self.why)


@dataclass(frozen=True)
class UnitFact:
    """A rule that holds of some of the model."""

    name: str
    effect: str
    words: str
    said: str
    source: str

    @property
    def cells(self) -> tuple[str, ...]:
        """In the order of `RULE_HEADER`."""
        return (self.name, self.effect, self.words, self.said, self.source)


@dataclass(frozen=True)
class Unit:
    """One accelerator: ``title`` names it, ``sentences`` are the sums; ``rows`` the worst blocks first."""

    title: str
    sentences: tuple[str, ...]
    rows: tuple[UnitBlock, ...]
    rules: tuple[UnitFact, ...]


def units(found: Sequence[Residency]) -> tuple[Unit, ...]:
    """What is predicted for each accelerator of the device."""
    return tuple(_unit(residency) for residency in found)


def _unit(found: Residency) -> Unit:
    rows = sorted(found.apart, key=lambda block: -STATES.index(block.state))
    return Unit(
        title=f"On the {found.unit}",
        sentences=tuple(_sentences(found)),
        rows=tuple(_row(block, found) for block in rows),
        rules=tuple(_fact(rule) for rule in found.rules),
    )


def staying(found: Residency) -> str:
    """What stays, in a few words."""
    if found.share is None:
        return f"{_counted(found)}, predicted by the profile's rules"
    return f"{_percent(found.share)} of the MACs, predicted by the profile's rules"


def _counted(found: Residency) -> str:
    return f"{found.blocks.get('stays', 0)} of {figures.plural(sum(found.blocks.values()), 'block')}"


def _sentences(found: Residency) -> list[str]:
    total = sum(found.macs.values())
    said = []
    if total:
        shares = [
            f"{_percent(found.macs.get(state, 0) / total)} {_WORDS[state][1]}"
            for state in STATES
            if state == "stays" or found.macs.get(state)
        ]
        said.append(f"of the MACs {', '.join(shares)}")
    counts = [
        f"{(number := found.blocks.get(state, 0)):,} {_WORDS[state][number != 1]}"
        for state in STATES
        if state == "stays" or found.blocks.get(state)
    ]
    said.append(f"of {figures.plural(sum(found.blocks.values()), 'block')} {', '.join(counts)}")
    if found.crossings:
        said.append(f"{figures.plural(found.crossings, 'value')} would cross to or from {found.otherwise}")
    if found.uncounted:
        said.append(f"the MACs of {figures.plural(found.uncounted, 'node')} are not known")
    return ["predicted by the profile's rules, not measured", *said]


def _row(block: BlockResidency, found: Residency) -> UnitBlock:
    slower = {rule.name for rule in found.rules if rule.effect == "slower"} & set(block.rules)
    why = ", ".join(block.rules)
    if block.unlisted:
        listed = ", ".join(block.unlisted)
        why = f"{why}; " * bool(why) + f"nothing is known of {listed}"
    state = f"{block.state}{', slower' if slower and block.state == 'stays' else ''}"
    return UnitBlock(
        id=block.id,
        kind=block.kind,
        state=state,
        macs=figures.count(block.macs) if block.macs else "",
        why=why,
        kept=block.state == "stays",
    )


def _fact(rule: RuleFound) -> UnitFact:
    remedies = f"; {' or '.join(rule.remedies)} helps" if rule.remedies else ""
    return UnitFact(
        rule.name, rule.effect, f"{rule.words}{remedies}", _SAID[rule.said], f"{rule.source}, {rule.date}"
    )


def _percent(share: float) -> str:
    """Never 100 % or 0 % where something is on the other side."""
    rounded = f"{100 * share:.1f}"
    if rounded == "100.0" and share < 1:
        return "over 99.9 %"
    return "under 0.1 %" if rounded == "0.0" and share > 0 else f"{rounded} %"

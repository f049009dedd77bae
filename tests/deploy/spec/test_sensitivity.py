"""The table of sensitivity: comes back from disk as it was, and orders what it holds."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from deploy.spec.document import digest, parse, render
from deploy.spec.sensitivity import BlockSensitivity, Effect, Sensitivity

CALM = Effect(score=1e-5, kl=2e-5, sqnr_db=40.0, measured=True)
LOUD = Effect(score=3e-2, kl=5e-2, sqnr_db=10.0, measured=True)
LOST = Effect(score=2e-3, ruined=True, measured=True)
TABLE = Sensitivity(
    graph_sha256="ab" * 32,
    data_sha256="cd" * 32,
    samples=64,
    seed=0,
    rules="plain",
    measure="classes",
    treatments=("int8", "2:4"),
    blocks=(
        BlockSensitivity(id="a", kind="Conv", effects={"int8": CALM, "2:4": LOUD}),
        BlockSensitivity(id="b", kind="Conv", effects={"int8": LOUD}),
        BlockSensitivity(id="c", kind="Gemm", effects={"int8": LOST}),
        BlockSensitivity(id="d", kind="Gemm", effects={"2:4": CALM}),
    ),
)


def test_round_trip_is_exact() -> None:
    text = render(TABLE)
    back = parse(Sensitivity, text, origin="test")
    assert back == TABLE and render(back) == text and digest(back) == digest(TABLE)


def test_unknown_keys_schemas_and_impossible_figures_are_refused() -> None:
    data = TABLE.model_dump(mode="json", by_alias=True)
    for change in ({"schema": 2}, {"colour": "red"}, {"samples": 0}, {"measure": "points"}):
        with pytest.raises(ValidationError):
            Sensitivity.model_validate(data | change)
    for effect in ({"kl": -1.0}, {"score": math.nan}, {"sqnr_db": math.inf}):
        with pytest.raises(ValidationError):
            Effect.model_validate(effect)
    with pytest.raises(ValidationError):
        BlockSensitivity.model_validate({"id": "a", "kind": "Conv", "effects": {"int3": {}}})


def test_the_worst_comes_first_and_ruin_is_the_worst() -> None:
    assert [block.id for block in TABLE.worst_first()] == ["c", "b", "a", "d"]


def test_ranks_are_by_score() -> None:
    assert TABLE.ranks("int8") == {"b": 1, "c": 2, "a": 3}
    assert TABLE.ranks("2:4") == {"a": 1, "d": 2}
    assert TABLE.ranks("prune") == {}


def test_harm_is_measured_where_it_can_be() -> None:
    assert CALM.harm == 2e-5
    assert LOST.harm == math.inf
    assert Effect(score=0.25).harm == 0.25
    assert Effect(score=1.0, sqnr_db=20.0, measured=True).harm == pytest.approx(0.01)
    assert Effect(score=1.0, measured=True).harm == 0, "nothing was lost"
    assert Effect().harm is None

"""Documents made in a program: what is wrong is told as of files, which name the line besides."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

import deploy
from deploy.errors import UsageError
from deploy.spec.document import parse, parse_toml, render
from deploy.spec.project import Budget, InputSection, IoSection, MetricSection, Project


@pytest.mark.parametrize(
    ("make", "given", "said", "hint"),
    [
        (deploy.Budget, {"max_latency_ms": 0}, r"Budget: 'max_latency_ms': .*greater than 0", "correct"),
        (deploy.Budget, {"max_drop": float("nan")}, "'max_drop': .*finite", "correct"),
        (deploy.Budget, {"max_drop": -1, "max_size_bytes": 0}, r"'max_drop'.*\(and 1 more\)", "correct"),
        (deploy.Budget, {"max_latency": 3.0}, "unknown key 'max_latency'", "max_latency_ms"),
        (InputSection, {"colours": "CMYK"}, "InputSection: 'colours'", "correct"),
        (IoSection, {"inputs": 3}, "IoSection: 'inputs'", "correct"),
        (MetricSection, {"ignore_label": "none"}, "MetricSection: 'ignore_label'", "correct"),
    ],
)
def test_what_a_program_made_wrongly_is_told_in_our_words(
    make: type[Budget], given: dict[str, Any], said: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make(**given)
    assert hint in caught.value.hint


def test_in_a_file_the_line_is_told_as_ever() -> None:
    text = 'schema = 1\n[model]\npath = "m.onnx"\n\n[budget]\nmax_latency_ms = 0\n'
    with pytest.raises(UsageError, match=r"deploy\.toml:6: 'budget\.max_latency_ms': .*greater than 0"):
        parse_toml(Project, text, origin="deploy.toml")
    with pytest.raises(ValidationError):
        Budget.model_validate({"max_drop": -1})


def test_what_is_right_is_as_it_was() -> None:
    budget = Budget(max_drop=0.02, max_latency_ms=3)
    assert parse(Budget, render(budget), origin="here") == budget
    assert budget.model_copy(update={"max_drop": 0.5}).max_drop == 0.5

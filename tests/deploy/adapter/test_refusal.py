"""Every refused node is told in one error, each on a line."""

from __future__ import annotations

from deploy.adapter.refusal import refusal, refused
from deploy.spec.artifact import Verdict

VERDICTS = [
    Verdict(node="a", op="Conv", support="supported"),
    Verdict(node="b", op="Einsum", support="unsupported", reason="no kernel"),
    Verdict(node="c", op="Twist", support="unknown", reason="the type of its input is unknown"),
    Verdict(node="d\n", op="Unique", support="unsupported", reason="sizes depend on data"),
]


def test_all_that_is_refused_is_listed_and_nothing_else() -> None:
    assert [v.node for v in refused(VERDICTS)] == ["b", "d\n"]
    error = refusal("the runtime", VERDICTS, hint="do without")
    assert error is not None
    assert error.message.splitlines() == [
        "the runtime cannot run 2 of 4 nodes:",
        "  Einsum 'b': no kernel",
        r"  Unique 'd\n': sizes depend on data",
    ]
    assert error.hint == "do without"


def test_nothing_refused_is_no_error() -> None:
    assert refusal("the runtime", [VERDICTS[0], VERDICTS[2]]) is None

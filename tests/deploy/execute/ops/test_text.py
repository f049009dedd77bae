from __future__ import annotations

import numpy as np
import pytest

from deploy.errors import UnsupportedError

WORDS = np.array([["Monday", "a  b"], ["", "monday"]], object)


def kernel(one_node, op, inputs=1, **attributes):
    """Text is no tensor: fed to the kernel itself."""
    dummy = [np.zeros(1, np.float32)] * inputs
    return one_node(op, *dummy, **attributes).program.steps[0].kernel


def test_concat(one_node):
    found = kernel(one_node, "StringConcat", 2)(WORDS, np.array(["x"], object))
    assert found.tolist() == [["Mondayx", "a  bx"], ["x", "mondayx"]]


@pytest.mark.parametrize(
    ("attributes", "parts", "counts"),
    [
        ({}, [[["Monday", ""], ["a", "b"]], [["", ""], ["monday", ""]]], [[1, 2], [0, 1]]),
        ({"delimiter": "o"}, [[["M", "nday"], ["a  b", ""]], [["", ""], ["m", "nday"]]], [[2, 1], [1, 2]]),
        ({"maxsplit": 1}, [[["Monday", ""], ["a", "b"]], [["", ""], ["monday", ""]]], [[1, 2], [0, 1]]),
    ],
)
def test_split(one_node, attributes, parts, counts):
    found, number = kernel(one_node, "StringSplit", **attributes)(WORDS)
    assert found.tolist() == parts
    assert number.tolist() == counts


@pytest.mark.parametrize(
    ("attributes", "want"),
    [
        ({"stopwords": ["monday"], "case_change_action": "UPPER"}, ["A  B", ""]),
        ({"stopwords": ["monday"], "is_case_sensitive": 1}, ["Monday", "a  b", ""]),
        ({"stopwords": ["monday", "a  b", ""]}, [""]),
    ],
)
def test_normalise(one_node, attributes, want):
    assert kernel(one_node, "StringNormalizer", **attributes)(WORDS.ravel()).tolist() == want


def test_match(one_node):
    assert kernel(one_node, "RegexFullMatch", pattern="[a-z ]*")(WORDS).tolist() == [
        [False, True],
        [True, True],
    ]
    with pytest.raises(UnsupportedError, match="pattern"):
        kernel(one_node, "RegexFullMatch", pattern="(")

"""What is asked of a model's ends, held against them."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.spec.ends import Sizes
from deploy.spec.project import IoSection
from deploy.spec.tensors import TensorSpec
from deploy.stages.ends import check_classes, check_sizes, check_states, usual_feeds
from deploy.stages.target import able_to, find_target


def spec(name: str, *shape: int | str, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


INPUTS = (spec("x", "n", 3, "h", "w"), spec("mask", "n", "w"), spec("hidden", 1, 8))
OUTPUTS = (spec("scores", "n", 4), spec("hidden_next", 1, 8), spec("count", 1, dtype="int64"))


@pytest.mark.parametrize(
    ("states", "told", "hint"),
    [
        ({"hiden": "hidden_next"}, "no input 'hiden'", "did you mean 'hidden'?"),
        ({"hidden": "hidden_nxt"}, "no output 'hidden_nxt'", "did you mean 'hidden_next'?"),
        ({"hidden": "scores"}, r"hidden: float32\[1, 8\] becomes scores: float32\[n, 4\]", ""),
        ({"hidden": "count"}, r"hidden: float32\[1, 8\] becomes count: int64\[1\]", ""),
        ({"hidden": "hidden_next", "other": "hidden_next"}, "given to two inputs", ""),
    ],
)
def test_states_that_are_none(states: dict[str, str], told: str, hint: str) -> None:
    inputs = (*INPUTS, spec("other", 1, 8))
    check_states({"hidden": "hidden_next"}, inputs, OUTPUTS)
    check_states({"hidden": "free"}, inputs, (spec("free", "batch", 8),))
    with pytest.raises(UsageError, match=told) as caught:
        check_states(states, inputs, OUTPUTS)
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"y": (1,)}, "no input 'y'"),
        ({"x": (1, 3, 8)}, "3 sizes, and the model takes x: float32"),
        ({"x": (1, "3..4", 8, 8)}, "axis 1 is 3 in the model, not 3 or 4"),
        ({"x": (1, 3, 8, "4..8"), "mask": (1, "4..9")}, "are one size of the model, 'w'"),
    ],
)
def test_sizes_that_the_model_cannot_have(sizes: dict[str, Sizes], told: str) -> None:
    check_sizes({"x": (1, 3, 8, "4..8"), "mask": (1, "4..8")}, INPUTS)
    with pytest.raises(UsageError, match=told):
        check_sizes(sizes, INPUTS)


def test_a_size_of_two_inputs_with_others_beside_it() -> None:
    inputs = (spec("x", 1, "w"), spec("y", 1, "w", "d"))
    check_sizes({"x": (1, "8..32"), "y": (1, "8..32", "4..5..6")}, inputs)
    with pytest.raises(UsageError, match="are one size of the model, 'w'"):
        check_sizes({"x": (1, "8..32"), "y": (1, "8..16..32", "4..5..6")}, inputs)


def test_the_usual_sizes_are_tried() -> None:
    feeds = {"x": np.zeros((2, 3, 32, 32), np.float32), "mask": np.zeros((2, 32), np.float32)}
    feeds["hidden"] = np.ones((1, 8), np.float32)
    found = usual_feeds({"x": (1, 3, "4..9", "5..6..8")}, INPUTS, feeds, 0)
    assert {name: array.shape for name, array in found.items()} == {
        "x": (1, 3, 4, 6), "mask": (1, 6), "hidden": (1, 8)
    }  # fmt: skip
    assert found["hidden"] is feeds["hidden"]


@pytest.mark.parametrize(
    ("classes", "told"),
    [((), "nobody gave"), (("a", "b", "a", "c"), "two classes are called 'a'"), (("a",), "1 class names")],
)
def test_classes_that_cannot_be_named(classes: tuple[str, ...], told: str) -> None:
    check_classes(("a", "b", "c", "d"), OUTPUTS)
    with pytest.raises(UsageError, match=told):
        check_classes(classes, OUTPUTS)


@pytest.mark.parametrize(
    "io", [IoSection(states={"a": "b"}), IoSection(classifier=True)], ids=["states", "classifier"]
)
def test_a_target_without_words_for_it(io: IoSection) -> None:
    with pytest.raises(UsageError, match=r"rpi5 \(.*\) has no words for \[io\]"):
        able_to(find_target("rpi5"), "auto", io)


def test_a_runtime_too_old_for_states_is_left_out_with_its_reason() -> None:
    pytest.importorskip("coremltools")
    with pytest.raises(UsageError, match="has no words for") as caught:
        able_to(find_target("iphone15"), "auto", IoSection(states={"a": "b"}))
    assert "from iOS 18" in caught.value.hint and "minimum_deployment_target" in caught.value.hint
    able = able_to(find_target("iphone15"), "auto", IoSection(classifier=True, sizes={"x": (1, "2..3")}))
    assert [route.runtime.name for route in able.routes] == ["coreml"]
    assert able.routes[0].runtime.asked.sizes == {"x": (1, "2..3")}

"""Which inputs change, and how, by what deploy.toml says."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.errors import UsageError
from deploy.graph.interface import Form
from deploy.spec.project import InputSection, IoSection
from deploy.spec.tensors import Layout, Normalisation, TensorSpec
from deploy.stages.interface import adapted_specs, fed_specs, input_forms, trial_of

SCALED = Normalisation(scale=1 / 255)
PIXELS = IoSection(dtype="uint8", layout="NHWC")


def spec(name: str, *shape: int | str, dtype: str = "float32", layout: Layout = "any") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, layout=layout)


IMAGE = spec("image", "n", 3, 8, 8)
LAST = spec("last", "n", 8, 8, 1)
VECTOR = spec("vector", "n", 5)
IDS = spec("ids", "n", 3, 8, 8, dtype="int64")
FEATURES = spec("features", "n", 64, 8, 8, layout="NCHW")


def test_float_inputs_that_look_like_images_change_and_no_others() -> None:
    forms = input_forms(
        [IMAGE, LAST, VECTOR, IDS, FEATURES], {"image": InputSection(normalisation=SCALED)}, PIXELS
    )
    assert forms == {
        "image": Form(SCALED, "uint8", "NHWC", "NCHW"),
        "last": Form(Normalisation(), "uint8", "NHWC", "NHWC"),
    }


def test_named_inputs_change_whatever_they_look_like() -> None:
    io = IoSection(dtype="int8", inputs=("vector",))
    assert input_forms([IMAGE, VECTOR], {}, io) == {"vector": Form(Normalisation(), "int8")}


def test_without_a_wish_only_what_is_marked_as_folded_changes() -> None:
    folded = SCALED.model_copy(update={"folded": True})
    assert input_forms([IMAGE, VECTOR], {"image": InputSection(normalisation=SCALED)}, IoSection()) == {}
    assert input_forms([IMAGE], {"image": InputSection(normalisation=folded)}, IoSection()) == {
        "image": Form(folded, None, None, "NCHW")
    }


def test_the_order_of_colours_is_told_whoever_normalises() -> None:
    sections = {"image": InputSection(normalisation=SCALED, colours="BGR")}
    (outside,) = fed_specs([IMAGE], sections)
    (inside,) = fed_specs(adapted_specs([IMAGE], input_forms([IMAGE], sections, PIXELS)), sections)
    assert (outside.colours, outside.folded, inside.colours, inside.folded) == ("BGR", False, "BGR", True)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_layout_that_is_said_counts_more_than_sizes(layout: Layout) -> None:
    cube = spec("cube", "n", 3, 3, 3)
    with pytest.raises(UsageError, match="looks like an image"):
        input_forms([cube], {}, PIXELS)
    assert input_forms([cube], {"cube": InputSection(layout=layout)}, PIXELS)["cube"].model_layout == layout


@pytest.mark.parametrize(
    ("io", "said"),
    [
        (IoSection(dtype="uint8", inputs=("photo",)), "no input 'photo'"),
        (IoSection(dtype="uint8", inputs=("ids",)), "takes int64 already"),
        (IoSection(inputs=("image",)), "neither dtype nor layout"),
    ],
)
def test_a_wish_that_cannot_be_is_said(io: IoSection, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        input_forms([IMAGE, IDS], {}, io)
    assert caught.value.hint


def test_the_manifest_says_that_raw_pixels_are_fed() -> None:
    forms = input_forms([IMAGE, VECTOR], {"image": InputSection(normalisation=SCALED)}, PIXELS)
    now = [spec("image", "n", 8, 8, 3, dtype="uint8"), VECTOR]
    image, vector = adapted_specs(now, forms)
    assert (image.layout, image.raw) == ("NHWC", True)
    assert image.normalisation == SCALED.model_copy(update={"folded": True})
    assert vector == VECTOR
    halved = InputSection(normalisation=Normalisation(scale=0.5))
    again = fed_specs([image, vector], {"image": halved, "vector": halved})
    assert again[0] == image, "what the graph does is not done again"
    assert again[1].normalisation == Normalisation(scale=0.5)


def test_random_pixels_cover_their_range_and_floats_are_only_moved() -> None:
    feeds = {"image": np.random.default_rng(0).standard_normal((64, 3, 4, 5)).astype(np.float32)}
    for dtype, low in (("uint8", 0), ("int8", -128)):
        raw = spec("image", "n", 4, 5, 3, dtype=dtype, layout="NHWC").model_copy(
            update={"normalisation": Normalisation(folded=True)}
        )
        got = trial_of([raw], feeds, 0)["image"]
        assert (got.shape, got.dtype) == ((64, 4, 5, 3), np.dtype(dtype))
        assert (got.min(), got.max()) == (low, low + 255)
    (moved,) = trial_of([spec("image", "n", 4, 5, 3, layout="NHWC")], feeds, 0).values()
    np.testing.assert_array_equal(moved, feeds["image"].transpose(0, 2, 3, 1))

"""Augmentation by its properties: what it keeps, what it undoes, what it draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deploy.errors import UsageError
from deploy.spec.finetune import Augment
from deploy.spec.tensors import TensorSpec
from deploy.train.augment import _beta, augment, colour, image_inputs, pick

IMAGE = TensorSpec(name="x", dtype="float32", shape=("n", 3, 9, 8), layout="NCHW")


def images(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 9, 8, generator=torch.Generator().manual_seed(seed))


def changed(x: Tensor, what: Augment, seed: int = 1, layout: str = "NCHW") -> Tensor:
    done = augment({"x": x}, {}, what, {"x": layout}, torch.Generator().manual_seed(seed))  # type: ignore[dict-item]
    return done.feeds["x"]


def test_nothing_said_nothing_done() -> None:
    x = images()
    assert changed(x, Augment()) is x


def test_flipped_twice_is_as_before_and_about_half_are() -> None:
    x = images(400)
    once = changed(x, Augment(flip=True))
    assert torch.equal(changed(once, Augment(flip=True)), x)  # the same seed flips the same ones
    mirrored = (once == x.flip(3)).flatten(1).all(1)
    kept = (once == x).flatten(1).all(1)
    assert torch.all(mirrored ^ kept)
    assert 150 < int(mirrored.sum()) < 250


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_crop_moves_whole_images_and_repeats_their_border(seed: int, reach: int) -> None:
    x = images(3)
    moved = changed(x, Augment(crop=reach), seed)
    assert moved.shape == x.shape
    padded = torch.nn.functional.pad(x, (reach,) * 4, mode="replicate")
    for before, after in zip(padded, moved, strict=True):
        windows = before.unfold(1, 9, 1).unfold(2, 8, 1)  # (3, 2r+1, 2r+1, 9, 8)
        assert any(
            torch.equal(windows[:, i, j], after) for i in range(2 * reach + 1) for j in range(2 * reach + 1)
        )


@pytest.mark.parametrize(
    "what",
    [Augment(crop=2, flip=True), Augment(brightness=0.4, contrast=0.4, saturation=0.5), Augment(cutmix=1)],
)
def test_channels_last_is_the_same_picture(what: Augment) -> None:
    x = images()
    last = changed(x.permute(0, 2, 3, 1).contiguous(), what, layout="NHWC")
    assert torch.allclose(last.permute(0, 3, 1, 2), changed(x, what), atol=1e-6)


def test_equal_seeds_equal_images() -> None:
    what = Augment(crop=2, flip=True, brightness=0.3, contrast=0.3, saturation=0.3, mixup=0.4, cutmix=0.4)
    assert torch.equal(changed(images(), what, 5), changed(images(), what, 5))
    assert not torch.equal(changed(images(), what, 5), changed(images(), what, 6))


def test_brightness_shifts_contrast_stretches_saturation_keeps_grey() -> None:
    x, generator = images(), torch.Generator().manual_seed(0)
    brighter = colour(x, Augment(brightness=0.5), generator) - x
    assert torch.allclose(brighter, brighter[:, :1, :1, :1].expand_as(x), atol=1e-6)
    assert torch.all(brighter[:, 0, 0, 0].abs() <= 0.5 * x.std((1, 2, 3), correction=0) + 1e-6)
    stretched = colour(x, Augment(contrast=0.5), generator)
    assert torch.allclose(stretched.mean((1, 2, 3)), x.mean((1, 2, 3)), atol=1e-6)
    ratio = stretched.std((1, 2, 3)) / x.std((1, 2, 3))
    assert torch.all((ratio > 0.5 - 1e-6) & (ratio < 1.5 + 1e-6))
    assert ratio.std() > 0.01
    paler = colour(x, Augment(saturation=0.9), generator)
    assert torch.allclose(paler.mean(1), x.mean(1), atol=1e-6)


def test_brightness_does_not_depend_on_the_normalisation() -> None:
    x, what = images(), Augment(brightness=0.4, contrast=0.4)
    assert torch.allclose(changed(x * 50 + 120, what), changed(x, what) * 50 + 120, atol=1e-3)


def test_mixup_blends_samples_by_shares_that_add_up_to_one() -> None:
    x = torch.eye(16).reshape(16, 1, 4, 4)  # every sample is a place of its own
    done = augment(
        {"x": x}, {"": torch.arange(16)}, Augment(mixup=1), {"x": "NCHW"}, torch.Generator().manual_seed(3)
    )
    assert done.blend is not None
    mixed = done.feeds["x"].reshape(16, 16)
    assert torch.allclose(mixed.sum(1), torch.ones(16))
    own, other = mixed.diagonal(), mixed.gather(1, done.blend.partner[:, None])[:, 0]
    apart = done.blend.partner != torch.arange(16)
    assert torch.allclose(own[apart], torch.full_like(own, 1 - done.blend.share)[apart])
    assert torch.allclose(other[apart], torch.full_like(own, done.blend.share)[apart])


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_puts_in_a_rectangle_of_the_share_that_it_says(seed: int) -> None:
    x = torch.arange(5.0)[:, None, None, None].expand(5, 3, 9, 8).contiguous()
    before = x.clone()
    done = augment({"x": x}, {}, Augment(cutmix=1), {"x": "NCHW"}, torch.Generator().manual_seed(seed))
    assert torch.equal(x, before), "what was given stays"
    assert done.blend is not None
    for index, image in enumerate(done.feeds["x"]):
        partner = float(done.blend.partner[index])
        inside = image != index
        assert torch.all(image[inside] == partner)
        if partner != index:
            assert inside.float().mean().item() == pytest.approx(done.blend.share)


def test_cutmix_of_masks_pastes_them_too() -> None:
    x = torch.randn(5, 1, 9, 8)
    mask, label = (x[:, 0] > 0).long(), torch.arange(5)
    given = {"mask": mask, "label": label}
    done = augment({"x": x}, given, Augment(cutmix=1), {"x": "NCHW"}, torch.Generator().manual_seed(1))
    assert done.blend is not None
    assert torch.equal(done.targets["mask"], (done.feeds["x"][:, 0] > 0).long())
    partners = done.blend.partners(done.targets)
    assert torch.equal(partners["mask"], done.targets["mask"])
    assert torch.equal(partners["label"], done.blend.partner)


def test_beta_draws_have_its_mean_and_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([_beta(0.5, generator) for _ in range(3000)])
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn.var().item() == pytest.approx(1 / (4 * (2 * 0.5 + 1)), abs=0.01)


def test_a_mask_moves_with_its_image() -> None:
    x = images()
    mask = (x[:, 0] > 0).long()
    done = augment(
        {"x": x}, {"": mask}, Augment(crop=2, flip=True), {"x": "NCHW"}, torch.Generator().manual_seed(2)
    )
    assert torch.equal(done.targets[""], (done.feeds["x"][:, 0] > 0).long())
    assert not torch.equal(done.targets[""], mask)


def test_pick_takes_rows_and_columns() -> None:
    x = images(2)
    upside_down, columns = torch.arange(9).flip(0).repeat(2, 1), torch.arange(8).repeat(2, 1)
    assert torch.equal(pick(x, upside_down, columns), x.flip(2))


def test_images_are_found_by_layout_or_channels() -> None:
    last = TensorSpec(name="z", dtype="float32", shape=("n", 8, 8, 3))
    flat = TensorSpec(name="v", dtype="float32", shape=("n", 12))
    assert image_inputs((IMAGE, last, flat), Augment(flip=True)) == {"x": "NCHW", "z": "NHWC"}


@pytest.mark.parametrize(
    ("spec", "what", "said"),
    [
        (
            TensorSpec(name="v", dtype="float32", shape=("n", 12)),
            Augment(flip=True),
            "no input of the model is one",
        ),
        (TensorSpec(name="t", dtype="int64", shape=("n", 12)), Augment(mixup=1), "need float inputs"),
        (IMAGE.model_copy(update={"dtype": "uint8"}), Augment(contrast=0.2), "need float inputs"),
    ],
)
def test_what_cannot_be_augmented_is_refused(spec: TensorSpec, what: Augment, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        image_inputs((spec,), what)

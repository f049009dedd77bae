"""Random changes of training images, computed for a whole batch at once.

Everything random is drawn from a generator that the caller seeds by (seed, epoch, batch), so that a run that
was stopped goes on with the images that it would have seen. Images come normalised: brightness, contrast and
saturation are therefore measured in the image's own mean and deviation, and moved images repeat their border
instead of showing a colour that only unnormalised images know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deploy.errors import UsageError
from deploy.spec.finetune import Augment
from deploy.spec.tensors import Layout, TensorSpec

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Blend:
    """The same batch in another order whose labels count too: loss = (1 - share) * own + share * partner.

    ``pasted`` are targets that hold both samples' labels already, each in its place."""

    partner: Tensor
    share: float
    pasted: frozenset[str] = frozenset()

    def partners(self, targets: Mapping[str, Tensor]) -> Tensors:
        """The partners' targets."""
        return {
            name: value if name in self.pasted else value[self.partner.to(value.device)]
            for name, value in targets.items()
        }


@dataclass(frozen=True)
class Augmented:
    """A batch after augmentation; ``blend`` where samples were mixed."""

    feeds: Tensors
    targets: Tensors
    blend: Blend | None = None


def image_inputs(inputs: tuple[TensorSpec, ...], settings: Augment) -> dict[str, Layout]:
    """The inputs that are images, with their layouts.

    Where the graph does not tell a layout the axis with 1, 3 or 4 channels does. Raises UsageError where
    the settings need an image, or floats, and there are none.
    """
    found: dict[str, Layout] = {}
    for spec in inputs:
        if len(spec.shape) != 4:
            continue
        layout = spec.layout
        if layout == "any" and spec.shape[1] in (1, 3, 4):
            layout = "NCHW"
        elif layout == "any" and spec.shape[3] in (1, 3, 4):
            layout = "NHWC"
        if layout != "any":
            found[spec.name] = layout
    if settings.identity:
        return found
    listed = ", ".join(map(str, inputs))
    if not found and settings != Augment(mixup=settings.mixup):
        raise UsageError(
            f"[recipe] augment changes images, and no input of the model is one: {listed}",
            hint="remove augment; mixup alone works with any float input",
        )
    floats = settings.mixup or settings.brightness or settings.contrast or settings.saturation
    if floats and any(not spec.dtype.startswith("float") for spec in inputs):
        raise UsageError(
            f"[recipe] augment: brightness, contrast, saturation and mixup need float inputs, found {listed}",
            hint="keep crop, flip and cutmix; or train before the graph is made to take raw pixels",
        )
    return found


@dataclass(frozen=True)
class View:
    """Where each image is looked at: ``move`` (2, n, 1) are the pixels by which it is moved down and to the
    right, ``mirrored`` (n, 1) says which are turned left to right. None: no image is."""

    move: Tensor | None
    mirrored: Tensor | None

    def of(self, rows: np.ndarray) -> View:
        """Those of some images."""
        return View(
            None if self.move is None else self.move[:, rows],
            None if self.mirrored is None else self.mirrored[rows],
        )


def draw_view(count: int, settings: Augment, generator: torch.Generator) -> View:
    """Of so many images, as ``settings`` say."""
    reach = settings.crop
    move = torch.randint(-reach, reach + 1, (2, count, 1), generator=generator) if reach else None
    return View(move, torch.rand(count, 1, generator=generator) < 0.5 if settings.flip else None)


def augment(
    feeds: Tensors,
    targets: Tensors,
    settings: Augment,
    images: Mapping[str, Layout],
    generator: torch.Generator,
    view: View | None = None,
) -> Augmented:
    """``feeds`` and ``targets`` of one batch, changed as ``settings`` say; what was given stays as it is.

    Targets that are pictures of an image's size (n, H, W) or (n, C, H, W) move with it. A ``view`` that is
    given is not drawn.
    """
    if settings.identity:
        return Augmented(feeds, targets)
    if images and (settings.crop or settings.flip):
        count = len(next(iter(feeds.values())))
        view = view or draw_view(count, settings, generator)
        feeds, targets = looked_at(feeds, targets, view, images)
    feeds, targets = dict(feeds), dict(targets)
    for name, layout in images.items():
        feeds[name] = _back(colour(_planes(feeds[name], layout), settings, generator), layout)
    return _mixed(feeds, targets, settings, images, generator)


def looked_at(
    feeds: Tensors, targets: Tensors, view: View, images: Mapping[str, Layout]
) -> tuple[Tensors, Tensors]:
    """Images, and targets of their size, moved and mirrored."""
    feeds, targets = dict(feeds), dict(targets)
    first = next(iter(images))
    count, _, height, width = _planes(feeds[first], images[first]).shape
    rows, columns = _places(count, height, width, view)
    for name, layout in images.items():
        if _planes(feeds[name], layout).shape[2:] == (height, width):
            feeds[name] = _back(pick(_planes(feeds[name], layout), rows, columns), layout)
    for name, target in targets.items():
        if target.ndim in (3, 4) and target.shape[-2:] == (height, width):
            plane = target if target.ndim == 4 else target.unsqueeze(1)
            targets[name] = pick(plane, rows, columns).reshape(target.shape)
    return feeds, targets


def channels_last(feeds: Mapping[str, Tensor], images: Mapping[str, Layout]) -> Tensors:
    """The same numbers in the order in memory in which convolutions are quickest; a sum over them may round
    otherwise."""
    return {
        name: value.contiguous(memory_format=torch.channels_last) if images.get(name) == "NCHW" else value
        for name, value in feeds.items()
    }


def _planes(image: Tensor, layout: Layout) -> Tensor:
    return image if layout == "NCHW" else image.permute(0, 3, 1, 2)


def _back(image: Tensor, layout: Layout) -> Tensor:
    return image if layout == "NCHW" else image.permute(0, 2, 3, 1).contiguous()


def _places(count: int, height: int, width: int, view: View) -> tuple[Tensor, Tensor]:
    """For each image the rows (n, H) and columns (n, W) that it is made of."""
    rows, columns = torch.arange(height).repeat(count, 1), torch.arange(width).repeat(count, 1)
    if view.move is not None:
        move = view.move
        rows, columns = (rows + move[0]).clamp(0, height - 1), (columns + move[1]).clamp(0, width - 1)
    if view.mirrored is not None:
        columns = torch.where(view.mirrored, columns.flip(1), columns)
    return rows, columns


def pick(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images (n, C, H, W) made of these ``rows`` (n, H) and ``columns`` (n, W) of their own."""
    count, channels, height, width = planes.shape
    rows, columns = rows.to(planes.device), columns.to(planes.device)
    planes = planes.gather(2, rows[:, None, :, None].expand(count, channels, height, width))
    return planes.gather(3, columns[:, None, None, :].expand(count, channels, height, width))


def colour(planes: Tensor, settings: Augment, generator: torch.Generator) -> Tensor:
    """Images (n, C, H, W) brighter or darker, with more or less contrast and saturation."""

    def factor(reach: float) -> Tensor:
        drawn = torch.rand(len(planes), 1, 1, 1, generator=generator) * 2 - 1
        return (drawn * reach).to(planes.device, planes.dtype)

    if settings.brightness:
        deviation = planes.std(dim=(1, 2, 3), keepdim=True, correction=0)
        planes = planes + factor(settings.brightness) * deviation
    if settings.contrast:
        mean = planes.mean(dim=(1, 2, 3), keepdim=True)
        planes = mean + (planes - mean) * (1 + factor(settings.contrast))
    if settings.saturation and planes.shape[1] > 1:
        grey = planes.mean(dim=1, keepdim=True)
        planes = grey + (planes - grey) * (1 + factor(settings.saturation))
    return planes


def _mixed(
    feeds: Tensors,
    targets: Tensors,
    settings: Augment,
    images: Mapping[str, Layout],
    generator: torch.Generator,
) -> Augmented:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), one share for the whole batch."""
    if not settings.mixup and not settings.cutmix:
        return Augmented(feeds, targets)
    count = len(next(iter(feeds.values())))
    cut = bool(settings.cutmix) and not (settings.mixup and torch.rand((), generator=generator).item() < 0.5)
    partner = torch.randperm(count, generator=generator)
    share = _beta(settings.cutmix if cut else settings.mixup, generator)
    if not cut:
        mixed = {name: torch.lerp(value, value[partner], share) for name, value in feeds.items()}
        return Augmented(mixed, targets, Blend(partner, share))
    first = next(iter(images))
    height, width = _planes(feeds[first], images[first]).shape[2:]
    top, bottom, left, right = _rectangle(height, width, share, generator)
    for name, layout in images.items():
        planes = _planes(feeds[name], layout).clone()
        if planes.shape[2:] == (height, width):
            planes[:, :, top:bottom, left:right] = planes[partner, :, top:bottom, left:right]
            feeds[name] = _back(planes, layout)
    pictures = {n for n, t in targets.items() if t.ndim in (3, 4) and t.shape[-2:] == (height, width)}
    for name in pictures:
        targets[name] = targets[name].clone()
        targets[name][..., top:bottom, left:right] = targets[name][partner][..., top:bottom, left:right]
    area = (bottom - top) * (right - left) / (height * width)
    return Augmented(feeds, targets, Blend(partner, area, frozenset(pictures)))


def _beta(alpha: float, generator: torch.Generator) -> float:
    """A draw from Beta(alpha, alpha); numpy's, since torch's takes no generator."""
    seed = int(torch.randint(2**62, (), generator=generator).item())
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _rectangle(
    height: int, width: int, share: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of about ``share`` of the area, cut off at the image's border."""
    side = share**0.5
    centre = torch.rand(2, generator=generator).tolist()
    half_height, half_width = side * height / 2, side * width / 2
    y, x = centre[0] * height, centre[1] * width
    top, bottom = max(0, round(y - half_height)), min(height, round(y + half_height))
    left, right = max(0, round(x - half_width)), min(width, round(x + half_width))
    return top, bottom, left, right

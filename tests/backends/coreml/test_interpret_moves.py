"""Operations that move, pick, resize and store numbers, on programs that coremltools wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as nn

pytest.importorskip("coremltools")
from coreml_packages import evaluated, results, saved

from deploy.errors import BackendError

RNG = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(0, 1, shape).astype(np.float32)


def require(got: list[np.ndarray], wanted: list, atol: float = 2e-6) -> None:
    assert len(got) == len(wanted)
    for index, (have, want) in enumerate(zip(got, wanted, strict=True)):
        want = np.asarray(want)
        assert have.shape == want.shape, index
        np.testing.assert_allclose(have, want, atol=atol, err_msg=str(index))


def test_shapes(tmp_path: Path) -> None:
    x, y = normal(2, 4, 6), normal(1, 8, 4, 6)

    def build(mb, x, y):
        masked = {"begin_mask": [True, False, False], "end_mask": [False, True, False]}
        return (
            mb.reshape(x=x, shape=[4, -1]), mb.reshape(x=x, shape=[1, 0, -1, 0]),
            mb.transpose(x=x, perm=[2, 0, -2]),
            mb.expand_dims(x=x, axes=[0, -1]), mb.squeeze(x=y, axes=[0, 1]), mb.flatten2d(x=y, axis=2),
            mb.shape(x=y), mb.concat(values=(x, x), axis=1),
            mb.concat(values=(x, x), axis=2, interleave=True),
            mb.stack(values=(x, x), axis=-1), *mb.split(x=x, split_sizes=[1, 3], axis=1),
            *mb.split(x=x, num_splits=3, axis=-1), mb.pad(x=x, pad=[1, 2], constant_val=0.5),
            mb.pad(x=x, pad=[1, 1, 2, 0], mode="reflect"), mb.pad(x=x, pad=[1, 2], mode="replicate"),
            mb.tile(x=x, reps=[1, 2, 1]), mb.fill(shape=[2, 3], value=7.0), mb.reverse(x=x, axes=[0, 2]),
            mb.reverse_sequence(x=x, lengths=[2, 6], seq_axis=2, batch_axis=0),
            mb.slice_by_index(x=x, begin=[0, -3, 5], end=[1, 0, -7], stride=[1, 1, -2], **masked),
            mb.slice_by_index(x=x, begin=[1, 0, 2], end=[0, 4, 3], squeeze_mask=[True, False, True]),
            mb.slice_by_size(x=x, begin=[0, 1, 2], size=[-1, 2, 3]), mb.depth_to_space(x=y, block_size=2),
            mb.space_to_depth(x=y, block_size=2), mb.pixel_shuffle(x=y, upscale_factor=2),
            mb.pixel_unshuffle(x=y, downscale_factor=np.uint32(2)),
            mb.sliding_windows(x=x, axis=2, size=3, stride=2),
            mb.band_part(x=x, lower=1, upper=0), mb.crop(x=y, crop_height=[1, 0], crop_width=[2, 1]),
            mb.batch_to_space(
                x=mb.space_to_batch(x=y, block_shape=[2, 3], paddings=[[0, 2], [1, 2]]),
                block_shape=[2, 3], crops=[[0, 2], [1, 2]],
            ),
        )  # fmt: skip

    t, u = torch.from_numpy(x), torch.from_numpy(y)
    parts = u.reshape(1, 2, 2, 2, 4, 6).permute(0, 3, 4, 1, 5, 2).reshape(1, 2, 8, 12)
    back = u.reshape(1, 8, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 32, 2, 3)
    turned = np.concatenate([x[:1, :, [1, 0, 2, 3, 4, 5]], x[1:, :, ::-1]])
    wanted = [
        x.reshape(4, 12), x.reshape(1, 2, 4, 6), x.transpose(2, 0, 1), x[None, ..., None], y[0],
        y.reshape(8, 24), [1, 8, 4, 6], np.concatenate([x, x], 1), x.repeat(2, 2), np.stack([x, x], -1),
        x[:, :1], x[:, 1:], *np.split(x, 3, -1), np.pad(x, [(0, 0), (0, 0), (1, 2)], constant_values=0.5),
        np.pad(x, [(0, 0), (1, 1), (2, 0)], "reflect"), np.pad(x, [(0, 0), (0, 0), (1, 2)], "edge"),
        np.tile(x, (1, 2, 1)), np.full((2, 3), 7.0), x[::-1, :, ::-1], turned, x[:1, -3:, 5:-7:-2],
        x[1, :, 2], x[:, 1:3, 2:5], parts, back, nn.pixel_shuffle(u, 2), nn.pixel_unshuffle(u, 2),
        t.unfold(2, 3, 2), np.where(np.tril(np.triu(np.ones((4, 6)), -1)), x, 0), y[:, :, 1:, 2:-1], y,
    ]  # fmt: skip
    require(results(build, {"x": x, "y": y}, tmp_path / "p.mlpackage"), wanted, 0)


def test_places(tmp_path: Path) -> None:
    x, u = normal(3, 4, 5), normal(2, 4, 5)
    i, j = np.array([[2, 0], [1, 1]], np.int32), np.array([[0, 3], [2, 1], [0, 3]], np.int32)
    along = RNG.integers(0, 4, (3, 4, 5)).astype(np.int32)

    def build(mb, x, u, i, j, along):
        two = mb.slice_by_size(x=x, begin=[0, 0, 0], size=[2, 4, 5])
        rows = mb.slice_by_index(x=i, begin=[0, 0], end=[1, 2], squeeze_mask=[True, False])
        return (
            mb.gather(x=x, indices=i, axis=0), mb.gather(x=x, indices=i, axis=-1, batch_dims=0),
            mb.gather(x=two, indices=i, axis=2, batch_dims=1),
            mb.gather_along_axis(x=x, indices=along, axis=1), mb.gather_nd(x=x, indices=j),
            mb.scatter(data=x, indices=rows, updates=u, axis=0, mode="update"),
            mb.scatter(data=x, indices=rows, updates=u, axis=0, mode="add"),
            mb.scatter_along_axis(data=x, indices=along, updates=x, axis=1, mode="max"),
            mb.scatter_nd(data=x, indices=j, updates=normal_j, mode="add"),
            mb.scatter_nd(data=x, indices=j, updates=normal_j, mode="mul"), mb.non_zero(x=x),
            mb.one_hot(indices=i, one_hot_vector_size=3, axis=1, on_value=2.0, off_value=-1.0),
        )  # fmt: skip

    normal_j = normal(3, 5)
    added, multiplied, put = x.copy(), x.copy(), x.copy()
    for row, (a, b) in enumerate(j):
        added[a, b] += normal_j[row]
        multiplied[a, b] *= normal_j[row]
    put[[2, 0]] = u
    summed = x.copy()
    summed[[2, 0]] += u
    hot = np.where(np.arange(3)[None, :, None] == i[:, None, :], 2.0, -1.0)
    t = torch.from_numpy(x)
    index = torch.from_numpy(along.astype(np.int64))
    wanted = [
        x[i], x[..., i], np.stack([x[b][:, i[b]] for b in range(2)]), t.gather(1, index), x[j[:, 0], j[:, 1]],
        put, summed, t.scatter_reduce(1, index, t, "amax"), added, multiplied, np.argwhere(x), hot,
    ]  # fmt: skip
    feeds = {"x": x, "u": u, "i": i, "j": j, "along": along}
    require(results(build, feeds, tmp_path / "p.mlpackage"), wanted)


def test_images_of_other_sizes(tmp_path: Path) -> None:
    x = normal(2, 3, 5, 6)
    grid = np.clip(normal(2, 4, 3, 2), -1.4, 1.4)
    theta = np.array([[0.8, 0.1, 0.05, -0.2, 0.9, 0.1]], np.float32)
    boxes = np.array([[0.5, 1, 3, 4], [1, 0, 4, 2.5]], np.float32)

    def build(mb, x, grid):
        def sample(**how):
            common = {"x": x, "coordinates": grid, "padding_value": 0.0}
            return mb.resample(**common, coordinates_mode="normalized_minus_one_to_one", **how)

        size = {"target_size_height": 8, "target_size_width": 4}
        return (
            mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=3),
            mb.resize_nearest_neighbor(x=x, target_size_height=10, target_size_width=3),
            mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=True),
            mb.upsample_bilinear(x=x, scale_factor_height=2, scale_factor_width=3, align_corners=False),
            mb.resize_bilinear(x=x, **size, sampling_mode="UNALIGN_CORNERS"),
            mb.resize_bilinear(x=x, **size, sampling_mode="STRICT_ALIGN_CORNERS"),
            mb.resize(x=x, shape=[7, 0], resized_dims=np.uint32(2), sampling_mode="UNALIGN_CORNERS"),
            sample(sampling_mode="bilinear", padding_mode="constant", align_corners=True),
            sample(sampling_mode="bilinear", padding_mode="border", align_corners=False),
            sample(sampling_mode="bilinear", padding_mode="reflection", align_corners=True),
            sample(sampling_mode="nearest", padding_mode="constant", align_corners=False),
            mb.affine(
                x=x, transform_matrix=theta, output_height=4, output_width=5, sampling_mode="bilinear",
                padding_mode="constant", padding_value=0.0, coordinates_mode="normalized_minus_one_to_one",
                align_corners=True,
            ),
            mb.crop_resize(
                x=x, boxes=boxes, box_indices=[1, 0], target_height=3, target_width=2,
                sampling_mode="ALIGN_CORNERS"
            ),
        )  # fmt: skip

    t, g = torch.from_numpy(x).double(), torch.from_numpy(grid).double()

    def linear(size: tuple[int, int], aligned: bool) -> torch.Tensor:
        return nn.interpolate(t, size=size, mode="bilinear", align_corners=aligned)

    def boxed(image: int, top: float, left: float, bottom: float, right: float) -> torch.Tensor:
        rows = torch.linspace(top, bottom, 3, dtype=torch.float64) / 2 - 1
        columns = torch.linspace(left, right, 2, dtype=torch.float64) / 2.5 - 1
        places = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)[None]
        return nn.grid_sample(t[image : image + 1], places, align_corners=True)

    matrix = torch.from_numpy(theta).double().reshape(1, 2, 3).expand(2, -1, -1)
    wanted = [
        nn.interpolate(t, scale_factor=(2, 3)), nn.interpolate(t, size=(10, 3)), linear((10, 18), True),
        linear((10, 18), False), linear((8, 4), False), linear((8, 4), True), linear((7, 6), False),
        nn.grid_sample(t, g, align_corners=True),
        nn.grid_sample(t, g, padding_mode="border", align_corners=False),
        nn.grid_sample(t, g, padding_mode="reflection", align_corners=True),
        nn.grid_sample(t, g, mode="nearest", align_corners=False),
        nn.grid_sample(t, nn.affine_grid(matrix, (2, 3, 4, 5), align_corners=True), align_corners=True),
        torch.cat([boxed(1, *boxes[0]), boxed(0, *boxes[1])]),
    ]  # fmt: skip
    require(results(build, {"x": x, "grid": grid}, tmp_path / "p.mlpackage"), wanted, 1e-5)


def test_recurrent(tmp_path: Path) -> None:
    """Gates stand in Core ML's order: input, forget, output, cell; and reset, output, update.

    A layer in reverse gives its states in the order in which it makes them.
    """
    x, h, c = normal(5, 2, 3), normal(2, 8), normal(2, 8)
    torch.manual_seed(0)
    lstm, gru, rnn = torch.nn.LSTM(3, 4, bidirectional=True), torch.nn.GRU(3, 4), torch.nn.RNN(3, 4)

    def gates(tensor: torch.Tensor, order: list[int]) -> np.ndarray:
        parts = tensor.detach().chunk(len(order))
        return torch.cat([parts[place] for place in order]).numpy()

    def weights(layer: torch.nn.RNNBase, order: list[int], suffix: str = "") -> dict[str, np.ndarray]:
        ih, hh, bi, bh = (
            getattr(layer, f"{n}_l0{suffix and '_reverse'}")
            for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        found = {"weight_ih": ih, "weight_hh": hh, "bias": bi + bh}
        return {f"{name}{suffix}": gates(tensor, order) for name, tensor in found.items()}

    def build(mb, x, h, c):
        first = mb.slice_by_size(x=h, begin=[0, 0], size=[-1, 4])
        both = {**weights(lstm, [0, 1, 3, 2]), **weights(lstm, [0, 1, 3, 2], "_back")}
        plain = weights(gru, [0, 2, 1])
        plain["bias"] = gates(gru.bias_hh_l0, [0, 2, 1])
        return (
            *mb.lstm(x=x, initial_h=h, initial_c=c, direction="bidirectional", output_sequence=True, **both),
            *mb.gru(
                x=x, initial_h=first, output_sequence=True, reset_after=True,
                input_bias=gates(gru.bias_ih_l0, [0, 2, 1]), **plain,
            ),
            *mb.rnn(x=x, initial_h=first, direction="reverse", output_sequence=True, **weights(rnn, [0])),
        )  # fmt: skip

    def states(array: np.ndarray) -> torch.Tensor:
        return torch.stack(torch.from_numpy(array).chunk(2, -1))

    with torch.no_grad():
        made, (last_h, last_c) = lstm(torch.from_numpy(x), (states(h), states(c)))
        sequence, last = gru(torch.from_numpy(x), states(h)[:1].contiguous())
        turned, back = rnn(torch.from_numpy(x[::-1].copy()), states(h)[:1].contiguous())
    wanted = [
        made,
        torch.cat(list(last_h), -1),
        torch.cat(list(last_c), -1),
        sequence,
        last[0],
        turned,
        back[0],
    ]
    feeds = {"x": x, "h": h, "c": c}
    require(results(build, feeds, tmp_path / "p.mlpackage", target="iOS18"), wanted, 1e-6)


def test_rounding_to_integers_and_back(tmp_path: Path) -> None:
    x = normal(2, 3, 4)
    scale, zero = np.array([0.02, 0.05, 0.1], np.float32), np.array([3, -4, 0], np.int8)

    def build(mb, x):
        codes = mb.quantize(input=x, scale=scale, zero_point=zero, axis=1, output_dtype="int8")
        whole = mb.quantize(input=x, scale=np.float32(0.5), output_dtype="int8")
        return (
            mb.cast(x=codes, dtype="int32"), mb.dequantize(input=codes, scale=scale, zero_point=zero, axis=1),
            mb.dequantize(input=whole, scale=np.float32(0.5)),
        )  # fmt: skip

    x[0, 0, :2] = 0.01, 0.03  # halves, which go to the even code
    by, at = scale[:, None], zero[:, None]
    codes = np.clip(np.round(x / by) + at, -128, 127)
    wanted = [codes, (codes - at) * by, np.clip(np.round(x * 2), -128, 127) / 2]
    require(results(build, {"x": x}, tmp_path / "p.mlpackage"), wanted)


def test_float16_is_rounded_after_every_operation(tmp_path: Path) -> None:
    x = normal(4, 8) * 30
    path = saved(
        lambda mb, x: mb.exp(x=mb.mul(x=x, y=0.1)),
        {"x": (4, 8)},
        tmp_path / "p.mlpackage",
        half=True,
        passes=True,
    )
    (got,) = evaluated(path, {"x": x}).values()
    half = (x.astype(np.float16).astype(np.float32) * np.float32(np.float16(0.1))).astype(np.float16)
    assert np.array_equal(got, np.exp(half.astype(np.float32)).astype(np.float16).astype(np.float32))
    (plain,) = evaluated(path, {"x": x}, "float32").values()
    assert not np.array_equal(plain, got)
    np.testing.assert_allclose(plain, got, rtol=0.02)


def test_control_flow(tmp_path: Path) -> None:
    """A loop over a list, with a branch that reads what lies around it."""
    x, n = normal(3), np.array([4], np.int32)

    def build(mb, x, n):
        count = mb.squeeze(x=n)

        def body(i, total):
            even = mb.equal(x=mb.mod(x=i, y=2), y=0)
            step = mb.cond(pred=even, _true_fn=lambda: mb.mul(x=x, y=2.0), _false_fn=lambda: mb.identity(x=x))
            return mb.add(x=i, y=1), mb.add(x=total, y=step)

        zero = mb.mul(x=x, y=0.0)
        _, total = mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=count), _body=body, loop_vars=(0, zero)
        )
        ls = mb.make_list(init_length=2, elem_shape=(3,), dynamic_length=True)
        ls = mb.list_write(ls=ls, index=0, value=x)
        ls = mb.list_write(ls=ls, index=1, value=total)
        return total, mb.list_gather(ls=ls, indices=[1, 0]), mb.list_read(ls=ls, index=0)

    total = 6 * x
    got = results(build, {"x": x, "n": n}, tmp_path / "p.mlpackage")
    require(got, [total, np.stack([total, x]), x])


def test_boxes_that_overlap_are_left_out(tmp_path: Path) -> None:
    boxes = np.array([[[0, 0, 2, 2], [0.1, 0, 2, 2], [5, 5, 2, 2], [9, 9, 1, 1]]], np.float32)
    scores = np.array([[[0.6], [0.9], [0.7], [0.1]]], np.float32)

    def build(mb, boxes, scores):
        limits = {"iou_threshold": 0.5, "score_threshold": 0.2, "max_boxes": 3}
        return mb.non_maximum_suppression(boxes=boxes, scores=scores, **limits)

    got = results(build, {"boxes": boxes, "scores": scores}, tmp_path / "p.mlpackage", target="iOS15")
    assert got[2].tolist() == [[1, 2, -1]] and got[3].tolist() == [2]
    assert np.array_equal(got[0][0, :2], boxes[0, [1, 2]]) and np.array_equal(
        got[1][0, :2], scores[0, [1, 2]]
    )


def test_what_the_pages_leave_open(tmp_path: Path) -> None:
    """By coremltools' tests: the new resize takes the nearest pixel, an LSTM's clip is that of its state, its
    scaled tanh does not scale, and what goes over channels takes the first axis of rank 3 for them."""
    x, steps = np.array([[[[1.0, 2.0]]]], np.float32), np.full((3, 1, 2), 5, np.float32)
    zeros, wide = np.zeros((1, 2), np.float32), np.ones((8, 2), np.float32)

    three = np.array([[[1, -7], [5, -6], [-3, -5]]], np.float32)

    def build(mb, x, steps, three):
        new = mb.resize(x=x, shape=[3], resized_dims=np.uint32(1), interpolation_mode="NEAREST_NEIGHBOR")
        old = mb.resize_nearest_neighbor(x=x, target_size_height=1, target_size_width=3)
        cells = {"weight_ih": wide, "weight_hh": wide, "initial_h": zeros, "initial_c": zeros}
        scaled = mb.lstm(x=steps, **cells, activation="scaled_tanh")[1]
        lone = mb.local_response_norm(x=three, size=3)
        return new, old, mb.lstm(x=steps, **cells, clip=0.5)[2], scaled, lone

    got = results(build, {"x": x, "steps": steps, "three": three}, tmp_path / "p.mlpackage")
    state = np.tanh(3)  # the gates are open, the state counts the steps
    lone = three / (1 + 1e-4 / 3 * three**2) ** 0.75
    wanted = [[[[[1, 2, 2]]]], [[[[1, 1, 2]]]], np.full((1, 2), 0.5), np.full((1, 2), state), lone]
    for have, want in zip(got, wanted, strict=True):
        np.testing.assert_allclose(have, want, rtol=2e-5)


def test_places_that_are_checked(tmp_path: Path) -> None:
    x = normal(3, 2)
    for places in ([-1], [3]):
        feeds = {"x": x, "i": np.array(places, np.int32)}
        with pytest.raises(BackendError, match="gather 'gather_0'"):
            results(
                lambda mb, x, i: mb.gather(x=x, indices=i, validate_indices=True),
                feeds,
                tmp_path / "p.mlpackage",
            )


def test_numbers_without_axes(tmp_path: Path) -> None:
    """They are joined to a row, and leave a package as one: Core ML knows no arrays without axes."""
    x = normal(3, 4)

    def build(mb, x):
        sizes = mb.shape(x=x)
        parts = tuple(mb.gather(x=sizes, indices=index, axis=0) for index in (1, 0))
        return mb.concat(values=parts, axis=0), mb.reduce_sum(x=x, axes=[0, 1], keep_dims=False)

    row, total = results(build, {"x": x}, tmp_path / "p.mlpackage")
    assert row.tolist() == [4, 3]
    assert total.shape == (1,) and total[0] == pytest.approx(float(x.sum(dtype=np.float64)), rel=1e-5)

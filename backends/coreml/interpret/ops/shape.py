"""Operations that move numbers without changing them, and those that make them of sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

from backends.coreml.interpret.call import Call, Kernel, Refused, axis_of, sized


def reshape(call: Call) -> np.ndarray:
    """0 keeps a size, counted from the last one; -1 is what is left."""
    x, wanted = call.array("x"), call.integers("shape")
    offset = x.ndim - len(wanted)
    shape = [
        (x.shape[offset + i] if offset + i >= 0 else 1) if size == 0 and x.size else size
        for i, size in enumerate(wanted)
    ]
    return x.reshape(_of_size(x.size, shape))


def _of_size(size: int, shape: list[int]) -> list[int]:
    if shape.count(-1) == 1:
        known = -math.prod(shape)
        if known > 0 and size % known == 0:
            shape = [size // known if n == -1 else n for n in shape]
    if min(shape, default=0) < 0 or math.prod(shape) != size:
        raise Refused(f"{size} numbers do not fit {shape}")
    return shape


def reshape_like(call: Call) -> np.ndarray:
    references = call.arrays("ref_tensors")
    rows = [[int(n[()]) for n in call.arrays(name)] for name in ("begins", "ends", "end_masks")]
    shape: list[int] = []
    for reference, begin, end, whole in zip(references, *rows, strict=True):
        shape += reference.shape[begin:] if whole else reference.shape[begin:end]
    x = call.array("x")
    return x.reshape(_of_size(x.size, shape))


def transpose(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.transpose(x, [axis_of(axis, x.ndim) for axis in call.integers("perm")])


def expand_dims(call: Call) -> np.ndarray:
    x, axes = call.array("x"), call.integers("axes")
    rank = x.ndim + len(axes)
    if rank > 32:
        raise Refused(f"a result of rank {rank}")
    return np.expand_dims(x, tuple(axis_of(axis, rank) for axis in axes))


def squeeze(call: Call) -> np.ndarray:
    """Axes that are longer than 1 stay."""
    x = call.array("x")
    axes = {axis_of(axis, x.ndim) for axis in call.integers("axes", range(x.ndim))}
    return x.reshape([n for axis, n in enumerate(x.shape) if n != 1 or axis not in axes])


def flatten2d(call: Call) -> np.ndarray:
    x = call.array("x")
    axis = call.integer("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if not 0 <= axis <= x.ndim:
        raise Refused(f"axis {axis} of a tensor of rank {x.ndim}")
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def shape(call: Call) -> np.ndarray:
    return np.array(call.array("x").shape, np.int32)


def concat(call: Call) -> np.ndarray:
    """Numbers without axes become a row, as coremltools types them."""
    values = [value if value.ndim else value.reshape(1) for value in call.arrays("values")]
    axis = axis_of(call.integer("axis"), values[0].ndim)
    if not call.flag("interleave"):
        return np.concatenate(values, axis)
    together = np.stack(values, axis + 1)
    return together.reshape([n * len(values) if i == axis else n for i, n in enumerate(values[0].shape)])


def split(call: Call) -> tuple[np.ndarray, ...]:
    x = call.array("x")
    axis = axis_of(call.integer("axis"), x.ndim)
    if call.has("split_sizes"):
        parts = call.integers("split_sizes")
    else:
        count = call.integer("num_splits")
        if not 1 <= count <= x.shape[axis] or x.shape[axis] % count:
            raise Refused(f"{x.shape[axis]} in {count} parts")
        parts = [x.shape[axis] // count] * count
    if min(parts, default=-1) < 0 or sum(parts) != x.shape[axis]:
        raise Refused(f"{x.shape[axis]} in parts of {parts[:20]}")
    before, ends = (slice(None),) * axis, list(accumulate(parts))
    return tuple(x[(*before, slice(end - n, end))] for n, end in zip(parts, ends, strict=True))


def stack(call: Call) -> np.ndarray:
    return np.stack(call.arrays("values"), call.integer("axis"))


def pad(call: Call) -> np.ndarray:
    x, pads = call.array("x"), call.integers("pad")
    if len(pads) % 2 or len(pads) > 2 * x.ndim or min(pads, default=0) < 0:
        raise Refused(f"pad {pads} of a tensor of rank {x.ndim}")
    around = [(0, 0)] * (x.ndim - len(pads) // 2) + list(zip(pads[::2], pads[1::2], strict=True))
    sized([n + sum(p) for n, p in zip(x.shape, around, strict=True)], x.itemsize)
    mode = call.text("mode", "constant")
    if mode == "constant":
        return np.pad(x, around, constant_values=x.dtype.type(call.number("constant_val", 0.0)))
    if mode == "reflect":
        if any(max(p) >= n for p, n in zip(around, x.shape, strict=True) if any(p)):
            raise Refused(f"pad {pads} reflects more than there is")
        return np.pad(x, around, "reflect")
    if mode == "replicate":
        return np.pad(x, around, "edge")
    raise Refused(f"mode {mode}")


def tile(call: Call) -> np.ndarray:
    x, reps = call.array("x"), call.integers("reps")
    if len(reps) != x.ndim or min(reps, default=1) < 0:
        raise Refused(f"reps {reps} of a tensor of rank {x.ndim}")
    sized([n * r for n, r in zip(x.shape, reps, strict=True)], x.itemsize)
    return np.tile(x, reps)


def fill(call: Call) -> np.ndarray:
    value = call.maybe("value")
    dtype = np.dtype(np.float32) if value is None else value.dtype
    number = 0 if value is None else value.reshape(-1)[0]
    return np.full(sized(call.integers("shape"), dtype.itemsize), number, dtype)


def fill_like(call: Call) -> np.ndarray:
    reference, value = call.array("ref_tensor"), call.maybe("value")
    number = np.float32(0) if value is None else value.reshape(-1)[0]
    return np.full(reference.shape, number, number.dtype)


def range_1d(call: Call) -> np.ndarray:
    """How many there are is computed in the type of the numbers: 0.6 / 0.1 is 6 in float32."""
    start, end, step = (call.array(name).reshape(-1)[:1] for name in ("start", "end", "step"))
    if not (step != 0).all():
        raise Refused("a step of 0")
    found = np.ceil((end - start) / step)
    if found.size != 1 or not np.isfinite(found).all():
        raise Refused("no range")
    (count,) = sized([max(int(found[0]), 0)])
    return (start + np.arange(count) * step).astype(start.dtype)


def reverse(call: Call) -> np.ndarray:
    x = call.array("x")
    return np.flip(x, tuple({axis_of(a, x.ndim) for a in call.integers("axes", range(x.ndim))}))


def reverse_sequence(call: Call) -> np.ndarray:
    x, lengths = call.array("x"), call.integers("lengths")
    batch, along = (axis_of(call.integer(name, 0), x.ndim) for name in ("batch_axis", "seq_axis"))
    if len(lengths) != x.shape[batch] or not all(0 <= n <= x.shape[along] for n in lengths) or batch == along:
        raise Refused(f"lengths {lengths[:20]} for {list(x.shape)}")
    steps = np.arange(x.shape[along])
    places = np.stack([np.where(steps < n, n - 1 - steps, steps) for n in lengths])
    shape = [1] * x.ndim
    shape[batch], shape[along] = places.shape
    return np.take_along_axis(x, (places if batch < along else places.T).reshape(shape), along)


def _slices(call: Call, x: np.ndarray) -> tuple[tuple[slice, ...], set[int]]:
    """What slice_by_index and slice_update take, and the axes that are left out then."""
    begin, end = call.integers("begin"), call.integers("end")
    stride = call.integers("stride", [1] * x.ndim)
    masks = [call.integers(f"{name}_mask", [0] * x.ndim) for name in ("begin", "end", "squeeze")]
    if {len(row) for row in (begin, end, stride, *masks)} != {x.ndim} or 0 in stride:
        raise Refused(f"slices for another rank than {x.ndim}")
    parts: list[slice] = []
    for axis, size in enumerate(x.shape):
        first: int | None = None if masks[0][axis] else begin[axis]
        if masks[2][axis]:
            place = first or 0
            if not -size <= place < size:
                raise Refused(f"place {place} of {size}")
            place %= size
            parts.append(slice(place, place + 1))
        else:
            parts.append(slice(first, None if masks[1][axis] else end[axis], stride[axis]))
    return tuple(parts), {axis for axis in range(x.ndim) if masks[2][axis]}


def slice_by_index(call: Call) -> np.ndarray:
    x = call.array("x")
    parts, gone = _slices(call, x)
    return np.squeeze(x[parts], tuple(gone))


def slice_by_size(call: Call) -> np.ndarray:
    x, begin, sizes = call.array("x"), call.integers("begin"), call.integers("size")
    if len(begin) != x.ndim or len(sizes) != x.ndim:
        raise Refused(f"slices for another rank than {x.ndim}")
    parts: list[slice] = []
    for n, first, size in zip(x.shape, begin, sizes, strict=True):
        at = first + n if first < 0 else first
        last = n if size == -1 else at + size
        if not 0 <= at <= last <= n:
            raise Refused(f"{size} from {first} of {n}")
        parts.append(slice(at, last))
    return x[tuple(parts)]


def slice_update(call: Call) -> np.ndarray:
    x, update = call.array("x"), call.array("update")
    parts, gone = _slices(call, x)
    y = x.copy()
    y[parts] = np.expand_dims(update, tuple(sorted(gone)))
    return y


def depth_to_space(x: np.ndarray, block: int, channels_last: bool) -> np.ndarray:
    """Blocks of channels become squares; ``channels_last``: the channel counts fastest in a block."""
    n, c, h, w = x.shape
    if block < 1 or c % block**2:
        raise Refused(f"{c} channels in blocks of {block}")
    c //= block**2
    if channels_last:
        y = x.reshape(n, block, block, c, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c, h * block, w * block)


def space_to_depth(x: np.ndarray, block: int, channels_last: bool) -> np.ndarray:
    """Squares become blocks of channels."""
    n, c, h, w = x.shape
    if block < 1 or h % block or w % block:
        raise Refused(f"{h} by {w} in blocks of {block}")
    y = x.reshape(n, c, h // block, block, w // block, block)
    y = y.transpose(0, 3, 5, 1, 2, 4) if channels_last else y.transpose(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * block**2, h // block, w // block)


def space_to_batch(call: Call) -> np.ndarray:
    x, block, pads = call.array("x"), call.integers("block_shape"), call.array("paddings").reshape(-1)
    around: Sequence[int] = [int(p) for p in pads]
    if len(block) != 2 or len(around) != 4 or min(*block, *around) < 0 or x.ndim != 4 or 0 in block:
        raise Refused(f"block {block} and paddings {around}")
    sized([*x.shape[:2], x.shape[2] + sum(around[:2]), x.shape[3] + sum(around[2:])])
    x = np.pad(x, [(0, 0), (0, 0), tuple(around[:2]), tuple(around[2:])])
    n, c, h, w = x.shape
    if h % block[0] or w % block[1]:
        raise Refused(f"{h} by {w} in blocks of {block}")
    y = x.reshape(n, c, h // block[0], block[0], w // block[1], block[1]).transpose(3, 5, 0, 1, 2, 4)
    return y.reshape(-1, c, h // block[0], w // block[1])


def batch_to_space(call: Call) -> np.ndarray:
    x, block, crops = call.array("x"), call.integers("block_shape"), call.array("crops").reshape(-1)
    around = [int(p) for p in crops]
    if len(block) != 2 or len(around) != 4 or min(around) < 0 or min(block) < 1 or x.ndim != 4:
        raise Refused(f"block {block} and crops {around}")
    n, c, h, w = x.shape
    if n % (block[0] * block[1]):
        raise Refused(f"a batch of {n} in blocks of {block}")
    y = x.reshape(*block, -1, c, h, w).transpose(2, 3, 4, 0, 5, 1).reshape(-1, c, h * block[0], w * block[1])
    return y[:, :, around[0] : y.shape[2] - around[1], around[2] : y.shape[3] - around[3]]


def sliding_windows(call: Call) -> np.ndarray:
    x, size, stride = call.array("x"), call.integer("size"), call.integer("stride", 1)
    axis = axis_of(call.integer("axis"), x.ndim)
    if not 1 <= size <= x.shape[axis] or stride < 1:
        raise Refused(f"windows of {size} over {x.shape[axis]} by {stride}")
    places = np.arange(0, x.shape[axis] - size + 1, stride)[:, None] + np.arange(size)
    sized([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]], x.itemsize)
    return np.take(x, places, axis)


def band_part(call: Call) -> np.ndarray:
    x, lower, upper = call.array("x"), call.integer("lower", -1), call.integer("upper", -1)
    down = np.arange(x.shape[-2])[:, None] - np.arange(x.shape[-1])
    kept = ((lower < 0) | (down <= lower)) & ((upper < 0) | (-down <= upper))
    return np.where(kept, x, x.dtype.type(0))


def crop(call: Call) -> np.ndarray:
    x = call.array("x")
    parts: list[slice] = []
    for name, size in zip(("crop_height", "crop_width"), x.shape[-2:], strict=True):
        first, last = call.integers(name)
        if first < 0 or last < 0 or first + last > size:
            raise Refused(f"{name} {[first, last]} of {size}")
        parts.append(slice(first, size - last))
    return x[..., parts[0], parts[1]]


def _four(call: Call) -> np.ndarray:
    x = call.array("x")
    if x.ndim != 4:
        raise Refused(f"a tensor of rank {x.ndim}")
    return x


KERNELS: Mapping[str, Kernel] = {
    "reshape": reshape, "reshape_like": reshape_like, "transpose": transpose, "expand_dims": expand_dims,
    "squeeze": squeeze, "flatten2d": flatten2d, "shape": shape, "concat": concat, "split": split,
    "stack": stack, "pad": pad, "tile": tile, "fill": fill, "fill_like": fill_like, "range_1d": range_1d,
    "reverse": reverse, "reverse_sequence": reverse_sequence, "slice_by_index": slice_by_index,
    "slice_by_size": slice_by_size, "slice_update": slice_update, "space_to_batch": space_to_batch,
    "batch_to_space": batch_to_space, "sliding_windows": sliding_windows, "band_part": band_part,
    "crop": crop,
    "depth_to_space": lambda call: depth_to_space(_four(call), call.integer("block_size"), True),
    "space_to_depth": lambda call: space_to_depth(_four(call), call.integer("block_size"), True),
    "pixel_shuffle": lambda call: depth_to_space(_four(call), call.integer("upscale_factor"), False),
    "pixel_unshuffle": lambda call: space_to_depth(_four(call), call.integer("downscale_factor"), False),
}  # fmt: skip

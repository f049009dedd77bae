"""Fourier transforms and the windows around them; a complex number is a last axis of two."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor

from deploy.execute.ops.shape import integers
from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()


def _complex(x: Tensor) -> Tensor:
    """``x`` without its last axis of one (real) or two; half precision, which FFTs lack, is widened."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    if x.shape[-1] == 1:
        return wide[..., 0]
    pairs: Tensor = torch.view_as_complex(wide.contiguous())
    return pairs


@ops.kernel("DFT")
def dft(node: Node) -> Kernel:
    inverse, half, read_length = node.flag("inverse"), node.flag("onesided"), integers(node, 1)
    early, read_axis = node.version < 20, integers(node, 2)
    attribute = node.integer("axis", 1)

    def run(x: Tensor, length: Tensor | None = None, axis: Tensor | None = None) -> Tensor:
        (given,) = [attribute] if early else read_axis(axis) or [-2]
        along = given % x.ndim
        sizes = read_length(length)
        count = sizes[0] if sizes else None
        signal = _complex(x)
        if half and inverse:
            real: Tensor = torch.fft.irfft(signal, count, along)
            return real.unsqueeze(-1).to(x.dtype)
        if half and signal.is_complex():
            raise ValueError("one side is the whole spectrum of real signals only")
        transform = torch.fft.rfft if half else torch.fft.ifft if inverse else torch.fft.fft
        spectrum: Tensor = torch.view_as_real(transform(signal, count, along))
        return spectrum.to(x.dtype)

    return run


@ops.kernel("STFT")
def stft(node: Node) -> Kernel:
    half, read_step, read_length = bool(node.integer("onesided", 1)), integers(node, 1), integers(node, 3)

    def run(x: Tensor, step: Tensor, window: Tensor | None = None, length: Tensor | None = None) -> Tensor:
        signal = _complex(x) if x.ndim == 3 else x
        (size,) = read_length(length) or [signal.shape[1] if window is None else window.shape[0]]
        (stride,) = read_step(step) or [1]
        frames = signal.unfold(1, size, stride)
        if window is not None:
            frames = frames * window
        transform = torch.fft.rfft if half and not frames.is_complex() else torch.fft.fft
        spectrum: Tensor = torch.view_as_real(transform(frames, dim=-1))
        return spectrum.to(x.dtype)

    return run


def _window(node: Node, cosines: Sequence[float]) -> Kernel:
    """sum over k of (-1)^k a_k cos(2 pi k n / N), where N is the size, or one less if not periodic."""
    periodic = bool(node.integer("periodic", 1))
    dtype, read = to_torch_dtype(ir.DataType(node.integer("output_datatype", 1))), integers(node, 0)

    def run(size: Tensor) -> Tensor:
        (count,) = read(size) or [0]
        place = torch.arange(count, dtype=torch.float64, device=size.device)
        turn = 2 * math.pi * place / max(1, count if periodic else count - 1)
        terms = [(-1) ** k * a * torch.cos(k * turn) for k, a in enumerate(cosines)]
        return torch.stack(terms).sum(0).to(dtype)

    return run


@ops.kernel("HannWindow")
def hann_window(node: Node) -> Kernel:
    return _window(node, (0.5, 0.5))


@ops.kernel("HammingWindow")
def hamming_window(node: Node) -> Kernel:
    return _window(node, (25 / 46, 21 / 46))


@ops.kernel("BlackmanWindow")
def blackman_window(node: Node) -> Kernel:
    return _window(node, (0.42, 0.5, 0.08))


@ops.kernel("MelWeightMatrix")
def mel_weight_matrix(node: Node) -> Kernel:
    dtype = to_torch_dtype(ir.DataType(node.integer("output_datatype", 1)))

    def run(bands: Tensor, length: Tensor, rate: Tensor, lowest: Tensor, highest: Tensor) -> Tensor:
        size, count = int(length), int(bands)
        low, high = (2595 * math.log10(1 + float(hertz) / 700) for hertz in (lowest, highest))
        mel = torch.arange(count + 2, dtype=torch.float64) * ((high - low) / (count + 2)) + low
        # The edges of the triangles, in whole bins of the spectrum.
        bins = ((size + 1) * 700 * (10 ** (mel / 2595) - 1) / int(rate)).floor()
        left, centre, right = bins[:-2], bins[1:-1], bins[2:]
        place = torch.arange(size // 2 + 1, dtype=torch.float64)[:, None]
        rising = torch.where(left == centre, 1.0, (place - left) / (centre - left))
        falling = (right - place) / (right - centre)
        inside = (place >= left) & (place <= centre)
        weights = torch.where(inside, rising, torch.where((place > centre) & (place < right), falling, 0.0))
        return weights.to(bands.device, dtype)

    return run

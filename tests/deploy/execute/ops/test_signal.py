"""Fourier transforms against numpy, windows against scipy and ONNX Runtime, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal

RNG = np.random.default_rng(0)
REAL = RNG.standard_normal((2, 6, 5, 1)).astype(np.float32)
PAIRS = RNG.standard_normal((2, 6, 5, 2)).astype(np.float32)
G = "g (float[a,b,c,d] x) => (float[e,f,h,i] y) "
LENGTH = np.array(8, np.int64)


def complex_of(x: np.ndarray) -> np.ndarray:
    return x[..., 0] if x.shape[-1] == 1 else x[..., 0] + 1j * x[..., 1]


def pairs_of(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], -1)


@pytest.mark.parametrize("axis", [1, 2, -2, -3])
@pytest.mark.parametrize("length", [None, 4, 8])
def test_transforms_are_numpys(axis, length, run, gradcheck):
    constants = {"a": np.array(axis, np.int64)} | (
        {} if length is None else {"n": np.array(length, np.int64)}
    )
    given = f"x, {'' if length is None else 'n'}, a"
    along = axis - 4 if axis > 0 else axis
    forms = {
        "": (PAIRS, lambda x, n, k: pairs_of(np.fft.fft(complex_of(x), n, k))),
        "<inverse=1>": (PAIRS, lambda x, n, k: pairs_of(np.fft.ifft(complex_of(x), n, k))),
        "<onesided=1>": (REAL, lambda x, n, k: pairs_of(np.fft.rfft(complex_of(x), n, k))),
        "<inverse=1, onesided=1>": (PAIRS, lambda x, n, k: np.fft.irfft(complex_of(x), n, k)[..., None]),
    }
    for attributes, (x, expected) in forms.items():
        text = G + f"{{ y = DFT{attributes}({given}) }}"
        (found,) = run(text, x, **constants)
        np.testing.assert_allclose(found, expected(x, length, along + 1), rtol=1e-4, atol=1e-5)
        gradcheck(text, x[:1, :, :2] if along == -3 else x[:1, :2], fast=True, **constants)


def test_half_precision_is_transformed_in_single(run):
    (found,) = run(G + "{ y = DFT(x, , a) }", REAL.astype(np.float16), a=np.array(1, np.int64))
    assert found.dtype.is_floating_point
    assert str(found.dtype) == "torch.float16"
    expected = pairs_of(np.fft.fft(REAL[..., 0], axis=1))
    np.testing.assert_allclose(found.float(), expected, atol=2e-2)


def test_one_side_of_a_complex_signal_is_refused(run):
    with pytest.raises(Exception, match="real signals only"):
        run(G + "{ y = DFT<onesided=1>(x) }", PAIRS)


@pytest.mark.parametrize("onesided", [0, 1])
@pytest.mark.parametrize("inputs", ["x, s, w", "x, s, , l", "x, s, w, l"])
def test_short_time_transforms(onesided, inputs, like_ort, gradcheck):
    x = RNG.standard_normal((2, 30, 1)).astype(np.float32)
    text = f"g (float[a,b,c] x) => (float[d,e,f,h] y) {{ y = STFT<onesided={onesided}>({inputs}) }}"
    window = scipy.signal.get_window("hann", 8).astype(np.float32)
    named = {"s": np.array(3, np.int64), "w": window, "l": LENGTH}
    constants = {name.strip(): named[name.strip()] for name in inputs.split(",")[1:] if name.strip()}
    like_ort(text, x, rtol=1e-4, atol=1e-5, **constants)
    gradcheck(text, x[:1, :12], fast=True, **constants)


@pytest.mark.parametrize("kind", ["Hann", "Hamming", "Blackman"])
@pytest.mark.parametrize("periodic", [0, 1])
@pytest.mark.parametrize("dtype", [1, 11])
def test_windows(kind, periodic, dtype, run):
    text = (
        f"g (int64 n) => (float[a] y) {{ y = {kind}Window<periodic={periodic}, output_datatype={dtype}>(n) }}"
    )
    (found,) = run(text, np.array(9, np.int64))
    assert found.numpy().dtype == (np.float32 if dtype == 1 else np.float64)
    name = ("general_hamming", 25 / 46) if kind == "Hamming" else kind.lower()
    np.testing.assert_allclose(found, scipy.signal.get_window(name, 9, fftbins=bool(periodic)), atol=1e-6)
    assert len(run(text, np.array(1, np.int64))[0]) == 1


@pytest.mark.parametrize(("bands", "size", "rate"), [(8, 64, 8000), (40, 512, 16000), (20, 32, 16000)])
def test_mel_weights(bands, size, rate, like_ort):
    text = """g (int64 b, int64 n, int64 r, float l, float h) => (float[c,d] y) {
    y = MelWeightMatrix(b, n, r, l, h) }"""
    numbers = [np.array(n, np.int64) for n in (bands, size, rate)]
    like_ort(text, *numbers, np.array(20, np.float32), np.array(3800, np.float32), rtol=1e-4, atol=1e-5)

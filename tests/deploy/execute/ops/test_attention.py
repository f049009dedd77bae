import numpy as np
import pytest
import torch
from torch.nn import functional

RNG = np.random.default_rng(0)


def real(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def inputs(heads: int = 4, kv: int = 4, keys: int = 5) -> list[np.ndarray]:
    return [real(2, heads, 3, 8), real(2, kv, keys, 8), real(2, kv, keys, 6)]


@pytest.mark.parametrize("attributes", [{}, {"is_causal": 1}, {"scale": 0.2}])
def test_the_usual_one_is_torchs_bit_for_bit(one_node, attributes):
    given = inputs()
    found = one_node("Attention", *given, opset=23, **attributes).torch()[0]
    expected = functional.scaled_dot_product_attention(
        *map(torch.from_numpy, given), is_causal="is_causal" in attributes, scale=attributes.get("scale")
    )
    assert torch.equal(found, expected)


LONG = {
    "cap": {"softcap": 0.7},
    "precise": {"softmax_precision": 11},
    "window": {"left_window_size": 1, "right_window_size": 1},
    "causal": {"is_causal": 1},
}


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("kv", [4, 2])
def test_the_long_way_and_torchs_agree(one_node, name, kv):
    """Asked for the products too, every step is computed by itself."""
    given = inputs(kv=kv)
    short = one_node("Attention", *given, opset=25, **LONG[name])
    long = one_node("Attention", *given, outputs=4, opset=25, qk_matmul_output_mode=3, **LONG[name])
    torch.testing.assert_close(long.torch()[0], short.torch()[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(long.torch()[3].sum(-1), torch.ones(2, 4, 3))


def test_decoding_step_by_step_is_decoding_at_once(one_node):
    q, k, v = real(1, 2, 4, 8), real(1, 2, 4, 8), real(1, 2, 4, 8)
    whole = one_node("Attention", q, k, v, is_causal=1, opset=23).torch()[0]
    first = one_node(
        "Attention", q[:, :, :3], k[:, :, :3], v[:, :, :3], is_causal=1, outputs=3, opset=23
    ).torch()
    last = one_node(
        "Attention", q[:, :, 3:], k[:, :, 3:], v[:, :, 3:], None, first[1].numpy(), first[2].numpy(),
        is_causal=1, outputs=3, opset=23,
    ).torch()  # fmt: skip
    torch.testing.assert_close(torch.cat([first[0], last[0]], 2), whole)
    np.testing.assert_array_equal(last[1], k)


def test_a_row_without_keys_is_zero(one_node):
    mask = np.ones((3, 5), bool)
    mask[1] = False
    for outputs in (1, 4):
        found = one_node("Attention", *inputs(), mask, outputs=outputs, opset=23).torch()[0]
        assert not found[:, :, 1].any()
        assert torch.isfinite(found).all()


@pytest.mark.parametrize("outputs", [1, 4])
def test_gradients(one_node, outputs):
    given = [real(1, 2, 3, 4), real(1, 1, 3, 4), real(1, 1, 3, 2), real(3, 3)]
    one_node("Attention", *given, outputs=outputs, is_causal=1, opset=23).gradients()
    packed = [real(1, 3, 8), real(1, 2, 4), real(1, 2, 4)]
    one_node("Attention", *packed, q_num_heads=2, kv_num_heads=1, softcap=0.5, opset=23).gradients()


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotation_keeps_lengths_and_gradients(one_node, interleaved):
    x, angles = real(1, 3, 2 * 6), RNG.uniform(0, 6, (10, 2))
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    node = one_node(
        "RotaryEmbedding", x, cos, sin, np.array([[3, 0, 9]]), num_heads=2, rotary_embedding_dim=4,
        interleaved=interleaved, opset=23,
    )  # fmt: skip
    found = node.torch()[0].numpy().reshape(3, 2, 6)
    np.testing.assert_array_equal(found[..., 4:], x.reshape(3, 2, 6)[..., 4:])
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=-1), np.linalg.norm(x.reshape(3, 2, 6), axis=-1), rtol=1e-5
    )
    node.gradients()


@pytest.mark.parametrize("rule", ["linear", "gated", "delta", "gated_delta"])
def test_linear_attention(one_node, rule):
    gates = -RNG.uniform(0, 1, (1, 3, 1)).astype(np.float32) if "gated" in rule else None
    rates = RNG.uniform(0, 1, (1, 3, 1)).astype(np.float32) if "delta" in rule else None
    given = [real(1, 3, 4), real(1, 3, 2), real(1, 3, 2), real(1, 1, 2, 2), gates, rates]
    attributes = {"q_num_heads": 2, "kv_num_heads": 1, "update_rule": rule}
    node = one_node("LinearAttention", *given, outputs=2, opset=27, **attributes)
    node.gradients()
    if rule == "linear":  # without softmax: a causal product
        q, k, v = given[0].reshape(3, 2, 2), given[1][0], given[2][0]
        scores = np.tril(np.einsum("ihd,jd->hij", q, k))
        expected = np.einsum("hij,jd->ihd", scores, v) + np.einsum("ihd,dm->ihm", q, given[3][0, 0])
        np.testing.assert_allclose(
            node.torch()[0].numpy().reshape(3, 2, 2), expected / np.sqrt(2), rtol=1e-4, atol=1e-6
        )


@pytest.mark.parametrize("mode", ["linear", "circular"])
def test_scatter_writes_at_each_samples_own_place(one_node, mode):
    cache, update = real(2, 3, 4, 2), real(2, 3, 2, 2)
    node = one_node(
        "TensorScatter", cache, update, np.array([1, 2 if mode == "linear" else 3]), mode=mode, opset=24
    )
    expected = cache.copy()
    expected[0, :, 1:3] = update[0]
    expected[1][:, [2, 3] if mode == "linear" else [3, 0]] = update[1]
    np.testing.assert_array_equal(node.torch()[0], expected)
    node.gradients()
    np.testing.assert_array_equal(node.torch()[0], expected)  # the cache given was not written to

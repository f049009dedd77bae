"""Attention: Attention, RotaryEmbedding, LinearAttention, TensorScatter."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from deploy.execute.optable import Kernel, Node, OpTable

ops = OpTable()

_PRECISIONS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}


@ops.kernel("Attention")
def attention(node: Node) -> Kernel:
    heads, kv_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    scale, cap, causal = node.real("scale"), node.real("softcap"), node.flag("is_causal")
    bounds = node.integer("left_window_size", -1), node.integer("right_window_size", -1)
    precision = _PRECISIONS.get(node.integer("softmax_precision"))
    shown = node.integer("qk_matmul_output_mode") if node.wants(3) else None

    def run(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
        filled: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        packed = q.ndim == 3
        if packed:
            q, k, v = _split(q, heads), _split(k, kv_heads), _split(v, kv_heads)
        past = 0 if past_key is None else past_key.shape[2]
        if past_key is not None and past_value is not None:
            k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
        factor = scale or 1 / math.sqrt(q.shape[3])
        grouped = q.shape[1] != k.shape[1]
        simple = causal and mask is None and past == 0 and filled is None and bounds == (-1, -1)
        bias = None if simple else _bias(q, k.shape[2], mask, causal, bounds, past, filled)
        products: Tensor | None = None
        if shown is None and cap == 0 and (precision is None or precision == q.dtype):
            y = functional.scaled_dot_product_attention(
                q, k, v, bias, is_causal=simple, scale=factor, enable_gqa=grouped
            )
        else:
            if simple:
                bias = _bias(q, k.shape[2], None, True, bounds, 0, None)
            wide_k, wide_v = (
                t.repeat_interleave(q.shape[1] // k.shape[1], 1) if grouped else t for t in (k, v)
            )
            root = math.sqrt(factor)
            raw = torch.matmul(q * root, wide_k.transpose(2, 3) * root)
            capped = cap * torch.tanh(raw / cap) if cap else raw
            biased = capped if bias is None else capped + bias
            weights = torch.softmax(biased if precision is None else biased.to(precision), -1)
            if bias is not None:  # a row that may attend to nothing gives nothing
                weights = torch.where(torch.isneginf(bias.amax(-1, keepdim=True)), 0, weights)
            weights = weights.to(q.dtype)
            y = torch.matmul(weights, wide_v)
            # Modes 0 and 1 are both past the cap in the reference; so they are without one.
            products = (capped, capped, biased, weights)[shown or 0]
        if packed:
            y = y.transpose(1, 2).flatten(2)
        return y, k, v, products

    return run


def _split(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * size) as (batch, heads, length, size)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _bias(
    q: Tensor,
    keys: int,
    mask: Tensor | None,
    causal: bool,
    bounds: tuple[int, int],
    past: int,
    filled: Tensor | None,
) -> Tensor | None:
    """What is added to the scores: minus infinity where a query must not look; None for nothing."""
    never = torch.tensor(-math.inf, dtype=q.dtype, device=q.device)
    bias: Tensor | None = None
    if mask is not None:
        short = keys - mask.shape[-1]
        bias = torch.where(mask, 0, never) if mask.dtype == torch.bool else mask
        bias = functional.pad(bias, (0, short), value=-math.inf) if short > 0 else bias
    allowed: Tensor | None = None
    key = torch.arange(keys, device=q.device)
    if causal or bounds != (-1, -1):
        query = torch.arange(q.shape[2], device=q.device).reshape(-1, 1) + past
        if filled is not None:
            query = query + (filled.reshape(-1, 1, 1, 1) - q.shape[2])
        left, right = bounds
        right = 0 if causal else right
        allowed = key <= query + right if right >= 0 else torch.ones_like(key <= query)
        allowed = allowed & (key >= query - left) if left >= 0 else allowed
    if filled is not None:
        real = key < filled.reshape(-1, 1, 1, 1)
        allowed = real if allowed is None else allowed & real
    if allowed is None:
        return bias
    hidden = torch.where(allowed, 0, never)
    return hidden if bias is None else bias + hidden


@ops.kernel("RotaryEmbedding")
def rotary_embedding(node: Node) -> Kernel:
    heads, size, interleaved = (
        node.integer("num_heads"),
        node.integer("rotary_embedding_dim"),
        node.flag("interleaved"),
    )

    def run(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        packed = x.ndim == 3
        y = x.reshape(*x.shape[:2], heads, -1) if packed else x.transpose(1, 2)  # batch, length, heads, size
        turned = size or y.shape[3]
        if positions is not None:
            cos, sin = cos[positions], sin[positions]
        cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
        moving, still = y[..., :turned], y[..., turned:]
        first, second = (moving[..., 0::2], moving[..., 1::2]) if interleaved else moving.chunk(2, -1)
        real, imaginary = cos * first - sin * second, sin * first + cos * second
        joined = (
            torch.stack([real, imaginary], -1).flatten(-2)
            if interleaved
            else torch.cat([real, imaginary], -1)
        )
        y = torch.cat([joined, still], -1)
        return y.flatten(2) if packed else y.transpose(1, 2)

    return run


@ops.kernel("LinearAttention")
def linear_attention(node: Node) -> Kernel:
    rule, scale = node.string("update_rule", "gated_delta"), node.real("scale")
    heads, kv_heads = node.integer("q_num_heads"), node.integer("kv_num_heads")
    corrected = rule in ("delta", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise node.unsupported(f"update rule '{rule}'")

    def run(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        past: Tensor | None = None,
        decay: Tensor | None = None,
        beta: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        wide = _widened(query.dtype)
        q, k, v = wide(_split(query, heads)), wide(_split(key, kv_heads)), wide(_split(value, kv_heads))
        gates = (
            None if decay is None else wide(_split(decay, kv_heads)).exp()
        )  # (batch, heads, time, 1 or size)
        rates = None if beta is None else wide(beta).transpose(1, 2)  # (batch, heads or 1, time)
        factor = scale or 1 / math.sqrt(q.shape[3])
        state = q.new_zeros(q.shape[0], kv_heads, k.shape[3], v.shape[3]) if past is None else wide(past)
        read = []
        for t in range(q.shape[2]):
            k_t, v_t = k[:, :, t], v[:, :, t]
            if gates is not None:
                state = state * gates[:, :, t, :, None]
            if corrected and rates is not None:
                v_t = rates[:, :, t, None] * (v_t - torch.einsum("bhdm,bhd->bhm", state, k_t))
            state = state + k_t[..., :, None] * v_t[..., None, :]
            seen = state.repeat_interleave(heads // kv_heads, 1) if heads != kv_heads else state
            read.append(factor * torch.einsum("bhd,bhdm->bhm", q[:, :, t], seen))
        y = torch.stack(read, 1).flatten(2).to(query.dtype)
        return y, state.to(query.dtype if past is None else past.dtype)

    return run


def _widened(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """To float32, what is wider stays."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return lambda x: x.to(wide)


@ops.kernel("TensorScatter")
def tensor_scatter(node: Node) -> Kernel:
    axis, circular = node.integer("axis", -2), node.string("mode", "linear") == "circular"

    def run(cache: Tensor, update: Tensor, begin: Tensor | None = None) -> Tensor:
        at = axis % cache.ndim
        shape = [1] * cache.ndim
        shape[at] = update.shape[at]
        place = torch.arange(update.shape[at], device=cache.device).reshape(shape)
        if begin is not None:
            place = place + begin.reshape(-1, *[1] * (cache.ndim - 1))
        if circular:
            place = place % cache.shape[at]
        return cache.scatter(at, place.expand(update.shape), update)

    return run

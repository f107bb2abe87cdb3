"""The oracle of the model: one document, layer by layer, in float64, from the equations of the Griffin paper."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from roost.engine.model.config import ModelConfig, Params
from roost.kernels.references import causal_conv1d_reference, rg_lru_reference, window_attention_reference

type Weights = Mapping[Any, Any]


def reference_logits(config: ModelConfig, params: Params, tokens: np.ndarray) -> np.ndarray:
    """Logits `[T, V]` after each token of a document."""
    weights = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = weights["embedding"][tokens]
    if config.scale_embeddings:
        x = x * np.float64(jax.numpy.bfloat16(math.sqrt(config.width)))
    for index, kind in enumerate(config.block_types):
        layer, block = weights["blocks"][index], _attention if kind == "attention" else _recurrent
        x = x + block(config, layer["temporal"], _norm(config, layer["temporal_norm"], x))
        x = x + _mlp(layer["mlp"], _norm(config, layer["mlp_norm"], x))
    logits = _norm(config, weights["final_norm"], x) @ weights["embedding"].T
    cap = config.logits_soft_cap
    return cap * np.tanh(logits / cap) if cap else logits


def _norm(config: ModelConfig, weights: Weights, x: np.ndarray) -> np.ndarray:
    mean_square = (x * x).mean(axis=-1, keepdims=True)
    return x / np.sqrt(mean_square + config.rms_norm_eps) * (1 + weights["scale"])


def _dense(weights: Weights, x: np.ndarray) -> np.ndarray:
    return x @ weights["weight"].T + weights["bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _mlp(weights: Weights, x: np.ndarray) -> np.ndarray:
    gate, up = np.split(_dense(weights["gate_up"], x), 2, axis=-1)
    return _dense(weights["down"], _gelu(gate) * up)


def _recurrent(config: ModelConfig, weights: Weights, u: np.ndarray) -> np.ndarray:
    steps, size = len(u), config.lru_width // config.num_heads
    positions = np.arange(steps)[None]
    x, y = np.split(_dense(weights["xy"], u), 2, axis=-1)
    history = np.zeros((config.conv_width - 1, 1, config.lru_width))
    c, _ = causal_conv1d_reference(x[None], weights["conv_weight"], weights["conv_bias"], history, positions)
    gates = np.einsum("tni,nio->tno", c.reshape(steps, -1, size), weights["rg_lru"]["gate_weight"])
    gates += weights["rg_lru"]["gate_bias"]
    input_gate, recurrence_gate = (g.reshape(1, steps, -1) for g in np.split(gates, 2, axis=-1))
    log_decay = -8 * np.log1p(np.exp(weights["rg_lru"]["a_param"]))
    h0 = np.zeros((1, config.lru_width))
    h, _ = rg_lru_reference(c, input_gate, recurrence_gate, log_decay, h0, positions)
    return _dense(weights["out"], h[0] * _gelu(y))


def _attention(config: ModelConfig, weights: Weights, u: np.ndarray) -> np.ndarray:
    steps, size = len(u), config.head_dim
    positions = np.arange(steps)[None]
    keys = config.num_key_heads * size
    q, k, v = np.split(u @ weights["qkv"].T, [config.width, config.width + keys], axis=-1)
    q = _rope(config, q.reshape(1, steps, config.num_heads, size))
    k = _rope(config, k.reshape(1, steps, -1, size))
    ring, group = np.zeros((1, config.window, size)), config.num_heads // config.num_key_heads
    mixed = np.zeros(q.shape)
    for head, own_v in enumerate(np.split(v[None], config.num_key_heads, axis=-1)):
        own = slice(head * group, (head + 1) * group)
        mixed[:, :, own], *_ = window_attention_reference(q[:, :, own], k[:, :, head], own_v, ring, ring, positions)
    return _dense(weights["out"], mixed.reshape(steps, -1))


def _rope(config: ModelConfig, x: np.ndarray) -> np.ndarray:
    pairs = config.head_dim // 4
    angles = np.arange(x.shape[1])[:, None] * config.rope_theta ** (-np.arange(pairs) / pairs)
    turn = np.exp(1j * angles)[:, None]
    turned = (x[..., :pairs] + 1j * x[..., pairs : 2 * pairs]) * turn
    return np.concatenate([turned.real, turned.imag, x[..., 2 * pairs :]], axis=-1)

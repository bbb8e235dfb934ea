"""Rotary positions (RoPE), and YaRN, which stretches them over a longer context.

YaRN (Peng et al. 2023, arXiv 2309.00071) divides the slow frequencies by the factor of the stretch, leaves the fast
ones, goes from one to the other in a ramp, and sharpens attention by scaling queries and keys.
"""

import math
from typing import Any

import torch
from torch import Tensor

from iqc.model.config import ModelConfig


def frequencies(config: ModelConfig, dtype: torch.dtype, device: torch.device | None = None) -> tuple[Tensor, float]:
    """Radians a position of every pair [head size / 2], and what cosines and sines are multiplied by."""
    rope, size = config.rope_parameters, config.head_dim
    wavelengths = rope["rope_theta"] ** (torch.arange(0, size, 2, device=device).to(dtype) / size)
    if rope.get("rope_type", "default") == "default":
        return 1.0 / wavelengths, 1.0

    def pair_that_turns(times: float) -> float:  # in the original context (section 3.2, equation 17)
        turns = rope["original_max_position_embeddings"] / (2 * math.pi * times)
        return size * math.log(turns) / (2 * math.log(rope["rope_theta"]))

    low, high = pair_that_turns(rope.get("beta_fast", 32)), pair_that_turns(rope.get("beta_slow", 1))
    if rope.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    span = high - low if high != low else 0.001
    ramp = ((torch.arange(size // 2, device=device).to(dtype) - low) / span).clamp(0, 1)
    return ramp / (rope["factor"] * wavelengths) + (1 - ramp) / wavelengths, attention_factor(rope)


def attention_factor(rope: dict[str, Any]) -> float:
    """The scale of queries and of keys, so scores grow by its square: 0.1 ln(factor) + 1 (equation 22)."""

    def scale(times: float) -> float:
        return 0.1 * times * math.log(rope["factor"]) + 1.0

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    if rope.get("mscale") and rope.get("mscale_all_dim"):
        return scale(rope["mscale"]) / scale(rope["mscale_all_dim"])
    return scale(1.0)


def rotary(positions: Tensor, config: ModelConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary angles, each [B, T, 1, head size / 2].

    Angles are float32 (float64 in a float64 model), as in the implementations that the released weights run on.
    """
    exact = torch.promote_types(dtype, torch.float32)
    turns, scale = frequencies(config, exact, positions.device)
    angles = positions[..., None, None].to(exact) * turns
    return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs (x[i], x[i + half]) of every head: the half-split ("NeoX") form of RoPE. x [B, T, heads, D]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

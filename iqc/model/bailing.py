"""The tensor names of released models with experts (BailingMoe), and the way from and to the decoder's own.

The decoder has Llama's names, and one tensor for all experts of a kind; a checkpoint has query, key and value in one
tensor and a tensor for each expert. Nothing is rounded either way.
"""

import re
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from iqc.model.config import ModelConfig

RENAMED = {"model.embed_tokens.": "model.word_embeddings.", ".self_attn.o_proj.": ".attention.dense."}
PARTS = ("q_proj", "k_proj", "v_proj")
STACKED = re.compile(r"(.+\.mlp)\.((?:gate|up|down)_proj)")  # unlike a dense layer's, without .weight


def to_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The decoder's state under released names."""
    released: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".self_attn.q_proj." in name:
            parts = [tensors[name.replace("q_proj", part)] for part in PARTS]
            released[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif any(f".self_attn.{part}." in name for part in PARTS):
            continue
        elif found := STACKED.fullmatch(name):
            for number, matrix in enumerate(tensor):
                released[f"{found[1]}.experts.{number}.{found[2]}.weight"] = matrix
        else:
            for ours, theirs in RENAMED.items():
                name = name.replace(ours, theirs)  # noqa: PLW2901
            released[name] = tensor
    return released


def from_released(released: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """The decoder's state from a whole set of released tensors."""
    tensors: dict[str, Tensor] = {}
    keys = config.num_key_value_heads * config.head_dim
    for name, tensor in released.items():
        if ".attention.query_key_value." in name:
            for part, piece in zip(PARTS, tensor.split([config.hidden_size, keys, keys])):
                tensors[name.replace("attention.query_key_value", f"self_attn.{part}")] = piece.contiguous()
        elif ".mlp.experts." in name:
            head, _, tail = name.partition(".experts.")
            number, kind, _ = tail.split(".")
            if number == "0":
                every = [released[f"{head}.experts.{i}.{kind}.weight"] for i in range(config.num_experts)]
                tensors[f"{head}.{kind}"] = torch.stack(every)
        else:
            for ours, theirs in RENAMED.items():
                name = name.replace(theirs, ours)  # noqa: PLW2901
            tensors[name] = tensor
    return tensors


def released_places(name: str, shape: tuple[int, ...], config: ModelConfig) -> list[tuple[str, tuple[int, ...], int]]:
    """Where the elements of a decoder's tensor lie under released names: (name, its shape, first element there).

    In the order of the flattened tensor, an even share of it each; what `to_released` does, for slices.
    """
    if found := STACKED.fullmatch(name):
        return [(f"{found[1]}.experts.{i}.{found[2]}.weight", shape[1:], 0) for i in range(shape[0])]
    for number, part in enumerate(PARTS):
        if f".self_attn.{part}." in name:
            keys = config.num_key_value_heads * config.head_dim
            rows = (0, config.hidden_size, config.hidden_size + keys, config.hidden_size + 2 * keys)
            joined = name.replace(f"self_attn.{part}", "attention.query_key_value")
            return [(joined, (rows[-1], *shape[1:]), rows[number] * prod(shape[1:]))]
    for ours, theirs in RENAMED.items():
        name = name.replace(ours, theirs)
    return [(name, shape, 0)]

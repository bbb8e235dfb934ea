"""Fold a dense model into a looped one: how LoopCoder starts, because from fresh weights its gradients explode
(LoopCoder, ACL 2026 Findings 796)."""

from dataclasses import replace

import torch

from iqc.errors import IqcError
from iqc.model.config import ModelConfig
from iqc.model.decoder import GATE_BIAS, Decoder


def looped(config: ModelConfig, loop_num: int = 2, loop_window_size: int = 64) -> ModelConfig:
    """The shape of what `fold` makes. IqcError when it is looped already, or has experts."""
    if config.loop_num > 1:
        raise IqcError("the model is looped already", remedy="train it as it is, without --loop")
    return replace(config, loop_num=loop_num, loop_window_size=loop_window_size)


def fold(dense: Decoder, loop_num: int = 2, loop_window_size: int = 64) -> Decoder:
    """A looped decoder with the same weights (shared with `dense`, not copied), gates of weight 0 and bias +2.

    IqcError as in `looped`.
    """
    decoder = Decoder(looped(dense.config, loop_num, loop_window_size), device="meta")
    head = dense.lm_head.weight
    gates = {
        name: torch.full_like(
            parameter, GATE_BIAS if name.endswith("bias") else 0.0, dtype=head.dtype, device=head.device
        )
        for name, parameter in decoder.named_parameters()
        if "gate_projections" in name
    }
    decoder.load_state_dict(dense.state_dict() | gates, assign=True)
    return decoder.requires_grad_(True)

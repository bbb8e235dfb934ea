"""Fold a dense model into a looped one: how LoopCoder starts, because from fresh weights its gradients explode
(LoopCoder, ACL 2026 Findings 796)."""

from dataclasses import replace

import torch

from iqc.errors import IqcError
from iqc.model.decoder import GATE_BIAS, Decoder


def fold(dense: Decoder, loop_num: int = 2, loop_window_size: int = 64) -> Decoder:
    """A looped decoder with the same weights (shared with `dense`, not copied), gates of weight 0 and bias +2.

    IqcError when the model is looped already, or has experts.
    """
    if dense.config.loop_num > 1:
        raise IqcError("the model is looped already", remedy="train it as it is, without --loop")
    config = replace(dense.config, loop_num=loop_num, loop_window_size=loop_window_size)
    looped = Decoder(config, device="meta")
    head = dense.lm_head.weight
    gates = {
        name: torch.full_like(
            parameter, GATE_BIAS if name.endswith("bias") else 0.0, dtype=head.dtype, device=head.device
        )
        for name, parameter in looped.named_parameters()
        if "gate_projections" in name
    }
    looped.load_state_dict(dense.state_dict() | gates, assign=True)
    return looped.requires_grad_(True)

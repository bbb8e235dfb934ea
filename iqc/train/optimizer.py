"""Which parameters the optimisers treat how."""

import torch

from iqc.model.decoder import Decoder
from iqc.train.adamw import AdamW
from iqc.train.muon import Muon

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1  # on matrices; norms, the loop's gates and the embedding go without


def make_optimizer(model: Decoder, rate: float, kind: str) -> torch.optim.Optimizer:
    """`adamw`, or `muon`: Muon for the matrices of the blocks and AdamW for the rest."""
    matrices: list[torch.nn.Parameter] = []
    tables: list[torch.nn.Parameter] = []
    vectors: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "gate_projections" in name:
            vectors.append(parameter)
        else:
            (matrices if ".layers." in name else tables).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY, "muon": kind == "muon"},
        {"params": [model.lm_head.weight], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in tables if p is not model.lm_head.weight] + vectors, "weight_decay": 0.0},
    ]
    return (Muon if kind == "muon" else AdamW)(groups, lr=rate, betas=BETAS)

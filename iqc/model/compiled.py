"""The two sides of the attention as compiled code (torch.compile), for training on a GPU.

A block is compiled in two pieces, once for all layers and passes, and not the model as a whole: the attention between
them is a kernel of its own, and compiling takes seconds instead of the minute that unrolled layers take. What fuses
(norm, rotary turn, SwiGLU, residual sums) lies inside the pieces, and backward keeps of an MLP only its two
up-projections. Forwards without gradients (generation, evaluation) run as they are: their shapes change all the time.
"""

import os

import torch

from iqc.model.decoder import Block, Decoder, Pieces


def compile_blocks(model: Decoder, **options) -> None:
    """Compile on the next forward that asks for gradients; `options` are torch.compile's.

    Nothing happens under IQC_COMPILE=0.
    """
    if os.environ.get("IQC_COMPILE") != "0":
        model.model.pieces = Pieces(torch.compile(Block.before, **options), torch.compile(Block.after, **options))

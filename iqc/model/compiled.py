"""The two sides of the attention as compiled code (torch.compile), for training on a GPU.

A block is compiled in two pieces, once for all layers and passes, and not the model as a whole: the attention between
them is a kernel of its own, and compiling takes seconds instead of the minute that unrolled layers take. What fuses
(norm, rotary turn, SwiGLU, residual sums) lies inside the pieces, and backward makes it again from what the matrix
products left. Forwards without gradients (generation, evaluation) run as they are: their shapes change all the time.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as autograd_settings

from iqc.model.decoder import Block, Decoder, Pieces


def compile_blocks(model: Decoder, **options: Any) -> None:
    """Compile on the next forward that asks for gradients; `options` are torch.compile's.

    Nothing happens under IQC_COMPILE=0.
    """
    if os.environ.get("IQC_COMPILE") != "0":
        # Of experts, rows are data and the routing is a side effect: they run as they are.
        after = Block.after if model.config.num_experts else compiled(Block.after, **options)
        model.model.pieces = Pieces(compiled(Block.before, **options), after)


def compiled(function: Callable, **options: Any) -> Callable:
    """torch.compile that keeps the fewest bytes for backward: by default a SwiGLU's product and a residual sum in
    float32 are kept too, 1.6 times as much, though they cost no pass over memory to make again."""
    fast = torch.compile(function, **options)

    def call(*args: Any) -> Any:
        with autograd_settings.patch(aggressive_recomputation=True):
            return fast(*args)

    return call

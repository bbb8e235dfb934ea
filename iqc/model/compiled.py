"""The two sides of the attention as compiled code (torch.compile), for training on a GPU.

A block is compiled in two pieces, once for all layers and passes, and not the model as a whole: the attention between
them is a kernel of its own, and compiling takes seconds instead of the minute that unrolled layers take. What fuses
(norm, rotary turn, SwiGLU, residual sums) lies inside the pieces. Forwards without gradients (generation, evaluation)
run as they are: their shapes change all the time.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config as autograd_settings

from iqc.model.decoder import Block, Decoder, Pieces, Recompute


def compile_blocks(model: Decoder, **options: Any) -> None:
    """Compile on the next forward that asks for gradients; `options` are torch.compile's.

    Where the model recomputes anything, memory is short, and backward is left the fewest bytes. Nothing happens under
    IQC_COMPILE=0.
    """
    if os.environ.get("IQC_COMPILE") != "0":
        lean = model.model.recompute != Recompute()
        # Of experts, rows are data and the routing is a side effect: they run as they are.
        after = Block.after if model.config.num_experts else compiled(Block.after, lean, **options)
        model.model.pieces = Pieces(compiled(Block.before, lean, **options), after)


def compiled(function: Callable, lean: bool, **options: Any) -> Callable:
    """torch.compile; `lean` keeps no SwiGLU's product, normalised input or residual sum in float32: 0.7 of the bytes at
    the released shape, for a pass of backward that writes them once more."""
    fast = torch.compile(function, **options)

    def call(*args: Any) -> Any:
        with autograd_settings.patch(aggressive_recomputation=lean):
            return fast(*args)

    return call

"""Keys and values of what was read, for generation one token at a time; exact for the loop.

Pass 1 keeps everything. A later pass keeps its last `loop_window_size` tokens in a ring, because its global branch
reads pass 1's: for the released 40B model 327,680 bytes a token, and 21 MB once, instead of 655,360 bytes a token.
Rows are padded on the left, so that all rows write to the same slot.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from iqc.kernels.documents import Documents
from iqc.kernels.loop_attention import gate
from iqc.model.config import ModelConfig


class Cache:
    """Room for `capacity` slots. `real` bool [B, prompt slots]: false on the padding at the left.

    The first forward reads the prompts whole; after `advance()` each forward reads one token a row.
    """

    def __init__(self, config: ModelConfig, real: Tensor, capacity: int, dtype: torch.dtype):
        rows, self.length = real.shape
        self.window = config.loop_window_size
        self.padding = real.shape[1] - real.sum(1)  # int64 [B]
        self._padded = bool(self.padding.any())
        self.documents = Documents.from_mask(real)
        self.positions = self.documents.positions
        self.reading_prompt = True
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads)
        self.full = torch.zeros(2, *shape, capacity, config.head_dim, dtype=dtype, device=real.device)
        ring = min(self.window, capacity)
        self.rings = torch.zeros(config.loop_num - 1, 2, *shape, ring, config.head_dim, dtype=dtype, device=real.device)
        self._mask: Tensor | None = None
        self._ring_mask: Tensor | None = None

    def advance(self) -> None:
        """Make the next slot the current one: each row's next token goes there."""
        slot = self.length
        self.length += 1
        self.reading_prompt = False
        self.positions = (slot - self.padding)[:, None]
        # One document a row, and what follows the prompt is never padding.
        self.documents = Documents(self.positions, None, whole=False)
        self._set_masks()

    def _set_masks(self) -> None:
        if not self._padded:  # every slot is seen: no mask
            return
        slots = torch.arange(self.length, device=self.padding.device)
        self._mask = (slots >= self.padding[:, None])[:, None, None]  # [B, 1, 1, slots]
        ring = self.rings.shape[-2]
        held = torch.arange(min(ring, self.length), device=self.padding.device)
        held = held + (self.length - 1 - held) // ring * ring  # the newest slot that each place of the ring has held
        self._ring_mask = (held >= self.padding[:, None])[:, None, None]

    def select(self, rows: Tensor) -> None:
        """Keep these rows (int64 indices), in this order, between two steps."""
        self.padding = self.padding[rows]
        self.full = self.full[:, :, rows]
        self.rings = self.rings[:, :, :, rows]

    def attend(
        self,
        loop: int,
        layer: int,
        projection: nn.Linear | None,
        attend_whole: Callable[..., Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        first: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Store k and v [B, T, K, D] of this pass and layer, and mix values for q [B, T, H, D] over all that is kept.

        `projection` is the layer's gate (None in pass 1); `attend_whole` the attention without a cache, for prompts.
        """
        self._store(loop, layer, k, v)
        if self.reading_prompt:
            return attend_whole(q, k, v, first)
        keys, values = self.full[:, layer, :, :, : self.length]
        everywhere = _one_query(q, keys, values, self._mask)
        if projection is None:
            return everywhere
        keys, values = self.rings[loop - 1, :, layer, :, :, : self.length]
        nearby = _one_query(q, keys, values, self._ring_mask)
        return torch.lerp(nearby, everywhere, gate(q, projection.weight, projection.bias))

    def _store(self, loop: int, layer: int, k: Tensor, v: Tensor) -> None:
        start, end = self.length - k.shape[1], self.length
        if loop == 0:
            for kept, new in zip(self.full[:, layer], (k, v)):
                kept[:, :, start:end] = new.transpose(1, 2)
            return
        ring = self.rings.shape[-2]
        start = max(start, end - ring)
        slots = torch.arange(start, end, device=k.device) % ring
        for kept, new in zip(self.rings[loop - 1, :, layer], (k, v)):
            kept[:, :, slots] = new[:, start - end :].transpose(1, 2)


def _one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """q [B, 1, H, D] over k, v [B, K, slots, D]. The query heads that share a key head stand in for query positions, so
    grouped keys are read once and never repeated."""
    b, _, heads, size = q.shape
    grouped = q.view(b, k.shape[1], heads // k.shape[1], size)
    return F.scaled_dot_product_attention(grouped, k, v, mask).reshape(b, 1, heads, size)

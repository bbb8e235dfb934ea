"""The decoder: Llama blocks, run `loop_num` times with shared weights. One forward for training, scoring, generation.

Pass 1 is a plain Llama. Later passes start from the hidden state that the pass before left (no norm, no embedding in
between); their attention mixes a global branch over pass 1's keys and values with a local branch over their own
(iqc.kernels.loop_attention). Parameters carry the released names, so state dicts are checkpoints. With IQC_DEBUG set,
values that are not finite stop a forward.
"""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from iqc.errors import IqcError
from iqc.kernels.causal_attention import Unsupported, causal_attention
from iqc.kernels.documents import Documents
from iqc.kernels.linear_cross_entropy import linear_cross_entropy, linear_logprobs
from iqc.kernels.loop_attention import loop_attention
from iqc.kernels.ring import Ring
from iqc.kernels.ring_attention import ring_attention
from iqc.kernels.zigzag import Shard
from iqc.model.cache import Cache
from iqc.model.config import ModelConfig
from iqc.model.debug import check_finite, debugging
from iqc.model.experts import Experts, norm_head, shared_balance
from iqc.model.rotary import rotary, rotate

KeyValue = tuple[Tensor, Tensor]
GATE_BIAS = 2.0  # of every gate of the released model, with weights near 0: 0.88 global attention, 0.12 local
Attend = Callable[[Tensor, Tensor, Tensor, KeyValue | None], Tensor]  # (q, k, v, pass 1's k and v) -> mixed values


class RMSNorm(nn.RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        """In the precision of x: under autocast weights are wider than it, and so is what a GPU returns."""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_dim = config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, turned; `Block` mixes the values and calls `o_proj`."""
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return rotate(q, cos, sin), rotate(k, cos, sin), v


class MLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def feed_forward(config: ModelConfig, layer: int) -> nn.Module:
    """Dense, or with experts behind the first layers of a model that has them."""
    if not config.num_experts or layer < config.first_k_dense_replace:
        return MLP(config.hidden_size, config.intermediate_size)
    width = config.num_shared_experts * config.moe_intermediate_size
    return Experts(config, MLP(config.hidden_size, width) if width else None)


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward(config, layer)

    def before(self, h: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What comes before the attention: h [B, T, hidden size] to q, k, v [B, T, heads, head size]."""
        return self.self_attn(self.input_layernorm(h), cos, sin)

    def after(self, h: Tensor, mixed: Tensor, recompute: bool = False) -> Tensor:
        """What comes after it; `recompute` keeps nothing of the MLP but its input."""
        h = h + self.self_attn.o_proj(mixed.flatten(2))
        return recomputed(self.feed, h) if recompute else self.feed(h)

    def feed(self, h: Tensor) -> Tensor:
        return h + self.mlp(self.post_attention_layernorm(h))

    def forward(
        self,
        h: Tensor,
        cos: Tensor,
        sin: Tensor,
        attend: Attend,
        first: KeyValue | None,
        pieces: "Pieces",
        keep: bool,
        tile: int,
    ):
        """Returns h, k and v. Keys and values are results, not side effects: pass 1's are consumed a whole pass later,
        and activation recompute cuts gradients through anything that is not an input or an output. Without `keep` the
        MLP's activations are recomputed, with `tile` they are of that many tokens at a time."""
        q, k, v = pieces.before(self, h, cos, sin)
        mixed = attend(q, k, v, first)
        if not tile or h.shape[0] * h.shape[1] <= tile or isinstance(self.mlp, Experts):
            return pieces.after(self, h, mixed, not keep), k, v
        tiles = -(-h.shape[0] * h.shape[1] // tile)  # alike, so that compiled code meets one shape
        size = -(-h.shape[1] // tiles)
        parts = zip(h.split(size, dim=1), mixed.split(size, dim=1))
        return torch.cat([recomputed(pieces.after, self, *part) for part in parts], dim=1), k, v


def recomputed(function: Callable, *args):
    """function(*args), run again in backward instead of keeping what it made on the way. There is no dropout, so no
    random state to restore."""
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)


class Pieces(NamedTuple):
    """A block's two sides of the attention as functions of the block; a trainer may put compiled ones in their place
    (iqc.model.compiled)."""

    before: Callable[..., tuple[Tensor, Tensor, Tensor]] = Block.before
    after: Callable[..., Tensor] = Block.after


@dataclass(frozen=True, slots=True)
class Recompute:
    """What backward computes again instead of keeping: time for memory. No gradient changes.

    The first `blocks` blocks, counting each pass, keep only their input, k and v. The next `mlps` keep all but their
    MLP half, which leaves three tenths of the released shape's activations and costs two of the MLP's three products
    again. The rest, which backward comes to first, keep all. So memory can be filled exactly.

    With `tile`, every block does what follows the attention for that many tokens at a time (0: all), forward and again
    in backward: of a long row's MLP, which is the widest there is, a tile exists at once. In a block that is recomputed
    whole that is a third time. Experts are not tiled.
    """

    blocks: int = 0
    mlps: int = 0
    tile: int = 0

    @classmethod
    def parse(cls, text: str) -> "Recompute":
        """`none`, or `block` and `mlp`, each with a count or for all there are, and `tile` with a number of tokens:
        `mlp`, `block:3,mlp:20`, `block,tile:8192`."""
        found: dict[str, int] = {}
        for part in text.split(","):
            name, colon, count = part.partition(":")
            counted = name != "none" and count.isascii() and count.isdecimal()
            wrong = name not in ("none", "block", "mlp", "tile") or name in found or (colon and not counted)
            if wrong or (name == "tile" and not colon):
                raise ValueError(f"recompute {text!r}: none, block[:N], mlp[:N] or tile:TOKENS, each once")
            found[name] = int(count) if colon else sys.maxsize
        return cls(found.get("block", 0), found.get("mlp", 0), found.get("tile", 0))

    def of(self, number: int) -> str:
        return "block" if number < self.blocks else "mlp" if number - self.blocks < self.mlps else "none"


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing: `Decoder.initialise` draws the weights; a draw on the meta device loads much of PyTorch first."""


class Body(nn.Module):
    """Everything but the vocabulary head; the `model.` of the released names."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.recompute = Recompute()  # when training
        self.pieces = Pieces()  # when gradients are asked for
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        gates = config.num_hidden_layers if config.loop_num > 1 else 0
        self.gate_projections = nn.ModuleList(
            nn.Linear(config.head_dim, config.num_attention_heads) for _ in range(gates)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def gate(self, layer: int) -> nn.Linear:
        return cast(nn.Linear, self.gate_projections[layer])  # a ModuleList forgets what it holds

    def attend(self, layer: int, documents: Documents | Shard, q: Tensor, k: Tensor, v: Tensor, first: KeyValue | None):
        try:
            if first is None:
                if isinstance(documents, Shard):
                    return ring_attention(q, k, v, documents)
                return causal_attention(q, k, v, documents)
            gate = self.gate(layer)
            weight, bias = gate.weight.to(q.dtype), gate.bias.to(q.dtype)  # wider under autocast
            return loop_attention(q, *first, k, v, weight, bias, documents, self.config.loop_window_size)
        except Unsupported as error:
            slowly = "IQC_ATTENTION=reference computes it in plain PyTorch, slowly"
            raise IqcError(str(error), remedy=slowly) from None

    def forward(self, tokens: Tensor, documents: Documents | Shard, cache: Cache | None = None) -> Tensor:
        """tokens int64 [B, T] to hidden states [B, T, hidden size] after the final norm.

        With a cache, `documents` is the cache's and the tokens continue what it holds. With a Shard, tokens are its.
        """
        h = self.embed_tokens(tokens)
        if torch.is_autocast_enabled(h.device.type):  # the residual stream too: half the bytes of what each block reads
            h = h.to(torch.get_autocast_dtype(h.device.type))
        if documents.real is not None:
            # Zero stays zero or finite through every block, whatever padding tokens embed to.
            h = h.masked_fill(~documents.real[..., None], 0.0)
        positions = documents.positions if cache is None else cache.positions
        cos, sin = rotary(positions, self.config, h.dtype)
        firsts: list[KeyValue | None] = [None] * len(self.layers)
        learns = torch.is_grad_enabled()
        pieces = self.pieces if learns else Pieces()
        debug = debugging()
        if debug:
            check_finite(h, "model.embed_tokens")
        for loop in range(self.config.loop_num):
            for i, block in enumerate(self.layers):
                attend: Attend = partial(self.attend, i, documents)
                if cache is not None:
                    gate = self.gate(i) if loop > 0 else None
                    attend = partial(cache.attend, loop, i, gate, attend)
                what = self.recompute.of(loop * len(self.layers) + i) if self.training and learns else "none"
                args = h, cos, sin, attend, firsts[i], pieces, what != "mlp", self.recompute.tile
                h, k, v = recomputed(block, *args) if what == "block" else block(*args)
                if debug:
                    check_finite(h, f"model.layers.{i} in pass {loop + 1}")
                if loop == 0 and self.config.loop_num > 1:
                    firsts[i] = (k, v)
        return self.norm(h)


class Decoder(nn.Module):
    """A decoder with freshly initialised weights (see `initialise`), on `device` (default: torch's current one).

    Everywhere: `tokens` int64 [B, T] are rows of packed documents, `lengths` one list per row of its documents'
    lengths, in order; what they leave of a row is padding. None: each row is one document. No token sees another
    document, in any pass. Positions restart with each document.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, device: torch.device | str | None = None):
        super().__init__()
        self.config = config
        self.balance: float | Tensor = 0.0  # the load-balancing loss that `loss` added last, before its coefficient
        self.row_losses: Tensor | None = None  # [B], what each row added to the sum that `loss` gave last
        self.ring: Ring | None = None  # the ranks that share the rows of `loss`; None: this one has them whole
        self.together: Callable[[Tensor], Tensor] | None = None  # adds up over the ranks that call `loss` at one time
        with torch.device("meta"):  # no memory, and no draw from the global random state
            self.model = Body(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        device = torch.device(device) if device is not None else torch.get_default_device()
        if device.type != "meta":
            self.to_empty(device=device)
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Normal, standard deviation `initializer_range`; norms one; gates weight 0 and bias +2, as in the release.

        Projections that write to the residual stream are scaled by 1/sqrt(number of such writes), which is 2 per layer
        and pass (GPT-2's rule, counting passes): a loop trained from scratch otherwise starts with growing gradients.
        """
        generator = torch.Generator(next(self.parameters()).device).manual_seed(seed)
        std = self.config.initializer_range
        writes = 2 * self.config.num_hidden_layers * self.config.loop_num
        for name, parameter in self.named_parameters():
            if "gate_projections" in name:
                parameter.fill_(GATE_BIAS if name.endswith("bias") else 0.0)
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                writer = "o_proj" in name or "down_proj" in name
                parameter.normal_(0.0, std / math.sqrt(writes) if writer else std, generator=generator)

    @property
    def head(self) -> Tensor:
        """The matrix [vocabulary size, hidden size] that makes scores of hidden states."""
        return norm_head(self.lm_head.weight) if self.config.norm_head else self.lm_head.weight

    def fold_norm_head(self) -> None:
        """Put NormHead into the head's weight: the same model, for loaders that know nothing of it."""
        with torch.no_grad():
            self.lm_head.weight.copy_(self.head)
        self.config.norm_head = False

    def documents(self, tokens: Tensor, lengths: Sequence[Sequence[int]] | None) -> Documents:
        batch, length = tokens.shape
        return Documents.from_lengths(lengths, batch, length, device=tokens.device)

    def shard(self, documents: Documents, ring: Ring) -> Shard:
        if self.config.num_experts and self.training and self.together is None:
            raise ValueError("experts are balanced over whole rows: give the model `together` beside a ring")
        return Shard(documents, ring, self.config.loop_window_size if self.config.loop_num > 1 else 1)

    def forward(self, tokens: Tensor, lengths: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Hidden states [B, T, hidden size] after the final norm; `logits` makes scores of those that are needed."""
        return self.model(tokens, self.documents(tokens, lengths))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden size] to [..., vocabulary size]."""
        scores = F.linear(hidden, self.head)
        if debugging():
            check_finite(scores, "lm_head")
        return scores

    def loss(
        self,
        tokens: Tensor,
        lengths: Sequence[Sequence[int]] | None = None,
        weights: Tensor | None = None,
        z_loss: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """(sum of weight * negative log-likelihood in nats, sum of weights) over the predicted tokens.

        weights [B, T], constants (default 1): weights[b, t] is for predicting tokens[b, t] from the earlier tokens of
        its document. The first token of a document is never predicted, padding neither; their weights do not count.
        Tokens of weight 0 do not reach the vocabulary head.

        With a `ring`, all its ranks are given the same rows, each computes its shard of them, and both sums are those
        of its tokens: over the ranks they add up to the rows', and so do gradients. Every token still predicts the next
        of its row, whoever has that.

        In training mode `z_loss` times the squared log of the softmax's denominator is added to each token's loss, and
        a model with experts adds `router_aux_loss_coef` times the sum of weights times `balance`, the mean
        load-balancing loss of its layers over these rows; with `together`, its part of that over the rows of all ranks.
        """
        documents, shard = self.documents(tokens, lengths), None
        following = F.pad(tokens[:, 1:], (0, 1))
        if lengths is None and weights is None and self.ring is None:
            rows = torch.arange(tokens.numel(), device=tokens.device).view_as(tokens)[:, :-1].flatten()
            w = torch.ones(len(rows), device=tokens.device)
        else:  # how many there are, a GPU is waited for: before it is given the model
            chosen = F.pad(_predicted(documents), (0, 1))
            w = torch.ones_like(tokens, dtype=torch.float32) if weights is None else F.pad(weights[:, 1:], (0, 1))
            chosen &= w != 0
            if self.ring is not None:
                shard = self.shard(documents, self.ring)
                tokens, following, chosen, w = (shard.take(x) for x in (tokens, following, chosen, w))
            rows = chosen.flatten().nonzero()[:, 0]
            w = w.flatten()[rows]
        targets = following.flatten()[rows]
        routers = [block.mlp for block in self.model.layers if isinstance(block.mlp, Experts)] if self.training else []
        for router in routers:
            router.routing = None
        hidden = self.model(tokens, shard or documents).flatten(0, 1)
        losses = torch.empty_like(w)
        total = linear_cross_entropy(hidden, self.head, targets, w, rows, losses, z_loss if self.training else 0.0)
        # Copied to where the tokens are and summed there: sums by index have no fixed order on a GPU.
        self.row_losses = w.new_zeros(tokens.numel()).index_copy_(0, rows, losses * w).view_as(tokens).sum(1)
        if debugging():
            check_finite(total, "lm_head")
        if routers:
            real = (shard or documents).real
            routings = [router.routing for router in routers if router.routing]
            weight, part, self.balance = shared_balance(
                routings, None if real is None else real.flatten(), w.sum(), self.together
            )
            total = total + self.config.router_aux_loss_coef * weight * part
        return total, w.sum()

    def token_logprobs(
        self, tokens: Tensor, lengths: Sequence[Sequence[int]] | None = None, wanted: Tensor | None = None
    ) -> Tensor:
        """[B, T]: log p(tokens[b, t] | earlier tokens of its document) in nats, 0 where nothing is predicted, or not
        `wanted`, bool [B, T]."""
        documents = self.documents(tokens, lengths)
        hidden = self.model(tokens, documents)
        chosen = _predicted(documents)
        if wanted is not None:
            chosen = chosen & wanted[:, 1:]
        values = linear_logprobs(hidden[:, :-1][chosen], self.head, tokens[:, 1:][chosen])
        if debugging():
            check_finite(values, "lm_head")
        out = torch.zeros_like(chosen, dtype=values.dtype).masked_scatter(chosen, values)
        return F.pad(out, (1, 0))


def _predicted(documents: Documents) -> Tensor:
    """bool [B, T - 1]: whether token t + 1 is predicted from token t (padding is a document per token, so is not)."""
    return documents.positions[:, 1:] > 0

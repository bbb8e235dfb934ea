"""The shape of a model: one dataclass with the field names of a Hugging Face config.json, presets, parameter count.

Describes dense Llama-like decoders, their looped variant, and experts in the form of Ling-Coder-Lite. What this decoder
does not compute (biases, tied heads, another RoPE scaling than YaRN, another activation) is refused when a config.json
asks for it, not silently ignored.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from iqc.errors import IqcError
from iqc.model.yarn import checked_yarn, rope_parameters

DENSE_TYPES = ("llama", "iquestcoder")  # same tensors, same mathematics
LOOP_TYPE = "iquestloopcoder"
EXPERTS_TYPE = "bailing_moe"
TYPES = (*DENSE_TYPES, LOOP_TYPE, EXPERTS_TYPE)
LOOP_FIELDS = ("loop_num", "loop_window_size")
EXPERT_FIELDS = ("num_experts", "num_experts_per_tok", "num_shared_experts", "moe_intermediate_size",
                 "first_k_dense_replace", "norm_topk_prob", "norm_head", "router_aux_loss_coef")  # fmt: skip


@dataclass(slots=True)
class ModelConfig:
    """`loop_num` passes over the same blocks; 1 is a dense model. A window counts the token itself.

    With `num_experts`, a token's feed-forward is the sum of its best `num_experts_per_tok` experts, weighted by the
    router's probabilities (made to sum to 1 with `norm_topk_prob`), and of one for all tokens, as wide as
    `num_shared_experts` of them; the first `first_k_dense_replace` layers stay dense. `norm_head` divides the columns
    of the vocabulary head by their norms.

    `rope_scaling` is None or YaRN's with the keys that Transformers gives it: factor, original_max_position_embeddings
    and, where they are not the defaults, beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, truncate.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    loop_num: int = 1
    loop_window_size: int = 64
    num_experts: int = 0
    num_experts_per_tok: int = 0
    num_shared_experts: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    norm_topk_prob: bool = True
    norm_head: bool = False
    router_aux_loss_coef: float = 0.001  # Qwen3's; the Ling reports that could be read give none
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "max_position_embeddings", "loop_num", "loop_window_size"):  # fmt: skip
            if getattr(self, name) < 1:
                raise IqcError(f"{name} is {getattr(self, name)}", remedy=f"{name} must be at least 1")
        if self.hidden_size % self.num_attention_heads or self.head_dim % 2:
            raise IqcError(
                f"hidden_size {self.hidden_size} over {self.num_attention_heads} heads",
                remedy="heads must divide hidden_size into an even head size (rotary positions turn pairs)",
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise IqcError(
                f"{self.num_attention_heads} query heads over {self.num_key_value_heads} key/value heads",
                remedy="key/value heads must divide query heads",
            )
        if self.num_experts:
            self._check_experts()
        elif self.norm_head:
            raise IqcError("norm_head without experts", remedy="only the experts' config.json has a field for it")
        if self.rope_scaling is not None:
            self.rope_scaling = checked_yarn(self.rope_scaling, self.max_position_embeddings)

    def _check_experts(self) -> None:
        wrong = {
            "num_experts_per_tok": not 1 <= self.num_experts_per_tok <= self.num_experts,
            "num_shared_experts": self.num_shared_experts < 0,
            "moe_intermediate_size": self.moe_intermediate_size < 1,
            "first_k_dense_replace": not 0 <= self.first_k_dense_replace <= self.num_hidden_layers,
            "router_aux_loss_coef": not self.router_aux_loss_coef >= 0,
            "loop_num": self.loop_num > 1,  # no released model loops experts: there is no form to write it in
        }
        for name in (name for name, failed in wrong.items() if failed):
            raise IqcError(
                f"{name} is {getattr(self, name)} in a model of {self.num_experts} experts",
                remedy="num_experts_per_tok of 1 to num_experts, a width, no more dense layers than layers, one pass",
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Base and scaling together, as Transformers 5 has them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta} | (self.rope_scaling or {})

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The config.json that Transformers and vLLM read: a Llama when dense, IQuestLoopCoder when looped, BailingMoe
        with experts."""
        record = asdict(self)
        looped = self.loop_num > 1
        for name in (*(() if looped else LOOP_FIELDS), *(() if self.num_experts else EXPERT_FIELDS)):
            del record[name]
        if self.rope_scaling is None:
            del record["rope_scaling"]
        else:  # Transformers 4 reads rope_scaling (old versions its "type"), Transformers 5 rope_parameters
            record["rope_scaling"] = self.rope_scaling | {"type": "yarn"}
            record["rope_parameters"] = self.rope_parameters
        kind, architecture = "llama", "LlamaForCausalLM"
        if looped:
            kind, architecture = LOOP_TYPE, "IQuestLoopCoderForCausalLM"
        elif self.num_experts:
            kind, architecture = EXPERTS_TYPE, "BailingMoeForCausalLM"
            record |= {"use_bias": False, "use_qkv_bias": False, "embedding_dropout": 0.0, "output_dropout": 0.0}
        return {
            "architectures": [architecture],
            "model_type": kind,
            **record,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "attention_dropout": 0.0,
            "tie_word_embeddings": False,
            "use_cache": True,
            "torch_dtype": dtype,
        }

    @classmethod
    def from_hf(cls, record: dict[str, Any]) -> "ModelConfig":
        """Read a config.json (Transformers 4 or 5 spelling). Raises IqcError on what this decoder would not compute."""
        kind = record.get("model_type")
        if kind not in TYPES:
            raise IqcError(
                f"model_type {kind!r} is not one of {', '.join(TYPES)}",
                remedy="this decoder reads Llama, IQuest(Loop)Coder and Ling checkpoints",
            )
        rope = rope_parameters(record)
        refused = {
            "hidden_act": record.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(record.get("attention_bias")),
            "mlp_bias": bool(record.get("mlp_bias")),
            "tie_word_embeddings": bool(record.get("tie_word_embeddings")),
            f"rope_type {rope['rope_type']}": rope["rope_type"] not in ("default", "yarn"),
            "partial_rotary_factor": rope.pop("partial_rotary_factor", record.get("partial_rotary_factor"))
            not in (None, 1.0),
            "sliding_window": bool(record.get("use_sliding_window")),
            "clip_qkv": record.get("clip_qkv") is not None,
        }
        if kind == EXPERTS_TYPE:  # of this type are later models, too, that route in other ways
            refused |= {
                "use_bias": record.get("use_bias", True),  # the type's default
                "use_qkv_bias": bool(record.get("use_qkv_bias")),
                "use_qk_norm": bool(record.get("use_qk_norm")),
                "score_function": record.get("score_function", "softmax") != "softmax",
                "moe_router_enable_expert_bias": bool(record.get("moe_router_enable_expert_bias")),
                "routed_scaling_factor": record.get("routed_scaling_factor") not in (None, 1.0),
                "n_group": record.get("n_group") not in (None, 1),
                "norm_softmax": bool(record.get("norm_softmax")),
            }
        if any(refused.values()):
            names = ", ".join(name for name, asked in refused.items() if asked)
            raise IqcError(
                f"config.json asks for what this decoder does not compute: {names}",
                remedy="load it with Transformers, or convert it to plain Llama form first",
            )
        known = {f.name: record[f.name] for f in fields(cls) if record.get(f.name) is not None}
        if "rope_theta" in rope:
            known["rope_theta"] = rope.pop("rope_theta")
        known["rope_scaling"] = rope if rope["rope_type"] == "yarn" else None
        known.setdefault("num_key_value_heads", record.get("num_attention_heads"))
        if kind == LOOP_TYPE:
            known.setdefault("loop_num", 2)
        else:
            known["loop_num"] = 1
        if kind != EXPERTS_TYPE:
            known = {name: value for name, value in known.items() if name not in EXPERT_FIELDS}
        elif not known.get("num_experts"):
            raise IqcError("config.json has no num_experts", remedy="give every size a value")
        try:
            config = cls(**known)
        except TypeError as error:  # a required field is absent
            raise IqcError(f"config.json: {error}", remedy="give every size a value") from None
        if (record.get("head_dim") or config.head_dim) != config.head_dim:
            raise IqcError(
                f"head_dim {record['head_dim']} is not hidden_size / heads = {config.head_dim}",
                remedy="vLLM ignores head_dim for the loop, so only models where the two agree are supported",
            )
        return config


def extend_context(config: ModelConfig, factor: float) -> None:
    """Stretch the context by YaRN to `factor` times the one that the model was trained for without YaRN, in place."""
    scaling = config.rope_scaling or {"original_max_position_embeddings": config.max_position_embeddings}
    original = scaling["original_max_position_embeddings"]
    if not (1 < factor < 2**31 / original and factor * original >= config.max_position_embeddings):
        raise IqcError(
            f"a YaRN factor of {factor:g} for a model trained with a context of {original}",
            remedy=f"its context is {config.max_position_embeddings} already: take a factor that makes it longer",
        )
    context = int(factor * original)
    kept = {key: value for key, value in scaling.items() if key != "attention_factor"}  # that of another factor
    config.rope_scaling = checked_yarn(kept | {"rope_type": "yarn", "factor": float(factor)}, context)
    config.max_position_embeddings = context


def parameter_count(config: ModelConfig, active: bool = False) -> int:
    """Parameters by formula. Passes share the blocks; looping adds one gate per layer and query head.

    `active`: those that a token meets, which leaves out the experts that it is not routed to.
    """
    c = config
    attention = 2 * c.hidden_size * c.hidden_size + 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    blocks = c.num_hidden_layers * (attention + 2 * c.hidden_size)
    dense = c.first_k_dense_replace if c.num_experts else c.num_hidden_layers
    blocks += dense * 3 * c.hidden_size * c.intermediate_size
    met = (c.num_experts_per_tok if active else c.num_experts) + c.num_shared_experts
    router = c.num_experts * c.hidden_size
    blocks += (c.num_hidden_layers - dense) * (router + met * 3 * c.hidden_size * c.moe_intermediate_size)
    gates = c.num_hidden_layers * c.num_attention_heads * (c.head_dim + 1) if c.loop_num > 1 else 0
    return blocks + gates + 2 * c.vocab_size * c.hidden_size + c.hidden_size


# The report's sizes (IQuest-Coder technical report, model table; token ids of the released config.json).
_REPORT = ModelConfig(
    vocab_size=76_800,
    hidden_size=5_120,
    intermediate_size=27_648,
    num_hidden_layers=80,
    num_attention_heads=40,
    num_key_value_heads=8,
    max_position_embeddings=131_072,
    rope_theta=500_000.0,
    bos_token_id=1,
    eos_token_id=[2, 75_864, 75_869],
)
# Sizes for one machine. Token ids are the tokenizer's to give. The loop's window is the released 64: an eighth of
# nano's context, a thirty-second of the others', so that it masks something (at 64 tokens or fewer it does not).
_NANO = ModelConfig(4_096, 128, 384, 4, 4, 2, 512)
_MINI = ModelConfig(8_192, 512, 1_408, 8, 8, 2, 2_048)
_NANO_EXPERTS = replace(
    _NANO, num_experts=8, num_experts_per_tok=2, num_shared_experts=1, moe_intermediate_size=128, norm_head=True
)  # a token meets as much feed-forward as in nano
_100M = ModelConfig(32_768, 768, 2_048, 12, 12, 4, 2_048)

# Ling-Coder-Lite. Published (arXiv 2503.17793): 16.8B parameters, 2.75B of them active, 16K context, shared and routed
# experts, top 6, NormHead. Inferred: all other numbers. They are Ling-lite-1.5's, a model of the same family with the
# same two totals, and give them: 16,801,974,272 and 2,753,153,024.
_LING_CODER_LITE = ModelConfig(
    vocab_size=126_464,
    hidden_size=2_048,
    intermediate_size=1_408,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=4,
    max_position_embeddings=16_384,
    rope_theta=600_000.0,
    rms_norm_eps=1e-6,
    initializer_range=0.006,
    num_experts=64,
    num_experts_per_tok=6,
    num_shared_experts=2,
    moe_intermediate_size=1_408,
    norm_head=True,
    eos_token_id=126_081,
    pad_token_id=126_081,
)

PRESETS: dict[str, ModelConfig] = {
    "nano": _NANO,
    "nano-loop": replace(_NANO, loop_num=2),
    "nano-experts": _NANO_EXPERTS,
    "mini": _MINI,
    "mini-loop": replace(_MINI, loop_num=2),
    "100m": _100M,
    "100m-loop": replace(_100M, loop_num=2),
    "7b": replace(_REPORT, num_hidden_layers=14),
    "14b": replace(_REPORT, num_hidden_layers=28),
    "40b": _REPORT,
    "40b-loop": replace(_REPORT, loop_num=2),
    "ling-coder-lite": _LING_CODER_LITE,
}


def preset(name: str) -> ModelConfig:
    """A fresh copy of a preset. Raises IqcError with the list of names when there is none of that name."""
    if name not in PRESETS:
        raise IqcError(f"no preset {name!r}", remedy=f"presets are: {', '.join(PRESETS)}")
    return replace(PRESETS[name])

"""The shape of a model: one dataclass with the field names of a Hugging Face config.json, presets, parameter count.

Describes dense Llama-like decoders and their looped variant. What this decoder does not compute (biases, tied heads,
RoPE scaling, another activation) is refused when a config.json asks for it, rather than silently ignored.
"""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from iqc.errors import IqcError

DENSE_TYPES = ("llama", "iquestcoder")  # same tensors, same mathematics
LOOP_TYPE = "iquestloopcoder"


@dataclass(slots=True)
class ModelConfig:
    """`loop_num` passes over the same blocks; 1 is a dense model. A window counts the token itself."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    loop_num: int = 1
    loop_window_size: int = 64
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

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The config.json that Transformers and vLLM read: a Llama when dense, IQuestLoopCoder when looped."""
        record = asdict(self)
        looped = self.loop_num > 1
        if not looped:
            del record["loop_num"], record["loop_window_size"]
        return {
            "architectures": ["IQuestLoopCoderForCausalLM" if looped else "LlamaForCausalLM"],
            "model_type": LOOP_TYPE if looped else "llama",
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
        if kind not in (*DENSE_TYPES, LOOP_TYPE):
            raise IqcError(
                f"model_type {kind!r} is not one of {', '.join((*DENSE_TYPES, LOOP_TYPE))}",
                remedy="this decoder reads Llama and IQuest(Loop)Coder checkpoints",
            )
        rope = record.get("rope_parameters") or record.get("rope_scaling") or {}
        refused = {
            "hidden_act": record.get("hidden_act", "silu") != "silu",
            "attention_bias": bool(record.get("attention_bias")),
            "mlp_bias": bool(record.get("mlp_bias")),
            "tie_word_embeddings": bool(record.get("tie_word_embeddings")),
            "rope_scaling": (rope.get("rope_type") or rope.get("type") or "default") != "default",
            "sliding_window": bool(record.get("use_sliding_window")),
            "clip_qkv": record.get("clip_qkv") is not None,
        }
        if any(refused.values()):
            names = ", ".join(name for name, asked in refused.items() if asked)
            raise IqcError(
                f"config.json asks for what this decoder does not compute: {names}",
                remedy="load it with Transformers, or convert it to plain Llama form first",
            )
        known = {f.name: record[f.name] for f in fields(cls) if record.get(f.name) is not None}
        if "rope_theta" in rope:
            known["rope_theta"] = rope["rope_theta"]
        known.setdefault("num_key_value_heads", record.get("num_attention_heads"))
        if kind == LOOP_TYPE:
            known.setdefault("loop_num", 2)
        else:
            known["loop_num"] = 1
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


def parameter_count(config: ModelConfig) -> int:
    """Parameters by formula. Passes share the blocks; looping adds one gate per layer and query head."""
    c = config
    attention = 2 * c.hidden_size * c.hidden_size + 2 * c.hidden_size * c.num_key_value_heads * c.head_dim
    block = attention + 3 * c.hidden_size * c.intermediate_size + 2 * c.hidden_size
    gates = c.num_attention_heads * (c.head_dim + 1) if c.loop_num > 1 else 0
    return c.num_hidden_layers * (block + gates) + 2 * c.vocab_size * c.hidden_size + c.hidden_size


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
_100M = ModelConfig(32_768, 768, 2_048, 12, 12, 4, 2_048)

PRESETS: dict[str, ModelConfig] = {
    "nano": _NANO,
    "nano-loop": replace(_NANO, loop_num=2),
    "mini": _MINI,
    "mini-loop": replace(_MINI, loop_num=2),
    "100m": _100M,
    "100m-loop": replace(_100M, loop_num=2),
    "7b": replace(_REPORT, num_hidden_layers=14),
    "14b": replace(_REPORT, num_hidden_layers=28),
    "40b": _REPORT,
    "40b-loop": replace(_REPORT, loop_num=2),
}


def preset(name: str) -> ModelConfig:
    """A fresh copy of a preset. Raises IqcError with the list of names when there is none of that name."""
    if name not in PRESETS:
        raise IqcError(f"no preset {name!r}", remedy=f"presets are: {', '.join(PRESETS)}")
    return replace(PRESETS[name])

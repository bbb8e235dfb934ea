"""The shape of a model: one dataclass with the field names of a Hugging Face config.json, presets, parameter count.

Describes dense Llama-like decoders and their looped variant. What this decoder does not compute (biases, tied heads,
another RoPE scaling than YaRN, another activation) is refused when a config.json asks for it, not silently ignored.
"""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from iqc.errors import IqcError

DENSE_TYPES = ("llama", "iquestcoder")  # same tensors, same mathematics
LOOP_TYPE = "iquestloopcoder"
# What a YaRN scaling may say (Transformers' names), and the least that each may be.
YARN_LIMITS = {"factor": 1.0, "original_max_position_embeddings": 1, "beta_fast": 0.0, "beta_slow": 0.0,
               "attention_factor": 0.0, "mscale": 0.0, "mscale_all_dim": 0.0, "truncate": 0}  # fmt: skip


@dataclass(slots=True)
class ModelConfig:
    """`loop_num` passes over the same blocks; 1 is a dense model. A window counts the token itself.

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
        if self.rope_scaling is not None:
            self.rope_scaling = checked_yarn(self.rope_scaling, self.max_position_embeddings)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """Base and scaling together, as Transformers 5 has them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta} | (self.rope_scaling or {})

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The config.json that Transformers and vLLM read: a Llama when dense, IQuestLoopCoder when looped."""
        record = asdict(self)
        looped = self.loop_num > 1
        if not looped:
            del record["loop_num"], record["loop_window_size"]
        if self.rope_scaling is None:
            del record["rope_scaling"]
        else:  # Transformers 4 reads rope_scaling (old versions its "type"), Transformers 5 rope_parameters
            record["rope_scaling"] = self.rope_scaling | {"type": "yarn"}
            record["rope_parameters"] = self.rope_parameters
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


def rope_parameters(record: dict[str, Any]) -> dict[str, Any]:
    """Base and scaling of a config.json in either spelling; rope_type is always there. IqcError where two differ."""
    remedy = "leave one of the two, or make them equal"
    found: list[dict[str, Any]] = []
    for name in ("rope_parameters", "rope_scaling"):
        if not isinstance(record.get(name) or {}, dict):
            raise IqcError(f"config.json: {name} is {record[name]!r}", remedy="an object, or null")
        given = {key: value for key, value in (record.get(name) or {}).items() if value is not None}
        kinds = {given.pop(key) for key in ("rope_type", "type") if key in given} or {"default"}
        if len(kinds) > 1:
            raise IqcError(f"{name}: rope_type and type differ", remedy=remedy)
        if record.get(name):
            found.append({"rope_type": kinds.pop()} | given)
    bases = [rope["rope_theta"] for rope in [*found, record] if rope.get("rope_theta") is not None]
    scalings = [{key: value for key, value in rope.items() if key != "rope_theta"} for rope in found]
    if any(base != bases[0] for base in bases):
        raise IqcError("config.json has two values of rope_theta", remedy=remedy)
    if any(scaling != scalings[0] for scaling in scalings):
        raise IqcError("config.json: rope_parameters and rope_scaling differ", remedy=remedy)
    return (scalings[0] if scalings else {"rope_type": "default"}) | ({"rope_theta": bases[0]} if bases else {})


def checked_yarn(scaling: dict[str, Any], context: int) -> dict[str, Any]:
    """A YaRN scaling for a model of `context` tokens, or IqcError when a field is missing, unknown or contradicts."""

    def refuse(what: str) -> IqcError:
        return IqcError(f"rope_scaling: {what}", remedy="YaRN needs factor and original_max_position_embeddings")

    given = {key: value for key, value in scaling.items() if key not in ("rope_type", "type")}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind != "yarn":
        raise refuse(f"type {kind}")
    for name in ("factor", "original_max_position_embeddings"):
        if name not in given:
            raise refuse(f"{name} is missing")
    for name, value in given.items():
        if name not in YARN_LIMITS:
            raise refuse(f"{name} is unknown")
        if not isinstance(value, int | float) or isinstance(value, bool) != (name == "truncate"):
            raise refuse(f"{name} is {value!r}")
        if not YARN_LIMITS[name] <= value < math.inf:
            raise refuse(f"{name} is {value}")
    if given.get("beta_fast", 32) <= given.get("beta_slow", 1):
        raise refuse("beta_fast is not above beta_slow")
    reach = given["factor"] * given["original_max_position_embeddings"]
    if not given["original_max_position_embeddings"] <= context <= reach:
        raise refuse(
            f"max_position_embeddings {context} is not between original_max_position_embeddings and {reach:g}, "
            "which is factor times that"
        )
    return {"rope_type": "yarn"} | given


def extend_context(config: ModelConfig, factor: float) -> None:
    """Stretch the context by YaRN to `factor` times the one that the model was trained for without YaRN, in place."""
    scaling = config.rope_scaling or {"original_max_position_embeddings": config.max_position_embeddings}
    original = scaling["original_max_position_embeddings"]
    context = int(factor * original)
    if context < config.max_position_embeddings or factor <= 1:
        raise IqcError(
            f"a YaRN factor of {factor:g}, which makes a context of {context} from {original}",
            remedy=f"the model has {config.max_position_embeddings} already: take a larger factor",
        )
    kept = {key: value for key, value in scaling.items() if key != "attention_factor"}  # that of another factor
    config.rope_scaling = checked_yarn(kept | {"rope_type": "yarn", "factor": float(factor)}, context)
    config.max_position_embeddings = context


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

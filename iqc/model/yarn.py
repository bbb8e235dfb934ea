"""What a config.json says of rotary positions: Transformers 4 and 5 spell it in two ways; YaRN has its own fields."""

import math
from typing import Any

from iqc.errors import IqcError

# What a YaRN scaling may say (Transformers' names), and the least that each may be.
YARN_LIMITS = {"factor": 1.0, "original_max_position_embeddings": 1, "beta_fast": 0.0, "beta_slow": 0.0,
               "attention_factor": 0.0, "mscale": 0.0, "mscale_all_dim": 0.0, "truncate": 0}  # fmt: skip


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

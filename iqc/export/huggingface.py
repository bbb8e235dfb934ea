"""A model directory that others load: dense as the Llama it is, looped with its Python files beside it, experts in
the released names of BailingMoe with NormHead put into the head.

The looped model's files are this package's own modules, copied with their imports made relative: the mathematics has
one source. All other weights keep names and bytes, and the lineage goes with them. vLLM has an implementation of both.
"""

import json
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path

from iqc.errors import IqcError
from iqc.model.checkpoint import CONFIG, load_config, load_model, publish, write_model

COPIED = ("tokenizer.json", "tokenizer_config.json", "lineage.json")
CONFIGURATION, MODELING = "configuration_iquestloopcoder", "modeling_iquestloopcoder"
# The modules of ours that make up the looped model; beside the weights each keeps its own name.
SOURCES = (
    f"iqc.export.{CONFIGURATION}",
    f"iqc.export.{MODELING}",
    "iqc.errors",
    "iqc.kernels.causal_attention",
    "iqc.kernels.documents",
    "iqc.kernels.gated_window",
    "iqc.kernels.linear_cross_entropy",
    "iqc.kernels.loop_attention",
    "iqc.kernels.packed_attention",
    "iqc.kernels.partial_attention",
    "iqc.kernels.ring",
    "iqc.kernels.ring_attention",
    "iqc.kernels.zigzag",
    "iqc.model.cache",
    "iqc.model.debug",
    "iqc.model.experts",
    "iqc.model.rotary",
    "iqc.model.decoder",
)


def export(model_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]) -> None:
    """Write `out_dir` from a model directory: config, weights, tokenizer files and lineage, generation_config.json with
    the end-of-text ids, and for a looped model the Python files (use trust_remote_code=True).

    Raises IqcError when `out_dir` exists or `model_dir` is not a model directory.
    """
    source, target = Path(model_dir), Path(out_dir)
    config = load_config(source)
    if target.exists():
        raise IqcError("output exists", where=str(target), remedy="remove it or choose another name")
    record = json.loads((source / CONFIG).read_text())
    record = config.to_hf(record.get("dtype") or record.get("torch_dtype") or "float32")
    generation = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for file in sorted(source.iterdir()):
            if file.name in COPIED or (file.name.startswith("model") and not config.norm_head):
                shutil.copyfile(file, building / file.name)
        if config.norm_head:
            model = load_model(source)
            model.fold_norm_head()
            write_model(building, model)
            record = model.config.to_hf(record["torch_dtype"])
        if config.loop_num > 1:
            record["auto_map"] = {
                "AutoConfig": f"{CONFIGURATION}.IQuestLoopCoderConfig",
                "AutoModelForCausalLM": f"{MODELING}.IQuestLoopCoderForCausalLM",
            }
            generation["use_cache"] = False
            for name, text in remote_code().items():
                (building / name).write_text(text)
        (building / CONFIG).write_text(json.dumps(record, indent=2) + "\n")
        present = {key: value for key, value in generation.items() if value is not None}
        (building / "generation_config.json").write_text(json.dumps(present, indent=2) + "\n")
        publish(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def remote_code() -> dict[str, str]:
    """The Python files of a looped model: file name to text."""
    files = {}
    for module in SOURCES:
        package, _, name = module.rpartition(".")
        text = resources.files(package).joinpath(f"{name}.py").read_text()
        # Transformers' configuration class has every field that the decoder reads.
        text = text.replace(
            "from iqc.model.config import ModelConfig",
            f"from .{CONFIGURATION} import IQuestLoopCoderConfig as ModelConfig",
        )
        for other in SOURCES:
            text = text.replace(f"from {other} import", f"from .{other.rpartition('.')[2]} import")
        files[f"{name}.py"] = text
    return files

"""`iqc generate` and `iqc eval`: models and benchmarks over streams of records."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import orjson

from iqc.errors import IqcError
from iqc.evals.report import benchmark, report, score_completions
from iqc.model.checkpoint import load_model
from iqc.model.complete import Sampling, complete
from iqc.model.decoder import Decoder
from iqc.sandbox import Sandbox
from iqc.streams.lineage import Input
from iqc.streams.runner import Settings, StreamInput, read_records, write_records
from iqc.streams.stage import Record
from iqc.streams.writer import write_file
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tokenizer import load as load_tokenizer
from iqc.train.run import find_checkpoint, lineage_inputs, sha256


def open_model(path: str) -> tuple[Decoder, Tokenizer, Input]:
    """The model of a run, a checkpoint or a model directory, its tokenizer, and what lineage says of it."""
    place = find_checkpoint(path)
    lineage = lineage_inputs(place)
    weights = place / "model.safetensors"
    digest = lineage["output"]["digest"] if lineage else "sha256:" + sha256(weights) if weights.exists() else None
    return load_model(place), load_tokenizer(place), Input(digest, lineage=lineage, label="checkpoint")


def generate_records(settings: Settings, model: str, sampling: Sampling) -> None:
    """`iqc generate`: prompts in, completions out."""
    decoder, tokenizer, made_by = open_model(model)
    source = StreamInput(settings.inputs or [])
    prompts = read_records(source, skip_bad=settings.on_error != "fail")
    options = {key: value for key, value in asdict(sampling).items() if key not in ("seed", "batch")}
    completions = complete(decoder, tokenizer, prompts, sampling)
    write_records(
        "generate", options, settings, completions, lambda: [*source.results(), made_by], seed=sampling.seed
    )


def load_tasks(name: str, data: str) -> dict[str, Record]:
    """The tasks of a benchmark from a file in its own format, plain, gzip or zstd, by id."""
    if not Path(data).exists():
        raise IqcError("no such file", where=data, remedy=f"give the data of {name} in its own format with --data")
    return {task["id"]: task for task in benchmark(name).load(read_records(StreamInput([data])))}


def prompts(name: str, data: str) -> Iterator[Record]:
    """The benchmark's prompts as prompt records."""
    module = benchmark(name)
    for task in load_tasks(name, data).values():
        if name == "fim":  # the pieces, so that control tokens stay apart from what the source says
            yield {"id": task["id"], "prefix": task["prefix"], "suffix": task["suffix"]}
            continue
        asked = module.prompt(task)
        yield {"id": task["id"]} | ({"prompt": asked} if isinstance(asked, str) else {"messages": asked})


def score(name: str, data: str, completions: list[Record], ks: list[int], unsafe: bool) -> tuple[list[Record], dict]:
    """Completions with their scores, and the figures."""
    tasks = load_tasks(name, data)
    if name == "fim":
        scored = list(score_completions(name, tasks, completions, None))
    else:
        with Sandbox(unsafe=unsafe) as sandbox:
            scored = list(score_completions(name, tasks, completions, sandbox))
    return scored, {"benchmark": name} | report(tasks, scored, ks)


def run_benchmark(
    name: str, data: str, model: str, sampling: Sampling, settings: Settings, ks: list[int], unsafe: bool
) -> dict:
    """`iqc eval run`: prompts, completions and scores at once; the scored completions go to the output."""
    decoder, tokenizer, made_by = open_model(model)
    completions = list(complete(decoder, tokenizer, prompts(name, data), sampling))
    scored, figures = score(name, data, completions, ks, unsafe)
    if settings.output:
        options = {"benchmark": name} | {k: v for k, v in asdict(sampling).items() if k not in ("seed", "batch")}
        write_records("eval", options, settings, scored, lambda: [made_by], seed=sampling.seed)
    return figures


def write_figures(figures: dict, path: str | None) -> None:
    """The figures as JSON for --summary, and as lines for a person."""
    if path:
        write_file(path, orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    for key, value in figures.items():
        shown = f"{value['mean']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]" if isinstance(value, dict) else value
        print(f"{key:<16} {shown}")

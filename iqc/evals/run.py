"""`iqc generate`, `iqc eval` and `iqc model logprobs`: models and benchmarks over streams of records."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import orjson

from iqc.errors import BadRecord, IqcError, UsageError
from iqc.evals.report import benchmark, report, score_completions
from iqc.model.checkpoint import load_model
from iqc.model.complete import Sampling, complete, prompt_stage
from iqc.model.decoder import Decoder
from iqc.model.score import logprobs_stage
from iqc.sandbox import Sandbox
from iqc.streams.lineage import Input
from iqc.streams.runner import Settings, StreamInput, read_records, run_stage, write_records
from iqc.streams.stage import Record, require
from iqc.streams.writer import write_file
from iqc.tokens.tokenizer import Tokenizer
from iqc.tokens.tokenizer import load as load_tokenizer
from iqc.train.run import find_checkpoint, lineage_inputs, weights_digest


def open_model(path: str) -> tuple[Decoder, Tokenizer, Input]:
    """The model of a run, a checkpoint or a model directory, its tokenizer, and what lineage says of it."""
    place = find_checkpoint(path)
    return load_model(place), load_tokenizer(place), checkpoint_input(place)


def checkpoint_input(place: Path) -> Input:
    lineage = lineage_inputs(place)
    digest = lineage["output"]["digest"] if lineage else weights_digest(place)
    return Input(digest, lineage=lineage, label="checkpoint")


class PromptInput(StreamInput):
    """Streams of prompts; lineage names the model beside them."""

    def __init__(self, names: list[str], model: Input, digest: str | None = None):
        super().__init__(names, digest)
        self.model = model

    def results(self) -> list[Input]:
        return [*super().results(), self.model]


def sampled_by(sampling: Sampling) -> dict:
    """What decides the completions, as lineage has it."""
    return {key: value for key, value in asdict(sampling).items() if key not in ("seed", "batch")}


def generate_records(settings: Settings, model: str, sampling: Sampling) -> None:
    """`iqc generate`: prompts in, completions out."""
    decoder, tokenizer, made_by = open_model(model)
    settings.jobs = 1  # the work is the model's, which is in this process
    run_stage(
        "generate",
        sampled_by(sampling),
        settings,
        partial(prompt_stage, tokenizer, decoder.config.max_position_embeddings - sampling.max_new_tokens),
        source=PromptInput(settings.inputs or [], made_by),
        seed=sampling.seed,
        reduce=partial(complete, decoder, tokenizer, sampling),
    )


def score_records(settings: Settings, model: str, inputs: list[str]) -> None:
    """`iqc model logprobs`: records with ids in, the same with their log-probabilities out."""
    settings = replace(settings, inputs=inputs)
    place = find_checkpoint(model)
    made_by = checkpoint_input(place)
    source = PromptInput(inputs, made_by, settings.input_digest)
    run_stage("model-logprobs", {"model": made_by.digest}, settings, partial(logprobs_stage, place), source=source)


def load_tasks(name: str, data: str) -> tuple[dict[str, Record], list[Input]]:
    """The tasks of a benchmark from a file in its own format, plain, gzip or zstd, by id; what lineage says of it."""
    if not Path(data).exists():
        raise IqcError("no such file", where=data, remedy=f"give the data of {name} in its own format with --data")
    source = StreamInput([data])
    tasks = {require(task, "id"): task for task in benchmark(name).load(read_records(source))}
    return tasks, source.results()


def write_prompts(name: str, data: str, settings: Settings) -> None:
    """`iqc eval prompts`: the benchmark's prompts as prompt records."""
    tasks, inputs = load_tasks(name, data)
    write_records("eval-prompts", {"benchmark": name}, settings, prompts(name, tasks), lambda: inputs)


def prompts(name: str, tasks: dict[str, Record]) -> Iterator[Record]:
    """The prompt records of tasks."""
    module = benchmark(name)
    for task in tasks.values():
        yield {"id": task["id"]} | module.prompt(task)


def score(
    name: str, tasks: dict[str, Record], completions: list[Record], ks: list[int], unsafe: bool
) -> tuple[list[Record], dict]:
    """Completions with their scores, and the figures."""
    if min(ks) < 1:
        raise UsageError(f"pass@{min(ks)}", remedy="-k takes numbers from 1, such as 1,10")
    for number, completion in enumerate(completions, 1):
        for field in ("task_id", "text"):
            if not isinstance(completion.get(field), str):
                raise BadRecord(f'no "{field}"', where=f"completion {number}", remedy="give what `iqc generate` writes")
    if not benchmark(name).RUNS_CODE:
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
    encoded = prompt_stage(tokenizer, decoder.config.max_position_embeddings - sampling.max_new_tokens)
    tasks, inputs = load_tasks(name, data)
    pairs = (pair for record in prompts(name, tasks) for pair in encoded(record))
    completions = list(complete(decoder, tokenizer, sampling, pairs))
    scored, figures = score(name, tasks, completions, ks, unsafe)
    if settings.output:
        options = {"benchmark": name} | sampled_by(sampling)
        write_records("eval", options, settings, scored, lambda: [*inputs, made_by], seed=sampling.seed)
    return figures


def write_figures(figures: dict, path: str | None) -> None:
    """The figures as JSON for --summary, and as lines for a person."""
    if path:
        write_file(path, orjson.dumps(figures, option=orjson.OPT_INDENT_2) + b"\n")
    for key, value in figures.items():
        shown = f"{value['mean']:.4f}  [{value['low']:.4f}, {value['high']:.4f}]" if isinstance(value, dict) else value
        print(f"{key:<16} {shown}")

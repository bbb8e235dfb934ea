"""Prompt records in, completion records out: encode, sample in batches, decode.

A prompt record is a chat (`messages`, answered in ChatML), a hole (`prefix` and `suffix`, in FIM form) or a text
(`prompt`, continued). Its completion is `{id, task_id, sample, text, completion, finish_reason, usage}`.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from iqc.errors import BadRecord, UsageError
from iqc.model.decoder import Decoder
from iqc.model.generate import generate
from iqc.streams.stage import Record, Transform, require
from iqc.tokens.chat import answer_header, chat_segments
from iqc.tokens.segments import Segment, control, text
from iqc.tokens.special import EOS, PAD
from iqc.tokens.tokenizer import Tokenizer


@dataclass(slots=True, frozen=True)
class Sampling:
    """How completions are drawn; temperature 0 is greedy. `batch`: prompts in the model at a time."""

    samples: int = 1
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    batch: int = 64


def prompt_segments(record: Record) -> list[Segment]:
    """What the model reads before it writes. BadRecord when the record is no prompt."""
    if "messages" in record:
        return [*chat_segments(record), *answer_header(record)]
    if isinstance(record.get("prefix"), str) and isinstance(record.get("suffix"), str):
        hole = [control("<|fim_prefix|>"), text(record["prefix"]), control("<|fim_suffix|>"), text(record["suffix"])]
        return [*hole, control("<|fim_middle|>")]
    if isinstance(record.get("prompt"), str):
        return [text(record["prompt"])]
    raise BadRecord("no prompt", remedy="a prompt record has messages, prefix and suffix, or prompt")


def encode(segments: Iterable[Segment], tokenizer: Tokenizer) -> list[int]:
    """Token ids of segments, each encoded on its own."""
    ids: list[int] = []
    for segment in segments:
        ids += [tokenizer.control[segment.value]] if segment.is_control else tokenizer.encode_ordinary(segment.value)
    return ids


def prompt_ids(record: Record, tokenizer: Tokenizer, room: int) -> list[int]:
    """The prompt's tokens; a hole that is too long keeps what is nearest to it, anything else is refused.

    `room`: tokens that the prompt may take.
    """
    ids = encode(prompt_segments(record), tokenizer) or [tokenizer.control[PAD]]
    if len(ids) <= room:
        return ids
    if "prefix" not in record:
        raise BadRecord(f"a prompt of {len(ids)} tokens, where {room} fit", remedy="ask for fewer --max-new-tokens")
    before, after = tokenizer.encode_ordinary(record["prefix"]), tokenizer.encode_ordinary(record["suffix"])
    half = (room - 3) // 2
    kept_after = after[: max(half, room - 3 - len(before))]
    kept_before = before[max(0, len(before) - (room - 3 - len(kept_after))) :]
    first, second, third = (tokenizer.control[f"<|fim_{part}|>"] for part in ("prefix", "suffix", "middle"))
    return [first, *kept_before, second, *kept_after, third]


def sample_seed(seed: int, record_id: str, sample: int) -> int:
    """The seed of one completion: it depends on nothing else, so not on the batch."""
    digest = hashlib.sha256(f"{seed}\0generate\0{record_id}\0{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


Prompt = tuple[Record, list[int]]  # a prompt record and its tokens


def prompt_stage(tokenizer: Tokenizer, room: int) -> Transform:
    """The map of `generate`: a prompt record to itself and its tokens, `room` at most; UsageError without room."""
    if room < 1:
        raise UsageError("no room for a prompt", remedy="ask for fewer --max-new-tokens than the model's context")

    def transform(record: Record) -> Iterable[Prompt]:
        require(record, "id")
        yield record, prompt_ids(record, tokenizer, room)

    return transform


def complete(model: Decoder, tokenizer: Tokenizer, sampling: Sampling, prompts: Iterable[Prompt]) -> Iterator[Record]:
    """The completions of prompts, in order, `samples` of each."""
    stop = (tokenizer.control[EOS], tokenizer.control[PAD])
    model.eval()
    pending = ((*prompt, sample) for prompt in prompts for sample in range(sampling.samples))
    while batch := list(islice(pending, sampling.batch)):
        done = generate(
            model,
            [ids for _, ids, _ in batch],
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=stop,
            seeds=[sample_seed(sampling.seed, record["id"], sample) for record, _, sample in batch],
        )
        for (record, prompt, sample), completion in zip(batch, done):
            ids = completion.tokens[:-1] if completion.finish_reason == "stop" else completion.tokens
            written = tokenizer.decode(ids)
            yield {
                "id": f"{record['id']}#{sample}",
                "task_id": record["id"],
                "sample": sample,
                "text": written,
                "completion": written,
                "finish_reason": completion.finish_reason,
                "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(completion.tokens)},
            }

"""The stage as the runner runs it: the same rows by any number of processes and in shards, and what is said of them."""

import json
from functools import partial

import numpy as np
import pytest

from iqc.streams.runner import Settings, StreamInput, read_records, run_stage
from iqc.tokens.pack import Packer
from iqc.tokens.sequence import decode_sequence
from iqc.tokens.stages import packing, tokenise_stage
from iqc.tokens.tokenise import line_ends
from iqc.tokens.upsample import Upsampling

CALL = {"id": "1", "function": {"name": "run", "arguments": {"a": 1}}}
TURNS = [
    {"role": "user", "content": "Run it."},
    {"role": "assistant", "content": "So.", "tool_calls": [CALL]},
    {"role": "tool", "content": "Error: no such thing"},
    {"role": "assistant", "content": "It failed."},
]


def records(sources):
    """All kinds, and of each some that a rule drops."""
    for number, text in enumerate(sources[0].split("\n\n") * 2):
        yield {"id": f"d{number}", "text": text, "source": "ab"[number % 2]}
        if number % 5 == 0:
            turns = [turn | {"content": turn["content"] + text[:number]} for turn in TURNS]
            yield {"id": f"c{number}", "messages": turns}
            yield {"id": f"p{number}", "prompt": text[:40], "chosen": "Yes" + text[:20], "rejected": "No"}
            nodes = [turn | {"id": n, "parent": n - 1 if n else None} for n, turn in enumerate(turns)]
            nodes.append({"id": 4, "parent": 0, "role": "assistant", "content": "No."})
            yield {"id": f"t{number}", "nodes": nodes}
        if number % 20 == 0:
            yield {"id": f"e{number}", "text": ""}
            yield {"id": f"r{number}", "messages": [{"role": "critic", "content": "<think>"}]}
            yield {"id": f"s{number}", "text": "it says <|im_end|>"}
    yield {"id": "long", "text": sources[1]}


def pack(saved, stream, output, *, jobs=1, upsample=False, **asked):
    from iqc.tokens.tokenizer import load

    packer = Packer(256, window=64, line_ends=line_ends(load(saved)))
    reduce, measured = packing(packer, Upsampling(100, 2.5, window=64) if upsample else None)
    options = {"context": 256, "trees": "trie", "mask_errors": True}
    settings = Settings([str(stream)], str(output), jobs=jobs, quiet=True, **asked)
    factory = partial(tokenise_stage, str(saved), **options)
    return run_stage("pack", options, settings, factory, reduce=reduce, measure=measured), packer.stats


@pytest.fixture(scope="module")
def stream(sources, make_stream, tmp_path_factory):
    return make_stream(tmp_path_factory.mktemp("pack") / "in.zst", records(sources), per_frame=30)


@pytest.mark.parametrize("upsample", [False, True])
def test_the_bytes_do_not_depend_on_the_number_of_processes(saved, stream, tmp_path, upsample):
    for jobs in (1, 4):
        pack(saved, stream, tmp_path / f"{jobs}.zst", jobs=jobs, explain=str(tmp_path / f"x{jobs}"), upsample=upsample)
    assert (tmp_path / "1.zst").read_bytes() == (tmp_path / "4.zst").read_bytes()
    assert (tmp_path / "x1").read_bytes() == (tmp_path / "x4").read_bytes()


def test_shards_hold_the_rows_of_one_file(saved, stream, tmp_path):
    counts, _ = pack(saved, stream, tmp_path / "one.zst")
    sharded, _ = pack(saved, stream, f"{tmp_path}/rows/", jobs=2, shard_mib=1)
    one, many = (list(read_records(StreamInput([str(tmp_path / name)]))) for name in ("one.zst", "rows"))
    assert one == many and counts.json() == sharded.json()
    manifest = json.loads((tmp_path / "rows/manifest.json").read_text())
    assert manifest["output"]["records"] == len(one)


def test_the_summary_says_what_became_of_all(saved, stream, sources, tmp_path):
    counts, stats = pack(saved, stream, tmp_path / "out.zst", explain=str(tmp_path / "x"), summary=str(tmp_path / "s"))
    summary = json.loads((tmp_path / "s").read_text())
    rows = [decode_sequence(record) for record in read_records(StreamInput([str(tmp_path / "out.zst")]))]
    explained = list(read_records(StreamInput([str(tmp_path / "x")])))
    assert summary["tokens"] == sum(row.tokens.size for row in rows) == sum(summary["by_kind"].values())
    assert summary["learnt"] == sum(int(np.count_nonzero(row.loss)) for row in rows)
    assert summary["longest"] == max(row.tokens.size for row in rows)
    assert summary["dropped"] == dict(sorted(counts.dropped.items())) and {"empty", "unknown_role"} <= set(
        counts.dropped
    )
    assert sorted(one["dropped"]["rule"] for one in explained) == sorted(counts.dropped.elements())
    assert summary["noted"]["control_token_in_text"] == sum(
        f"s{n}" == one for n in range(0, 999, 20) for one in ids(rows)
    )
    assert summary["noted"]["failed_call_error_head"] > 5
    assert summary["split"] >= 1 and summary["fill"] > 0.97 and stats.samples < counts.read
    wanted = {record["id"] for record in records(sources)} - {one["id"] for one in explained}
    found = {name.partition("#")[0] for name in ids(rows)}
    assert found <= wanted and all(name[0] == "t" for name in wanted - found)  # a tree all of whose paths are dropped


def ids(rows):
    return [name for row in rows for name in row.ids]


def test_long_samples_are_taken_more_often(saved, stream, tmp_path):
    counts, _ = pack(saved, stream, tmp_path / "out.zst", upsample=True)
    rows = [decode_sequence(record) for record in read_records(StreamInput([str(tmp_path / "out.zst")]))]
    copies = [name for name in ids(rows) if "~" in name and not name.endswith("#rejected")]
    assert counts.extra["copies"] > 0 and counts.dropped["thinned"] > 0
    assert len({name.partition("#")[0] for name in copies}) == counts.extra["copies"]

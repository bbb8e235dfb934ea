"""Fine-tuning end to end, from conversations through packing to the loss of an update: failed calls of tools teach
nothing, and what the paths of a tree share teaches once, or once for each."""

import pytest
import torch

from iqc.model.checkpoint import load_model
from iqc.model.config import PRESETS, ModelConfig
from iqc.tokens import tokenizer
from iqc.tokens.dataset import open_dataset
from iqc.train.run import find_checkpoint, read_metrics

CONTEXT = 512


@pytest.fixture(autouse=True)
def _wide(monkeypatch, _tiny):
    monkeypatch.setitem(PRESETS, "tiny", ModelConfig(400, 32, 64, 2, 4, 2, CONTEXT, loop_num=2, loop_window_size=16))


@pytest.fixture(scope="module")
def start(room, tmp_path_factory):
    """Untrained weights as a checkpoint that every stage takes, since it says nothing of a stage."""
    place = tmp_path_factory.mktemp("start")
    PRESETS["tiny"] = ModelConfig(400, 32, 64, 2, 4, 2, CONTEXT, loop_num=2, loop_window_size=16)
    try:
        made = find_checkpoint(room.train(place / "run", steps=0, epochs=0.0))
    finally:
        del PRESETS["tiny"]
    (made / "run.json").unlink()
    return made


def call(number: int, name: str) -> dict:
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": f'{{"line": {number}}}'}}


def result(number: int, content: str) -> dict:
    return {"role": "tool", "tool_call_id": f"c{number}", "content": content}


def learnt(room, start, place, name: str, records: list[dict], **asked) -> tuple[float, float]:
    """(sum of the losses, tokens) of one update over all that is packed of the records, from the starting weights."""
    rows = room.pack_records(name, records, context=CONTEXT, **asked)
    with open_dataset([str(rows)])[0] as dataset:
        size = len(dataset)
    run = room.train(place / name, rows, stage="sft-instruct", start=start, steps=1, batch_rows=size)
    (line,) = read_metrics(run)
    return line["loss"] * line["tokens"], line["tokens"]


TALK = [
    {"role": "user", "content": "Fix it."},
    {"role": "assistant", "content": "I look.", "tool_calls": [call(1, "read"), call(2, "open")]},
    result(1, "def f(): pass"),
    result(2, "Traceback (most recent call last):\nOSError: no such file"),
    {"role": "assistant", "content": "It is fixed."},
]


def test_a_failed_call_teaches_nothing_and_all_else_does(room, start, tmp_path):
    whole = learnt(room, start, tmp_path, "whole", [{"id": "a", "messages": TALK}])
    masked = learnt(room, start, tmp_path, "masked", [{"id": "a", "messages": TALK}], mask_errors=True)
    # The tokens between, by the text of the row: from the second call's beginning to its end.
    tokens = tokenizer.load(room.place / "tokenizer")
    with open_dataset([str(room.place / "whole.zst")])[0] as dataset:
        (row,) = dataset.rows(torch.arange(1).numpy())
    ids = row.tokens.tolist()
    texts = [tokens.decode([token]) for token in ids]
    begins = [at for at in range(len(ids)) if "".join(texts[at:]).startswith("<tool_call>")]
    ends = [at for at in range(1, len(ids) + 1) if "".join(texts[:at]).endswith("</tool_call>")]
    assert len(begins) == len(ends) == 2
    span = range(begins[1], ends[1])
    assert '"open"' in "".join(texts[span.start : span.stop])
    with torch.no_grad():
        scores = load_model(start).token_logprobs(torch.tensor([ids]))[0]
    assert whole[1] - masked[1] == len(span)
    assert whole[0] - masked[0] == pytest.approx(-scores[span.start : span.stop].sum().item(), rel=1e-4)


def test_a_call_with_a_loss_of_its_own_keeps_it(room, start, tmp_path):
    said = [dict(message) for message in TALK]
    said[1] = said[1] | {"tool_calls": [call(1, "read"), call(2, "open") | {"loss": True}]}
    asked = learnt(room, start, tmp_path, "asked", [{"id": "a", "messages": said}], mask_errors=True)
    assert asked == learnt(room, start, tmp_path, "plain", [{"id": "a", "messages": TALK}])


NODES = [
    {"id": "q", "parent": None, "role": "user", "content": "Fix it."},
    {"id": "a", "parent": "q", "role": "assistant", "content": "I look into the file."},
    {"id": "u1", "parent": "a", "role": "user", "content": "And?"},
    {"id": "x", "parent": "u1", "role": "assistant", "content": "It is fixed."},
    {"id": "u2", "parent": "a", "role": "user", "content": "Stop."},
    {"id": "y", "parent": "u2", "role": "assistant", "content": "I stopped."},
]


def test_paths_of_a_tree_teach_what_they_share_once_or_once_for_each(room, start, tmp_path):
    def chat(*names: str) -> list[dict]:
        found = [next(node for node in NODES if node["id"] == name) for name in names]
        return [{"role": node["role"], "content": node["content"]} for node in found]

    tree = [{"id": "t", "nodes": NODES}]
    each = learnt(room, start, tmp_path, "each", tree, shared="each")
    once = learnt(room, start, tmp_path, "once", tree, shared="once")
    paths = [chat("q", "a", "u1", "x"), chat("q", "a", "u2", "y")]
    records = [{"id": f"p{number}", "messages": messages} for number, messages in enumerate(paths)]
    apart = learnt(room, start, tmp_path, "apart", records)
    shared = learnt(room, start, tmp_path, "shared", [{"id": "s", "messages": chat("q", "a")}])
    assert each[1] == apart[1] and each[0] == pytest.approx(apart[0], rel=1e-5)
    assert once[1] == apart[1] - shared[1] and once[0] == pytest.approx(apart[0] - shared[0], rel=1e-4)

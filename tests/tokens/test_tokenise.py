import json

import numpy as np
import pytest

from iqc.errors import BadRecord, UsageError
from iqc.streams.stage import Dropped, Noted
from iqc.tokens.pack import Encoded
from iqc.tokens.special import CONTROL
from iqc.tokens.tokenise import Options, line_ends, samples, tokenise

USER, YES, NO = (
    {"role": r, "content": c} for r, c in (("user", "Is it?"), ("assistant", "Yes."), ("assistant", "No!"))
)
PAIR = {"id": "p", "prompt": [USER], "chosen": [YES], "rejected": [NO]}


def only(record, tok, **options):
    """The one sample, drop or error of a record."""
    (out,) = [one for one in samples(record, tok, Options(**options)) if not isinstance(one, Noted)]
    return out


def test_a_pair_is_two_chats_in_one_sample(tok):
    out = only(PAIR, tok)
    assert out.kind == "preference" and out.row.ids == ["p#chosen", "p#rejected"]
    at = 0
    for size, answer in zip(out.row.lengths, (YES, NO)):
        alone = tokenise({"id": "c", "messages": [USER, answer]}, tok)
        assert out.row.tokens[at : at + size].tolist() == alone.tokens.tolist()
        assert out.row.loss[at : at + size].tolist() == alone.loss.tolist()
        at += size
    assert at == out.row.tokens.size


def test_the_prompt_of_a_pair_is_not_learnt(tok):
    talk = [USER, {"role": "assistant", "content": "Well"}, USER]
    out = only(PAIR | {"prompt": talk}, tok)
    assert tok.decode(out.row.tokens[out.row.loss > 0]) == "Yes.<|im_end|>No!<|im_end|>"
    talk[1] = talk[1] | {"loss": True}
    out = only(PAIR | {"prompt": talk}, tok)
    assert tok.decode(out.row.tokens[out.row.loss > 0]) == "Well<|im_end|>Yes.<|im_end|>Well<|im_end|>No!<|im_end|>"


def test_a_pair_in_plain_text_is_the_pair_in_messages(tok):
    plain = {"id": "p", "prompt": "Is it?", "chosen": "Yes.", "rejected": "No!"}
    assert only(plain, tok).row.tokens.tolist() == only(PAIR, tok).row.tokens.tolist()


@pytest.mark.parametrize("field", ["prompt", "chosen", "rejected"])
@pytest.mark.parametrize("value", [5, None, [5], {"role": "user"}])
def test_a_part_of_a_pair_that_is_no_conversation_is_refused(tok, field, value):
    with pytest.raises(BadRecord, match=field) as found:
        only(PAIR | {field: value}, tok)
    assert found.value.remedy


LONG = {
    "document": {"text": "word " * 50},
    "repository": {"repo": "o/r", "files": [{"path": "a", "text": "word " * 50}]},
}
LONG |= {"chat": {"messages": [USER, YES | {"content": "word " * 50}]}, "preference": PAIR | {"chosen": "word " * 50}}
LONG |= {"fim": {"prefix": "word " * 50, "middle": "m", "suffix": "s"}}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("long", ["split", "drop"])
def test_longer_than_the_context(tok, kind, long):
    out = only(LONG[kind] | {"id": "l"}, tok, context=40, long=long)
    if long == "split" and kind in ("document", "repository"):
        assert isinstance(out, Encoded) and out.row.tokens.size > 40
    else:
        assert isinstance(out, Dropped) and out.rule == "longer_than_context" and out.value > out.threshold == 40
        assert out.record == LONG[kind] | {"id": "l"}  # all of it, for --explain


@pytest.mark.parametrize(
    "record, rule",
    [
        ({"text": ""}, "empty"),
        ({"prefix": "", "middle": "", "suffix": ""}, "empty"),
        ({"messages": []}, "empty"),
        ({"nodes": []}, "empty"),
        ({"prompt": "x", "chosen": "", "rejected": "y"}, "empty"),
        ({"prompt": "x", "chosen": "y", "rejected": []}, "empty"),
        ({"repo": "o/r", "files": []}, "empty"),
        ({"repo": "o/r", "files": [{"path": "logo", "text": None}]}, "empty"),
        ({"repo": "o/r", "old": {"files": []}, "patch": "", "messages": []}, "empty"),
        ({"messages": [USER]}, "nothing_to_learn"),
        ({"messages": [USER, YES | {"loss": False}]}, "nothing_to_learn"),
        ({"messages": [USER, YES | {"loss": 0}]}, "nothing_to_learn"),
        ({"nodes": [USER | {"id": 1, "parent": None}]}, "path_with_nothing_new"),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "equal_pair"),
        ({"messages": [USER, {"role": "critic", "content": ""}]}, "unknown_role"),
        ({"prompt": [USER], "chosen": [{"role": "critic", "content": "x"}], "rejected": "y"}, "unknown_role"),
        ({"nodes": [{"id": 1, "parent": None, "role": "critic", "content": "x"}]}, "unknown_role"),
    ],
)
def test_records_that_a_rule_drops(tok, record, rule):
    out = only(record | {"id": "a"}, tok)
    assert isinstance(out, Dropped) and out.rule == rule


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), 1e39, "1", None, [1]])
def test_weights_that_are_none_are_refused(tok, weight):
    for message in (
        YES | {"loss": weight},
        YES | {"tool_calls": [{"function": {"name": "f", "arguments": {}}, "loss": weight}]},
    ):
        for record in ({"messages": [USER, message]}, PAIR | {"chosen": [message]}):
            with pytest.raises(BadRecord, match="loss is") as found:
                only(record | {"id": "a"}, tok)
            assert found.value.remedy


def test_a_weight_of_a_call_is_that_of_its_tokens(tok):
    call = {"function": {"name": "f", "arguments": {}}, "loss": 0.25}
    row = only({"id": "c", "messages": [USER, YES | {"tool_calls": [call]}]}, tok).row
    assert tok.decode(row.tokens[row.loss == 0.25]) == '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    assert tok.decode(row.tokens[row.loss == 1]) == "Yes.\n<|im_end|>"


@pytest.mark.parametrize("record", [{"text": "a \ud800"}, {"messages": [USER, YES | {"content": "\udfff"}]}])
def test_a_lone_surrogate_is_refused(tok, record):
    with pytest.raises(BadRecord, match="surrogate"):
        only(record | {"id": "a"}, tok)


@pytest.mark.parametrize("token", CONTROL)
def test_a_control_token_in_text_is_text_and_noted(tok, token):
    records = [{"text": f"a {token}"}, {"messages": [USER | {"content": token}, YES]}, PAIR | {"chosen": token}]
    records.append({"nodes": [USER | {"id": 1, "parent": None, "content": token}, YES | {"id": 2, "parent": 1}]})
    for record in records:
        out = list(samples(record | {"id": "a"}, tok, Options()))
        assert [one.what for one in out if isinstance(one, Noted)] == ["control_token_in_text"]
        clean = json.loads(json.dumps(record).replace(token, "x"))
        (row,), (other,) = (
            [one.row for one in samples(one | {"id": "a"}, tok, Options()) if isinstance(one, Encoded)]
            for one in (record, clean)
        )
        controls = sorted(tok.control.values())
        assert np.isin(row.tokens, controls).sum() == np.isin(other.tokens, controls).sum()


def test_nothing_is_noted_of_a_record_that_is_dropped(tok):
    out = list(samples({"id": "a", "text": "<think> " * 100}, tok, Options(context=8, long="drop")))
    assert [type(one) for one in out] == [Dropped]


def test_which_tokens_end_a_line(tok):
    ends = line_ends(tok)
    assert ends.size == tok.vocab_size and 1 < ends.sum() < ends.size
    for number in np.flatnonzero(ends):
        assert tok.bytes([int(number)]).endswith(b"\n")
    tokens = tok.encode_array("a\nb\n\nc")
    assert tok.bytes(tokens[: np.flatnonzero(ends[tokens])[-1] + 1]) == b"a\nb\n\n"


@pytest.mark.parametrize("options", [{"long": "keep"}, {"trees": "forest"}, {"shared": "twice"}])
def test_wrong_options(options):
    with pytest.raises(UsageError):
        Options(**options)

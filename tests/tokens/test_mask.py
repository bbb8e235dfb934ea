import json
import tarfile

import numpy as np
import pytest

from iqc.streams.stage import Noted
from iqc.tokens.mask import failure, mask_errors
from iqc.tokens.pack import Encoded
from iqc.tokens.tokenise import Options, samples

CALLS = [{"id": name, "function": {"name": "run", "arguments": {"command": name}}} for name in ("x", "y")]
ANSWER = {"role": "assistant", "content": "Let me see.", "tool_calls": CALLS}
BAD, GOOD = {"role": "tool", "content": "Error: no x"}, {"role": "tool", "content": "all right"}
QUESTION = {"role": "user", "content": "Do."}
REPAIR = {"role": "assistant", "content": "Again.", "tool_calls": CALLS[1:]}


def masked(messages):
    """The arguments of the calls whose loss is taken away."""
    found = mask_errors(messages)[0]
    return [
        call["function"]["arguments"]["command"]
        for message in found
        for call in message.get("tool_calls") or []
        if call.get("loss") is False
    ]


def sample(record, tok, **options):
    out = list(samples(record, tok, Options(**options)))
    return next(one.row for one in out if isinstance(one, Encoded)), [o.what for o in out if isinstance(o, Noted)]


def test_only_the_failed_call_is_not_learnt(tok):
    record = {"id": "c", "messages": [QUESTION, ANSWER, BAD, GOOD, REPAIR, GOOD, {"role": "assistant", "content": "."}]}
    plain, _ = sample(record, tok)
    row, notes = sample(record, tok, mask_errors=True)
    assert row.tokens.tolist() == plain.tokens.tolist() and notes == ["failed_call_error_head"]
    lost = (plain.loss > 0) & (row.loss == 0)
    assert tok.decode(row.tokens[lost]) == ('<tool_call>\n{"name": "run", "arguments": {"command": "x"}}\n</tool_call>')
    assert (np.diff(np.flatnonzero(lost)) == 1).all() and not ((plain.loss == 0) & (row.loss > 0)).any()


@pytest.mark.parametrize(
    "results, lost",
    [
        ([BAD, GOOD], ["x"]),
        ([GOOD, BAD], ["y"]),
        ([BAD | {"tool_call_id": "y"}, GOOD | {"tool_call_id": "x"}], ["y"]),
        ([BAD | {"tool_call_id": "y"}, BAD], ["x", "y"]),
        ([BAD | {"tool_call_id": "z"}], []),
        ([BAD], ["x"]),
        ([QUESTION, BAD], []),
        ([BAD, BAD, BAD], ["x", "y"]),
    ],
)
def test_calls_and_results_meet_by_id_or_by_order(results, lost):
    assert masked([QUESTION, ANSWER, *results]) == lost


def test_a_loss_that_is_given_rules():
    assert masked([QUESTION, ANSWER | {"loss": True}, BAD, BAD]) == []
    given = ANSWER | {"tool_calls": [CALLS[0] | {"loss": True}, CALLS[1]]}
    assert masked([QUESTION, given, BAD, BAD]) == ["y"]


def test_two_calls_of_one_id_are_two_calls():
    assert masked([ANSWER | {"tool_calls": [CALLS[0], CALLS[0]]}, GOOD, BAD | {"tool_call_id": "x"}]) == ["x"]


@pytest.mark.parametrize(
    "result, rule",
    [
        ({"content": "<returncode>1</returncode>\n<output>x"}, "returncode_tag"),
        ({"content": "<returncode>0</returncode>\n<output>Error: x"}, None),
        ({"content": "<returncode>-9</returncode>"}, "returncode_tag"),
        ({"content": "make: ...\n[exit code: 2]"}, "exit_code_line"),
        ({"content": "Error: x\nExit code 0\n"}, None),
        ({"content": "Error: x", "returncode": 0}, None),
        ({"content": "fine", "extra": {"returncode": 1}}, "extra.returncode"),
        ({"content": "", "extra": {"returncode": 0, "exception_info": "Timeout"}}, None),
        ({"content": "", "extra": {"exception_info": "Timeout"}}, "extra.exception_info"),
        ({"content": "", "extra": {"exception_info": ""}}, None),
        ({"content": "", "is_error": True}, "is_error"),
        ({"content": "", "status": "Failed"}, "status"),
        ({"content": "", "status": "done"}, None),
        ({"content": '{"success": false, "data": 1}'}, "success"),
        ({"content": '{"error": "no such user"}'}, "error"),
        ({"content": '{"error": null, "user": 1}'}, None),
        ({"content": '{"broken'}, None),
        ({"content": "Traceback (most recent call last):\n  File"}, "traceback_head"),
        ({"content": "The log has\nTraceback (most recent call last):"}, None),
        ({"content": "ValueError: invalid"}, "exception_head"),
        ({"content": "json.decoder.JSONDecodeError: Expecting"}, "exception_head"),
        ({"content": "Errors are in the log"}, None),
        ({"content": "ERROR: not found"}, "error_head"),
        ({"content": None}, None),
        ({}, None),
    ],
)
def test_what_says_that_a_call_failed(result, rule):
    assert failure({"role": "tool"} | result) == rule


@pytest.mark.parametrize(
    "messages", ["x", [1], [ANSWER | {"tool_calls": "x"}, BAD], [ANSWER | {"tool_calls": [1]}, BAD]]
)
def test_what_is_no_conversation_is_passed_over(messages):
    assert mask_errors(messages) == (messages, {})


def test_a_call_that_failed_on_one_path_alone_is_learnt(tok):
    def tree(*results):
        nodes = [QUESTION | {"id": 0, "parent": None}, ANSWER | {"id": 1, "parent": 0, "tool_calls": CALLS[:1]}]
        for number, result in enumerate(results, start=2):
            nodes += [result | {"id": number, "parent": 1}]
            nodes += [{"id": -number, "parent": number, "role": "assistant", "content": "So."}]
        return {"id": "t", "nodes": nodes}

    for layout in ("paths", "trie"):
        learnt = {}
        for name, results in {"bad": [BAD, BAD], "both": [BAD, GOOD], "other": [GOOD, BAD]}.items():
            out = list(samples(tree(*results), tok, Options(mask_errors=True, trees=layout)))
            rows = [one.row for one in out if isinstance(one, Encoded)]
            learnt[name] = sum(int(row.loss.sum()) for row in rows)
            assert len([o for o in out if isinstance(o, Noted)]) == 1
        body = '\n{"name": "run", "arguments": {"command": "x"}}\n'
        size = tok.encode_array(body).size
        assert learnt["both"] == learnt["other"] == learnt["bad"] + size + 2


def test_exit_codes_of_real_trajectories(shared):
    """The scaffold wrote each command's exit code beside its output: without that field, the text says the same."""
    place = shared / "data/trajectories/mini_swe_agent_deepseek.tar.gz"
    if not place.is_file():
        pytest.skip(f"{place} is absent")
    seen = missed = 0
    with tarfile.open(place) as archive:
        for member in [member for member in archive if member.isfile()][:30]:
            for message in json.load(archive.extractfile(member))["messages"]:
                if message["role"] == "tool":
                    failed = message["extra"].get("returncode") != 0
                    assert (failure(message) is not None) == failed
                    found = failure({"role": "tool", "content": message["content"]})
                    assert found is None or failed
                    seen, missed = seen + failed, missed + (failed and found is None)
    assert seen > 50 and missed < 0.05 * seen

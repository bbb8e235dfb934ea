"""The template that a checkpoint carries, and the segments that are trained on, give one string for every shape."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord
from iqc.model.complete import encode, prompt_segments
from iqc.tokens.chat import answer_header, chat_segments
from iqc.tokens.special import CONTROL

texts = st.one_of(
    st.text(max_size=8), st.sampled_from(CONTROL), st.sampled_from(["\n", "\n\n", " ", "'", '"', "\\n", "{{ x }}"])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
calls = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": texts, "arguments": objects | texts | st.none()})},
    optional={"id": texts, "type": st.just("function")},
)
answers = st.fixed_dictionaries(
    {"role": st.just("assistant")},
    optional={
        "content": texts | st.none(),
        "reasoning_content": texts | st.none(),
        "tool_calls": st.lists(calls, max_size=3) | st.none(),
        "loss": st.booleans() | st.floats(0, 9),
    },
)
others = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "tool"])},
    optional={"content": texts | st.none(), "loss": st.booleans(), "tool_call_id": texts, "name": texts},
)
conversations = st.lists(answers | others, min_size=1, max_size=7)


def drawn(segments):
    return "".join(segment.value for segment in segments)


@settings(max_examples=200)
@given(conversations, st.lists(objects, max_size=3) | st.none(), st.sampled_from([None, True, False]))
def test_the_template_and_the_segments_give_one_string(hf, messages, tools, thinking):
    record = {"id": "c", "messages": messages, "tools": tools}
    asked = {} if thinking is None else {"enable_thinking": thinking}
    whole = hf.apply_chat_template(messages, tools=tools, tokenize=False, **asked)
    assert drawn(chat_segments(record)) == whole
    prompt = hf.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True, **asked)
    record["chat_template_kwargs"] = asked
    assert drawn(prompt_segments(record)) == prompt == whole + drawn(answer_header(record))


@given(conversations, conversations)
def test_a_conversation_is_a_prefix_of_its_continuation(before, after):
    """But for results of tools, which share a turn with their neighbours, and for a first system message."""
    if before[-1]["role"] != "tool" or after[0]["role"] != "tool":
        shorter, longer = (drawn(chat_segments({"messages": messages})) for messages in (before, before + after))
        assert longer.startswith(shorter)


@pytest.mark.parametrize("thought, thinking", [("", True), ("<think>\n\n</think>\n\n", False)])
def test_a_prompt_is_how_a_sample_starts(tok, thought, thinking):
    """What a model is asked with is what it was trained on: with no thought, and with an empty one."""
    question = [{"role": "user", "content": "a + b"}]
    prompt = {"messages": question, "chat_template_kwargs": {"enable_thinking": thinking}}
    sample = {"messages": [*question, {"role": "assistant", "content": thought + "c"}]}
    asked, whole = encode(prompt_segments(prompt), tok), encode(chat_segments(sample), tok)
    assert whole[: len(asked)] == asked
    assert tok.decode(whole[len(asked) :]) == "c<|im_end|>\n"
    assert (tok.control["<think>"] in asked) is not thinking


@pytest.mark.parametrize("asked", [{"enable_thinking": "no"}, [], {"enable_thinking": 0}, "x"])
def test_what_is_asked_in_another_way_is_refused(asked):
    record = {"messages": [{"role": "user", "content": ""}], "chat_template_kwargs": asked}
    if asked == []:
        assert len(answer_header(record)) == 2  # nothing asked
    else:
        with pytest.raises(BadRecord, match="enable_thinking"):
            prompt_segments(record)

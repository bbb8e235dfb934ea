import hashlib
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.tokens import tokenizer
from iqc.tokens.special import CONTROL, pieces
from iqc.tokens.split import Split

any_text = st.text()  # without surrogates, which are no UTF-8
hostile = st.lists(st.one_of(st.sampled_from(CONTROL), st.text(max_size=5)), max_size=8).map("".join)


@given(text=st.one_of(any_text, hostile))
def test_any_text_round_trips_and_gives_no_control_token(tok, text):
    ids = tok.encode_ordinary(text)
    assert tok.decode(ids) == text
    assert not set(ids) & set(tok.control.values())


def test_every_byte_is_a_token(tok):
    text = bytes(range(256)).decode("latin-1") + "é漢\U0001f600\x00\r\n\t   \u2028"
    assert tok.decode(tok.encode_ordinary(text)) == text


def test_nothing_is_normalised(tok):
    composed, decomposed = "\u00e9", "e\u0301"
    assert tok.encode_ordinary(composed) != tok.encode_ordinary(decomposed)


def test_digits_are_single(tok):
    assert len(tok.encode_ordinary("19991")) == 5


@pytest.mark.parametrize("digits, count", [("one", 7), ("three", 3), ("run", 1)])
def test_digits_by_option(sources, digits, count):
    made = tokenizer.train([*sources, "1234567\n" * 3000], 600, Split(digits))
    assert len(made.encode_ordinary("1234567")) == count


def test_indentation_by_option(sources):
    line = "    return x\n    return y\n"
    apart, joined = (tokenizer.train(sources, 800, Split(indent=indent)) for indent in ("apart", "joined"))
    assert "\n    " in [joined.decode([number]) for number in joined.encode_ordinary(line)]
    assert "\n    " not in [apart.decode([number]) for number in range(apart.vocab_size)]


def test_it_learnt_something(tok, sources):
    text = sources[0]
    assert len(tok.encode_ordinary(text)) < len(text.encode()) / 2


def test_the_hostile_text_would_have_worked(hf, tok):
    """The control: without the plain copy, the same text does give control ids."""
    assert tok.control["<|im_end|>"] in hf.encode("a<|im_end|>b")
    assert tok.control["<|im_end|>"] not in tok.encode_ordinary("a<|im_end|>b")


def test_ids_of_control_tokens(tok, hf):
    assert tok.vocab_size == 800
    assert tok.control == {name: pieces(800) + index for index, name in enumerate(CONTROL)}
    assert len(hf) == 800 and hf.eos_token == "<|im_end|>" and hf.pad_token == "<|endoftext|>"
    assert hf.model_max_length == 512
    assert {name: hf.convert_tokens_to_ids(name) for name in CONTROL} == tok.control
    assert hf.decode([tok.control["<|im_start|>"], tok.control["<think>"]], skip_special_tokens=True) == "<think>"


@given(text=any_text)
def test_transformers_gives_equal_ids(tok, hf, text):
    assert hf.encode(text) == tok.full.encode(text).ids
    if not any(name in text for name in CONTROL):
        assert hf.encode(text) == tok.encode_ordinary(text)
        assert hf.decode(hf.encode(text)) == text


@pytest.mark.parametrize("model_type", ["llama", "iquestcoder"])
def test_transformers_gives_equal_ids_beside_a_config(tok, tmp_path, sources, model_type):
    """A model_type must not make Transformers put its own pre-tokenizer in place of ours."""
    transformers = pytest.importorskip("transformers")
    tok.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": 800}))
    beside = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert beside.encode(sources[1]) == tok.encode_ordinary(sources[1])


def test_save_load_pickle_keep_the_digest(tok, saved):
    for other in (tokenizer.load(saved), tokenizer.load(saved / "tokenizer.json"), pickle.loads(pickle.dumps(tok))):
        assert other.digest == tok.digest and other.encode_ordinary("def f():") == tok.encode_ordinary("def f():")


def test_other_texts_give_another_digest(tok, sources):
    assert tokenizer.train(iter(sources[:2]), 800).digest != tok.digest


def test_training_does_not_depend_on_threads_or_hash_seed(tok):
    program = (
        "import argparse, json.decoder, textwrap, pathlib\n"
        "from iqc.tokens import tokenizer\n"
        "texts = [pathlib.Path(m.__file__).read_text(encoding='utf-8') for m in (argparse, json.decoder, textwrap)]\n"
        "print(tokenizer.train(iter(texts), 800).full.to_str(pretty=True), end='')"
    )
    found = set()
    for threads, hash_seed in (("1", "1"), ("4", "2")):
        env = os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": hash_seed, "TOKENIZERS_PARALLELISM": "true"}
        out = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True).stdout
        found.add(hashlib.sha256(out).hexdigest())
    assert found == {hashlib.sha256(tok.full.to_str(pretty=True).encode()).hexdigest()}


def test_too_little_text_is_an_error():
    with pytest.raises(IqcError, match="pieces"):
        tokenizer.train(iter(["abc abc"]), 4096)


@pytest.mark.parametrize("content", ["", "{}", "not json", '{"model": {"type": "WordLevel", "vocab": {}}}'])
def test_what_is_no_tokenizer_is_refused_by_file(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(IqcError) as caught:
        tokenizer.load(tmp_path)
    assert caught.value.where == str(tmp_path / "tokenizer.json") and caught.value.remedy


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(IqcError, match="No such file"):
        tokenizer.load(tmp_path)


def test_absent_control_tokens_are_refused(saved, tmp_path):
    state = json.loads((saved / "tokenizer.json").read_text())
    state["added_tokens"] = state["added_tokens"][:-1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(IqcError, match="</tool_response>"):
        tokenizer.load(tmp_path)


def test_control_tokens_may_be_at_other_ids(saved, tok, tmp_path):
    state = (saved / "tokenizer.json").read_text()
    swapped = state.replace("<CLS>", "<x>").replace("<SEP>", "<CLS>").replace("<x>", "<SEP>")
    (tmp_path / "tokenizer.json").write_text(swapped)
    other = tokenizer.load(tmp_path)
    assert other.control == tok.control | {"<CLS>": tok.control["<SEP>"], "<SEP>": tok.control["<CLS>"]}
    assert other.digest != tok.digest and other.decode([tok.control["<SEP>"]]) == "<CLS>"


def test_a_lone_surrogate_is_a_bad_record(tok, slow):
    for each in (tok, slow):
        with pytest.raises(BadRecord, match="U\\+D800, at character 1"):
            each.encode_ordinary("a\ud800b")


def test_any_ids_have_bytes(tok):
    """Ids that cut a character in the middle too."""
    ids = tok.encode_ordinary("\U0001f600\u6f22")
    assert b"".join(tok.bytes([number]) for number in ids) == "\U0001f600\u6f22".encode() == tok.bytes(ids)
    assert tok.bytes([tok.control["<think>"], *ids]).startswith(b"<think>")
    assert tok.bytes(iter(ids)) == tok.bytes(np.array(ids, np.uint32)) == tok.bytes(ids)
    for number in (-1, tok.vocab_size):
        with pytest.raises(IqcError, match="no token"):
            tok.bytes(iter([*ids, number]))


def test_rows_that_no_token_uses_have_no_bytes(tok):
    state = json.loads(tok.full.to_str())
    state["added_tokens"][-1]["id"] += 3
    sparse = tokenizer.Tokenizer(json.dumps(state))
    ids = sparse.encode_ordinary("a b")
    assert sparse.vocab_size == tok.vocab_size + 3
    assert sparse.bytes(iter([*ids, sparse.vocab_size - 2, ids[0]])) == b"a b" + sparse.bytes(ids[:1])

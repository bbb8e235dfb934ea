"""tiktoken and the tokenizers library must give the same ids; where that is not proven, tiktoken is not used."""

import itertools
import json
import random
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.tokens import engine, tokenizer
from iqc.tokens.special import CONTROL
from iqc.tokens.split import BY_PATTERN, LONGEST_RUN, Split
from iqc.tokens.vocabulary import BYTE_OF, read_vocabulary

QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# A few characters of every kind that a split pattern tells apart, and those that engines are known to quarrel about:
# joiners, marks, both directions, a byte order mark, NUL, cases that fold to ASCII, digits of other scripts, white
# space of all kinds, unassigned and private code points, the last of all.
ODD = (
    "aZé漢бب1٣४Ⅷ²_-=#'\"\\ \t\n\r\x00\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2028\u2029\u202f\u3000\u200b\u200d\u2060\ufeff"
    "\u0301\u0308\u20d0\u05b0\u202e\u2067\u017f\u212a\u0130\u0149\u01c5\u0378\u2fe0\ue000\ufdd0\ufffd\uffff"
    "\U0001f600\U0001f468\U0001f3fd\U0001e900\U00020000\U0002ebf0\U00030000\U000e0041\U000f0000\U0010ffff"
)
runs = st.builds(lambda part, times: part * times, st.text(ODD, min_size=1, max_size=3), st.integers(1, 700))
texts = st.lists(st.text(ODD) | st.text() | runs | st.sampled_from((*CONTROL, "'s", "'LL", "'\u017f", "\r\n"))).map(
    "".join
)


@given(texts)
@example("")
@example(" " * LONGEST_RUN + "x")
@example(" " * (LONGEST_RUN + 1) + "x")
@example(" " * LONGEST_RUN + "\n" * 3 + " x")
@example("\n" * (2 * LONGEST_RUN + 1) + "x")
def test_both_engines_give_the_same_ids(tok, slow, text):
    ids = tok.encode_array(text)
    assert ids.tolist() == slow.encode_array(text).tolist() and ids.dtype == "uint32"
    assert tok.bytes(ids.tolist()) == text.encode()
    assert not ids.flags.writeable


@pytest.fixture(scope="module")
def each_split(sources):
    """A tokenizer and the library's engine, for each way of cutting text."""
    made = [tokenizer.train(sources, 400, split) for split in BY_PATTERN.values()]
    assert [each.split for each in made] == list(BY_PATTERN.values())
    return made


@given(texts | st.lists(st.sampled_from(["\n", "\r\n", "  ", "\t", "):", "x", "12345", ";"])).map("".join))
@example("\n" * LONGEST_RUN + " " * (LONGEST_RUN + 1) + "x")
@example("9" * 5000)
def test_both_engines_give_the_same_ids_with_every_split(each_split, text):
    for tok in each_split:
        ids = tok.encode_ordinary(text)
        assert tok.engine == "tiktoken" and ids == tok.encode_by_library(text) and tok.bytes(ids) == text.encode()


@pytest.mark.parametrize("part", [*" \n\u00a0a1\u6f22\u0301", "-=", "\t\r\n"])
def test_a_million_of_anything(tok, part):
    """No run makes the engine fail, or take the square of its length."""
    text = part * (1_000_000 // len(part)) + "x"
    assert tok.bytes(tok.encode_array(text).tolist()) == text.encode()


@pytest.mark.parametrize("part", [*ODD, "\r\n", " \n", "\n ", " \t", "ab", "-=", "x ", "'s", "a1", "#\n", "\u0301a"])
def test_long_runs_are_cut_alike(tok, slow, part):
    text = part * 3000 + "x"
    assert tok.encode_array(text).tolist() == slow.encode_array(text).tolist()


@pytest.mark.parametrize("kind", [r"\p{L}", r"\p{N}", r"\s"])
def test_the_engines_agree_on_the_kind_of_every_code_point(kind):
    """The tables of Unicode are of one version: what the split pattern tells apart is the same in both."""
    import tiktoken
    from tokenizers import Regex, pre_tokenizers

    points = "".join(chr(point) for point in range(sys.maxunicode + 1) if not 0xD800 <= point < 0xE000)
    alone = {bytes([byte]): byte for byte in range(256)}
    found = bytes(
        tiktoken.Encoding("x", pat_str=kind, mergeable_ranks=alone, special_tokens={}).encode_ordinary(points)
    )
    cut = pre_tokenizers.Split(Regex(kind), behavior="removed", invert=True).pre_tokenize_str(points)
    assert found.decode() == "".join(part for part, _ in cut)


def test_short_runs_are_cut_as_by_qwen2():
    """Up to the bound, the pattern is that of Qwen2: in both engines, on text of blanks and line ends of all kinds."""
    from tokenizers import Regex, pre_tokenizers

    ours, theirs = (pre_tokenizers.Split(Regex(p), behavior="isolated") for p in (Split().pattern(), QWEN2))
    draw = random.Random(0)
    for _ in range(300):
        parts = draw.choices([" ", "\t", "\n", "\r\n", "\u00a0", "x", "it's", "12", "--"], k=draw.randint(1, 40))
        text = "".join(part * draw.choice((1, 2, 30)) for part in parts)
        if max(map(len, "".join(c if c.isspace() else "x" for c in text).split("x"))) <= LONGEST_RUN:
            assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def model_of(tokens, merges):
    """A byte-level model with 256 bytes, then the tokens, with the merges."""
    of = {byte: chr(point) for point, byte in BYTE_OF.items()}
    pieces = [of[byte] for byte in range(256)] + tokens
    return {"type": "BPE", "vocab": {piece: i for i, piece in enumerate(pieces)}, "merges": merges}


@st.composite
def models(draw):
    """Any merges over two letters whose halves come before the whole, in the order of ids; most no BPE would learn."""
    tokens, merges = ["a", "b"], []
    for _ in range(draw(st.integers(1, 8))):
        pair = draw(st.tuples(st.sampled_from(tokens), st.sampled_from(tokens)))
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
            merges.append(pair)
    return model_of(tokens[2:], merges)


ALL_WORDS = ["".join(letters) for size in range(1, 11) for letters in itertools.product("ab", repeat=size)]


@given(models())
def test_what_is_proven_is_equal_on_all_words(model):
    """Both ways: a model that passes gives equal ids on every word of up to ten letters, and one that fails does not
    (its unmade token is itself such a word, or a part of one)."""
    import tiktoken
    from tokenizers import Tokenizer
    from tokenizers import models as library

    merges = [tuple(pair) for pair in model["merges"]]
    listed = Tokenizer(library.BPE(vocab=model["vocab"], merges=merges))
    known = read_vocabulary({"model": model})
    ranked = tiktoken.Encoding("x", pat_str=r"\w+", mergeable_ranks=known.pieces, special_tokens={})
    longest = max(len(piece) for piece in model["vocab"])
    words = [word for word in ALL_WORDS if len(word) <= max(longest, 8)]
    different = [word for word in words if listed.encode(word).ids != ranked.encode_ordinary(word)]
    try:
        engine.prove(known)
        assert not different
    except engine.Unproven as error:
        assert "its own merge" in str(error) and (different or longest > 10)


@pytest.mark.parametrize(
    "model, why",
    [
        (model_of(["ab", "abc"], [("ab", "c"), ("a", "b")]), "order"),
        (model_of(["ab", "bc", "abc"], [("a", "b"), ("b", "c"), ("a", "bc")]), "its own merge"),
        (model_of(["ab", "abc"], [("a", "b")]), "no merge makes"),
        (model_of([], []) | {"byte_fallback": True}, "byte_fallback"),
        (model_of([], []) | {"dropout": 0.1}, "dropout"),
    ],
)
def test_what_is_not_proven_is_said(model, why):
    with pytest.raises(engine.Unproven, match=why):
        engine.prove(read_vocabulary({"model": model}))


BYTES_ONLY = model_of([], [])


@pytest.mark.parametrize(
    "state, why",
    [
        ({}, "no model"),
        ({"model": []}, "no model"),
        ({"model": {"type": "Unigram", "vocab": {}}}, "BPE"),
        ({"model": BYTES_ONLY, "normalizer": {"type": "NFC"}}, "normaliser"),
        ({"model": BYTES_ONLY | {"vocab": []}}, "no vocab"),
        ({"model": {"vocab": {"a": 0}, "merges": []}}, "byte 0x00"),
        ({"model": model_of(["\u2581a"], [])}, "stands for no bytes"),
        ({"model": model_of(["a b"], [])}, "stands for no bytes"),
        ({"model": model_of([], [("a", "x!")])}, "merges"),
        ({"model": model_of([], ["garbage"])}, "merges"),
        ({"model": model_of([], None)}, "merges"),
        ({"model": model_of([], [("a", "b", "c")])}, "merges"),
        ({"model": model_of([], [3])}, "merges"),
        ({"model": BYTES_ONLY | {"vocab": BYTES_ONLY["vocab"] | {"ab": 5}}}, "two pieces"),
        ({"model": BYTES_ONLY | {"vocab": BYTES_ONLY["vocab"] | {"ab": True}}}, "id True"),
        ({"model": BYTES_ONLY, "added_tokens": [{"content": "<x>", "id": 5}]}, "id of another"),
        ({"model": BYTES_ONLY, "added_tokens": [{"content": c, "id": 300} for c in "xy"]}, "id of another"),
        ({"model": BYTES_ONLY, "added_tokens": [{"content": "<x>", "id": "x"}]}, "the id 'x'"),
        ({"model": BYTES_ONLY, "added_tokens": [{"content": "<x>", "id": -3}]}, "the id -3"),
        ({"model": BYTES_ONLY, "added_tokens": [{"content": "<x>", "id": 1 << 40}]}, "the id 1099"),
        ({"model": BYTES_ONLY, "added_tokens": ["<x>"]}, "added token"),
    ],
)
def test_a_damaged_vocabulary_is_refused(state, why):
    with pytest.raises(IqcError, match=why) as caught:
        read_vocabulary(state)
    assert caught.value.remedy


def test_a_tokenizer_that_adds_to_a_text_is_refused(tok):
    state = json.loads(tok.full.to_str())
    state["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    with pytest.raises(IqcError, match="not exact"):
        tokenizer.Tokenizer(json.dumps(state))


def test_the_same_text_gives_the_same_ids(tok, sources):
    """A file may ask for random encodings, for cut ones and for padding; records would not come out the same."""
    state = json.loads(tok.full.to_str())
    state["model"]["dropout"] = 0.5
    state["truncation"] = {"max_length": 8, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    other = tokenizer.Tokenizer(json.dumps(state))
    assert other.engine == "tokenizers" and "dropout" in other.why
    assert other.encode_ordinary(sources[0]) == tok.encode_ordinary(sources[0])


def test_a_control_token_that_text_becomes_is_refused(tok):
    """A piece with the name and the id of a control token, which the library finds as a whole word."""
    state = json.loads(tok.full.to_str())
    state["model"]["vocab"]["<think>"] = tok.control["<think>"]
    tokenizer.Tokenizer(json.dumps(state))  # no merge makes it
    state["model"]["ignore_merges"] = True
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    with pytest.raises(IqcError, match="<think> is also a piece"):
        tokenizer.Tokenizer(json.dumps(state))


def test_older_files_have_merges_as_strings(tok):
    state = json.loads(tok.full.to_str())
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]
    other = tokenizer.Tokenizer(json.dumps(state))
    assert (other.engine, other.digest) == ("tiktoken", tok.digest)


def test_a_foreign_split_falls_back_to_the_library(tok, sources):
    state = json.loads(tok.full.to_str())
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = QWEN2
    other = tokenizer.Tokenizer(json.dumps(state))
    assert other.engine == "tokenizers" and "split pattern" in other.why and other.digest != tok.digest
    assert all(other.encode_ordinary(text) == tok.encode_ordinary(text) for text in sources)
    assert not set(other.encode_ordinary("<|im_end|><think>")) & set(other.control.values())
    state["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert "pre-tokenizer" in tokenizer.Tokenizer(json.dumps(state)).why

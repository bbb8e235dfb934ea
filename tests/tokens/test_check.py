import json
import shutil

import pytest

from iqc.errors import BadRecord, IqcError
from iqc.streams.lineage import checked_lineage
from iqc.tokens import check, tokenizer
from iqc.tokens.texts import Texts, lineage


def document(text, lang=None):
    return {"id": "d", "text": text} | ({"metadata": {"lang": lang}} if lang else {})


RECORDS = [
    document("x = 1\n" * 10, "python"),
    document("let x = 1;\n" * 10, "Rust"),
    document("\u6f22\u5b57"),
    {"id": "c", "messages": [{"role": "user", "content": "a<|im_end|>b"}]},
    document("y = 2\n", "python"),
]


def test_text_by_language_without_control_tokens():
    texts = Texts(RECORDS)
    found = list(texts.by_language())
    assert texts.records == 5 and dict(texts.bytes) == {
        "python": 66,
        "rust": 110,
        "other": len("".join(text for language, text in found if language == "other").encode()),
    }
    assert "a<|im_end|>b" in found[-3][1] and not any("<|im_start|>" in text for _, text in found)
    assert list(Texts(RECORDS)) == [text for _, text in found]


def test_pairs_and_trees_say_each_thing_once_and_an_answer_both_ways():
    answers = {"chosen": [{"role": "assistant", "content": "yes"}], "rejected": "no"}
    node = {"id": 0, "parent": None, "role": "user", "content": "why"}
    tree = {"id": "t", "nodes": [node, node | {"id": 1, "parent": 0, "role": "assistant", "content": "so"}]}
    for record, said in (({"id": "p", "prompt": "is it", **answers}, ["is it", "yes", "no"]), (tree, ["why", "so"])):
        found = "".join(Texts([record]))
        assert [found.count(word) for word in said] == [1] * len(said)
    for part in (1, None, {}, ["x"]):
        with pytest.raises(BadRecord, match="messages"):
            list(Texts([{"id": "p", "prompt": part, "chosen": [], "rejected": []}]))
    empty = [
        {"id": "c", "messages": []},
        {"id": "p", "prompt": "", "chosen": [], "rejected": []},
        {"id": "t", "nodes": []},
    ]
    assert list(Texts(empty)) == list(Texts([{"id": "c", "messages": [{"role": "user", "content": ""}]}]))


def test_limits_are_of_all_text_and_of_a_language():
    assert list(Texts(RECORDS, total=100)) == [RECORDS[0]["text"], RECORDS[1]["text"]]
    assert list(Texts(RECORDS, total=0)) == []
    limited = Texts(RECORDS, each=60)
    assert list(limited)[:3] == [RECORDS[0]["text"], RECORDS[1]["text"], RECORDS[2]["text"]]
    assert limited.bytes["python"] == 60 and limited.records == 4
    with pytest.raises(BadRecord, match="unknown kind") as caught:
        list(Texts([RECORDS[0], {"id": "x"}]))
    assert caught.value.where == "record 2"


def test_bytes_a_token_by_language(tok):
    found = check.measure(tok, Texts(RECORDS), 10)
    rows = {row[0]: row for row in found.rows()}
    text = RECORDS[1]["text"]
    tokens = len(tok.encode_ordinary(text))
    assert rows["rust"] == ("rust", len(text), tokens, len(text) / tokens)
    assert rows["all"][1] == sum(row[1] for row in found.rows()[:-1]) and found.compared == 60


def test_a_fault_of_an_engine_is_found(tok, slow, monkeypatch):
    monkeypatch.setattr(tokenizer.Tokenizer, "encode_by_library", lambda self, text: [0])
    check.measure(tok, Texts(RECORDS), 0)
    with pytest.raises(IqcError, match="other ids of 'x = 1"):
        check.measure(tok, Texts(RECORDS), 1)
    with pytest.raises(IqcError, match="round trip"):
        check.measure(slow, Texts(RECORDS), 0)


def test_transformers_loads_the_same(tok, saved, tmp_path):
    pytest.importorskip("transformers")
    assert check.transformers_parity(tok, saved) == "loads the same tokenizer and chat template"
    shutil.copytree(saved, tmp_path / "other")
    old = json.loads((saved / "tokenizer.json").read_text())
    old["model"] = {name: value for name, value in old["model"].items() if name in ("type", "vocab", "merges")}
    old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(old))
    older = tokenizer.load(tmp_path / "other")
    assert check.transformers_parity(older, tmp_path / "other") == "loads the same tokenizer and chat template"
    shutil.copy(saved / "tokenizer.json", tmp_path / "other")
    config = json.loads((saved / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ messages[0].content }}"
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(config))
    assert "another chat template" in check.transformers_parity(tok, tmp_path / "other")
    del config["chat_template"]
    (tmp_path / "other" / "tokenizer_config.json").write_text(json.dumps(config))
    assert "without a chat template" in check.transformers_parity(tok, tmp_path / "other")
    state = json.loads((saved / "tokenizer.json").read_text())
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(state))
    with pytest.raises(IqcError, match="another vocabulary"):
        check.transformers_parity(tok, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text("{}")
    with pytest.raises(IqcError, match="cannot load"):
        check.transformers_parity(tok, tmp_path / "other")


def test_lineage_names_what_was_read(tok, tmp_path):
    texts = Texts(RECORDS, each=60)
    list(texts)
    made = lineage(tok, texts, [], {"limit_mib": 1})
    tok.save(tmp_path / "t", lineage=made)
    found = checked_lineage(json.loads((tmp_path / "t" / "lineage.json").read_bytes()))
    node = found["stages"][found["stage"]]
    assert found["output"]["digest"] == f"sha256:{tokenizer.load(tmp_path / 't').digest}"
    assert node["options"] == {"vocab_size": 800, "digits": "one", "indent": "apart", "limit_mib": 1}
    assert node["counts"]["bytes"]["python"] == 60 and node["counts"]["read"] == 4


def test_a_directory_that_cannot_be_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(IqcError, match="is a file") as caught:
            tokenizer.check_writable(path)
        assert caught.value.remedy
    tokenizer.check_writable(tmp_path / "new" / "below")
    assert not (tmp_path / "new").exists()

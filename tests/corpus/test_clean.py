"""The stage: line ends, rules by kind of record, syntax, and records left as they were."""

import pickle

import pytest

pytest.importorskip("iqc.syntax.languages")
pytest.importorskip("iqc.syntax.parse")

from iqc.corpus.clean import CleanOptions, clean, normalise
from iqc.errors import BadRecord, IqcError
from iqc.streams.stage import Dropped

CODE = "def area(width, height):\n    # of a rectangle\n    return width * height\n"


def document(text: str, **metadata: str) -> dict:
    return {"id": "1", "text": text, "source": "s", "metadata": metadata, "extra": [1]}


def one(record: dict, **options):
    (out,) = clean(CleanOptions(**options))(record)
    return out


def test_line_ends_and_byte_order_mark():
    assert normalise("\ufeffa\r\nb\rc\n\r\n\ufeff") == "a\nb\nc\n\n\ufeff"


def test_a_good_record_keeps_its_fields_and_the_input_is_not_touched():
    record = document(CODE.replace("\n", "\r\n"), lang="python")
    assert one(record) == {**record, "text": CODE}
    assert "\r" in record["text"]


def test_code_rules_or_web_rules():
    assert one(document(CODE, path="x.py"))["text"] == CODE
    web = one(document(CODE))
    assert isinstance(web, Dropped) and (web.rule, web.value, web.threshold) == ("words", 9, 50)
    assert one(document(CODE), web=())["text"] == CODE


def test_syntax():
    bad = document("def f(:\n  ) ] return = = 3 +\n" * 5, lang="python")
    dropped = one(bad)
    assert isinstance(dropped, Dropped) and dropped.rule == "syntax" and dropped.value > dropped.threshold > 0
    assert one(bad, syntax=False)["text"] == bad["text"]
    assert one(document(CODE, lang="cobol"))["text"] == CODE  # no grammar, so not asked


def test_measured_values_are_kept_on_demand():
    kept = one(document(CODE, lang="python"), measured=True)
    assert kept["metadata"]["measured"]["lines"] == 3 and kept["metadata"]["measured"]["syntax"] == 0
    dropped = one(document("x", lang="python"), measured=True, code=("opencoder",))
    assert dropped.rule == "chars" and dropped.record["metadata"]["measured"]["words"] == 1


def test_refusals():
    with pytest.raises(BadRecord):
        one({"id": "1"})
    with pytest.raises(IqcError, match="no set of rules"):
        clean(CleanOptions(code=("nope",)))
    assert pickle.loads(pickle.dumps(CleanOptions())) == CleanOptions()


def test_a_language_in_another_collections_spelling_is_parsed_too():
    broken = "def f(:\n    return\n" * 20
    for lang in ("python", "Python"):
        out = one(document(broken, lang=lang), code=())
        assert isinstance(out, Dropped) and out.rule == "syntax"


def test_metadata_that_is_no_object():
    with pytest.raises(BadRecord, match="metadata"):
        one({"id": "1", "text": CODE, "metadata": "x"})

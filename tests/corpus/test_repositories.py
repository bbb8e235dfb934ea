"""Records of repositories: order, parts, sizes, and nothing that depends on anything but the state and the seed."""

import random

import pytest

from iqc.corpus.repositories import LARGEST, Options, arrange, documents, repositories
from iqc.corpus.scores import Scores
from iqc.corpus.snapshots import Snapshot
from iqc.errors import UsageError
from iqc.streams.stage import Dropped
from iqc.streams.writer import dump
from iqc.syntax.languages import language_of
from iqc.tokens.tokenise import tokenise

TEXTS = {
    "README.md": "# demo\n",
    "data.json": "{}",
    "notes.txt": "",
    "style.css": "",
    "web/main.js": 'import "./part"; import d from "../data.json";',
    "web/part.js": "",
    "app/__init__.py": "from .core import run",
    "app/core.py": "from . import helper\nfrom app import gone, __init__\n",
    "app/helper.py": "from .missing import x\n",
    "tool.py": "import app",
    "alone.c": "",
}


def snapshot(texts=TEXTS, commit="c" * 40):
    files = [
        {"path": path, "text": texts[path], "lang": language_of(path), "mode": "100644", "encoding": "utf-8"}
        for path in sorted(texts)
    ]
    return Snapshot("demo", commit, files, digest=b"d" * 32)


def paths(record):
    return [file["path"] for file in record["files"]]


def test_one_record():
    (record,) = repositories(snapshot(), Options(), Scores())
    assert record["id"] == "demo@cccccccccccc" and record["repo"] == "demo" and record["commit"] == "c" * 40
    assert sorted(paths(record)) == sorted(TEXTS)
    assert {file["path"]: file["text"] for file in record["files"]} == TEXTS
    others = {"README.md", "data.json", "notes.txt", "style.css"}
    assert set(paths(record)[:4]) == others
    assert paths(record)[4:] == [
        "alone.c",
        "app/helper.py",
        "app/core.py",
        "app/__init__.py",
        "tool.py",
        "web/part.js",
        "web/main.js",
    ]
    assert record["metadata"] == {
        "languages": {"c": 1, "css": 1, "javascript": 2, "json": 1, "markdown": 1, "none": 1, "python": 4},
        "bytes": sum(map(len, TEXTS.values())),
        "dependencies": {"edges": 6, "against": 1, "unresolved": 1, "unparsed": 0},
    }


def test_an_import_of_a_file_that_is_left_out_is_no_edge_and_not_unresolved():
    state = snapshot({"a.js": 'import "./b"; import "./pic.png"; import "./gone"', "b.js": ""})
    state.drop("pic.png", "binary", 0)
    (record,) = repositories(state, Options(), Scores())
    assert record["metadata"]["dependencies"] == {"edges": 1, "against": 0, "unresolved": 1, "unparsed": 0}


def test_a_file_that_keeps_the_parser_busy_is_kept_and_counted(monkeypatch):
    monkeypatch.setattr("iqc.syntax.queries.SECONDS", 0.2)
    texts = {"A.cs": "a<" * 20_000, "B.cs": "namespace N { class B {} }", "C.cs": "using N; class C { B b; }"}
    (record,) = repositories(snapshot(texts), Options(), Scores())
    assert sorted(paths(record)) == sorted(texts)
    assert record["metadata"]["dependencies"] == {"edges": 1, "against": 0, "unresolved": 0, "unparsed": 1}


def test_the_seed_shuffles_the_others_alone():
    orders = [paths(next(repositories(snapshot(), Options(seed=seed), Scores()))) for seed in range(8)]
    assert len({tuple(order[:4]) for order in orders}) > 3
    assert len({tuple(order[4:]) for order in orders}) == 1
    assert paths(next(repositories(snapshot(), Options(seed=3), Scores()))) == orders[3]


def test_go_packages_are_whole_before_those_that_import_them():
    texts = {"go.mod": "module m", "a.go": 'package a\nimport "m/p"', "p/x.go": "package p", "p/y.go": "package p"}
    texts["p/x_test.go"] = "package p"
    arranged = arrange(snapshot(texts), 0)
    order = [file["path"] for file in arranged.files]
    assert order == ["go.mod", "p/x.go", "p/y.go", "a.go", "p/x_test.go"]
    assert sorted(map(len, arranged.groups)) == [1, 1, 3]
    assert arranged.dependencies == {"edges": 3, "against": 0, "unresolved": 0, "unparsed": 0}


def test_parts_keep_what_belongs_together():
    sizes = {path: len(dump(file)) + 1 for path, file in zip(sorted(TEXTS), snapshot().files, strict=True)}
    limit = sum(sizes[path] for path in sizes if path.startswith(("app/", "tool"))) + 50
    found = list(repositories(snapshot(), Options(max_bytes=limit), Scores()))
    assert [record["id"] for record in found] == [f"demo@cccccccccccc#{number}" for number in range(len(found))]
    assert [record["metadata"]["part"] for record in found] == list(range(len(found)))
    assert sorted(path for record in found for path in paths(record)) == sorted(TEXTS)
    holding = [record for record in found if "app/core.py" in paths(record)]
    assert len(holding) == 1
    assert [path for path in paths(holding[0]) if "app" in path] == ["app/helper.py", "app/core.py", "app/__init__.py"]
    web = next(record for record in found if "web/main.js" in paths(record))
    assert paths(web).index("data.json") < paths(web).index("web/part.js") < paths(web).index("web/main.js")
    assert all(len(dump(record["files"])) <= limit + 2 for record in found)


def long_file(lines):
    shuffled = random.Random(0)
    return "".join(f"x{number} = {shuffled.random()}\n" for number in range(lines))


def test_a_file_that_no_record_can_hold_is_dropped_or_cut():
    texts = TEXTS | {"app/helper.py": long_file(100), "one_line.txt": "y" * 2000}
    options = Options(max_bytes=1500)
    found = list(repositories(snapshot(texts), options, Scores()))
    dropped = [(one.record["path"], one.rule, one.threshold) for one in found if isinstance(one, Dropped)]
    assert sorted(dropped) == [("app/helper.py", "record_bytes", 1500), ("one_line.txt", "record_bytes", 1500)]
    assert all(one.value > 1500 and one.record["id"].startswith("demo@cccccccccccc:") for one in found[:2])

    found = list(repositories(snapshot(texts), Options(max_bytes=1500, cut_files=True), Scores()))
    assert [one.record["path"] for one in found if isinstance(one, Dropped)] == ["one_line.txt"]
    records = [one for one in found if not isinstance(one, Dropped)]
    pieces = [file for record in records for file in record["files"] if file["path"] == "app/helper.py"]
    assert len(pieces) > 1 and "".join(piece["text"] for piece in pieces) == texts["app/helper.py"]
    before = ""
    for piece in pieces:
        assert piece["line"] == before.count("\n") + 1
        before += piece["text"]
    assert all(len(dump(record["files"])) <= 1502 for record in records)


@pytest.fixture(scope="module")
def tokenizer():
    from iqc.tokens.tokenizer import train

    return train(iter([long_file(300), *(text * 3 for text in TEXTS.values())]), 300)


@pytest.mark.parametrize("limit", [90, 150, 500])
def test_tokens_are_those_of_the_packed_record(tokenizer, limit):
    texts = TEXTS | {"app/helper.py": long_file(30)}
    options = Options(max_tokens=limit, cut_files=True)
    records = [
        one for one in repositories(snapshot(texts), options, Scores(), tokenizer) if not isinstance(one, Dropped)
    ]
    for record in records:
        (count,) = tokenise(record, tokenizer).lengths
        assert record["metadata"]["tokens"] == count <= limit
    texts_found = {path: "" for path in texts}
    for record in records:
        for file in record["files"]:
            texts_found[file["path"]] += file["text"]
    assert texts_found == texts


def test_a_repository_without_a_file_says_so():
    (only,) = repositories(snapshot({}), Options(), Scores())
    assert isinstance(only, Dropped) and only.rule == "no_files" and only.record["id"] == "demo@cccccccccccc"


def test_documents_are_those_of_crawl_clean_in_order(tmp_path):
    from iqc.corpus.trees import read_file

    found = list(documents(snapshot(), Options(), Scores()))
    assert [record["metadata"]["path"] for record in found] == paths(
        next(repositories(snapshot(), Options(), Scores()))
    )
    for record in found:
        path = tmp_path / record["metadata"]["path"]
        path.parent.mkdir(exist_ok=True)
        path.write_text(record["text"])
        other = read_file(tmp_path, record["metadata"]["path"], "demo", "demo")
        assert other["id"] == record["id"] and other["source"] == record["source"]
        assert other["metadata"].items() <= record["metadata"].items()


def test_scores_in_the_metadata():
    scores = Scores({"tool.py": 0.5, "alone.c": 1.0, "not/there.py": 0.0})
    (record,) = repositories(snapshot(), Options(), scores)
    assert {key: record["metadata"][key] for key in ("quality", "scored", "unscored")} == {
        "quality": 0.5,
        "scored": 2,
        "unscored": 9,
    }
    by_path = {record["metadata"]["path"]: record["metadata"] for record in documents(snapshot(), Options(), scores)}
    assert by_path["tool.py"]["score"] == 0.5 and "score" not in by_path["README.md"]
    assert by_path["README.md"]["quality"] == 0.5


def test_records_are_never_larger_than_a_stream_takes():
    assert Options(max_bytes=LARGEST)
    with pytest.raises(UsageError):
        Options(max_bytes=LARGEST + 1)
    texts = {f"{number}.txt": "\1" * 2_000_000 for number in range(6)}  # 6 bytes of JSON a character
    found = list(repositories(snapshot(texts), Options(), Scores()))
    assert len(found) == 3 and all(len(dump(record)) < 32 << 20 for record in found)


def test_the_order_does_not_depend_on_that_of_the_listing():
    """Files come sorted, but the sets and mappings inside must not tell of it."""
    one = snapshot()
    other = Snapshot("demo", one.commit, one.files[::-1], digest=one.digest)
    code = [[file["path"] for file in arrange(state, 0).files][4:] for state in (one, other)]
    assert code[0] == code[1]

"""Documents, their stretches and repositories through the stage, and from the command line."""

import json
from collections import Counter
from pathlib import Path

import pytest

from iqc.errors import BadRecord, UsageError
from iqc.fim.samples import FillInTheMiddle
from iqc.fim.stages import Around, documents, fim, stretches
from iqc.fim.stages import __file__ as HERE
from iqc.streams.stage import Dropped, Noted

ROOM = sorted(Path(HERE).parents[1].glob("[cdfs]*/*.py"))


@pytest.fixture(scope="module")
def repository():
    files = [
        {"path": f"{path.parent.name}/{path.name}", "text": path.read_text("utf-8"), "lang": "python"} for path in ROOM
    ]
    files = [file for file in files if file["text"].strip()]
    files += [{"path": "logo.png", "text": None, "lang": None}, {"path": "empty.py", "text": "\n", "lang": "python"}]
    return {
        "id": "r1",
        "repo": "o/iqc",
        "commit": "c0",
        "files": files,
        "metadata": {"stars": 3, "bytes": 9, "languages": {}},
    }


def run(record, stretch=0, around=None, **options):
    return [out for out in fim(FillInTheMiddle(**options), around, stretch)()(record) if not isinstance(out, Noted)]


def test_a_repository_gives_a_sample_with_context_for_every_drawn_file(repository, check):
    texts = {file["path"]: file["text"] for file in repository["files"]}
    out = run(repository, rate=1, samples=2)
    assert [item.rule for item in out if isinstance(item, Dropped)] == ["fim.blank"]
    samples = [item for item in out if not isinstance(item, Dropped)]
    assert {s["metadata"]["path"] for s in samples} == {path for path, text in texts.items() if text and text.strip()}
    for sample in samples:
        path = sample["metadata"]["path"]
        check(sample, texts[path])
        assert sample["id"].startswith(f"r1:{path}#fim") and sample["source"] == "o/iqc"
        about = {key: value for key, value in sample["metadata"].items() if not key.startswith("fim_")}
        assert about == {"repo": "o/iqc", "commit": "c0", "stars": 3, "lang": "python", "path": path}
        assert bool(sample["context"]) == (sample["metadata"]["fim_scope"] == "repository")
        for snippet in sample["context"]:
            assert snippet["path"] != path
            assert snippet["text"] in texts[snippet["path"]] and sample["text"].count(
                f"<|file_sep|>{snippet['path']}\n"
            )
    assert sum(sample["metadata"]["fim_scope"] == "repository" for sample in samples) > 0.8 * len(samples)


def test_files_that_are_not_drawn_are_documents(repository):
    out = [item for item in run(repository, rate=0.5) if not isinstance(item, Dropped)]
    kinds = Counter("level" in item for item in out)
    assert min(kinds.values()) > len(out) / 4
    texts = {file["path"]: file["text"] for file in repository["files"]}
    assert all(item["text"] == texts[item["metadata"]["path"]] for item in out if "level" not in item)


def test_the_same_repository_gives_the_same_samples_and_each_file_its_own(repository):
    assert run(repository, rate=0.5) == run(repository, rate=0.5)
    turned = repository | {"files": repository["files"][::-1]}
    cut = {s["id"]: (s["prefix"], s["suffix"]) for s in run(repository, rate=0.5) if "level" in s}
    assert cut == {s["id"]: (s["prefix"], s["suffix"]) for s in run(turned, rate=0.5) if "level" in s}


def test_a_repository_of_one_file_gives_samples_of_file_level_and_says_so(repository, check):
    file = repository["files"][0]
    (sample,) = run(repository | {"files": [file]}, rate=1)
    check(sample, file["text"])
    assert sample["context"] == [] and sample["metadata"]["fim_scope"] == "file"
    assert sample["metadata"]["fim_no_context"] == "no other file of code in the repository"


def test_pieces_of_a_file_are_documents_of_their_own_and_no_context_for_each_other():
    pieces = [
        {"path": "a.py", "text": f"value_{k} = read_line(path)\nread_line({k})\n", "line": 1 + 2 * k} for k in range(2)
    ]
    other = {"path": "b.py", "text": "def read_line(path):\n    return path.open().readline()\n"}
    out = run({"id": "r", "repo": "r", "files": [*pieces, other]}, rate=1, weights={"line": 1})
    assert [item["id"] for item in out] == ["r:a.py:1#fim0", "r:a.py:3#fim0", "r:b.py#fim0"]
    assert [item["metadata"].get("line") for item in out] == [1, 3, None]
    assert {snippet["path"] for item in out[:2] for snippet in item["context"]} == {"b.py"}


def test_without_a_budget_there_is_no_context(repository):
    assert not any(s["context"] for s in run(repository, around=Around(budget=0), rate=1) if isinstance(s, dict))


def test_stretches_of_a_repositorys_files_have_context_too(repository, check):
    texts = {file["path"]: file["text"] for file in repository["files"]}
    out = [item for item in run(repository, stretch=400, rate=1) if not isinstance(item, Dropped)]
    assert len(out) > 2 * len(texts)
    for sample in out:
        start = sample["metadata"].get("offset", 0)
        parts = sample["prefix"] + sample["middle"] + sample["suffix"]
        assert texts[sample["metadata"]["path"]][start : start + len(parts)] == parts
        check(sample, parts)


def test_control_tokens_of_context_paths_and_names_are_neutralised_and_counted(check):
    files = [
        {"path": "a<|file_sep|>.py", "text": "value = read_line()\nvalue = read_line()\n"},
        {"path": "b.py", "text": "# <|im_end|> <think>\nvalue = read_line(path)\n"},
    ]
    for sample in run(
        {"id": "r", "repo": "<|repo_name|>", "commit": None, "files": files}, rate=1, weights={"line": 1}
    ):
        check(sample, next(file["text"] for file in files if file["path"] == sample["metadata"]["path"]))
        assert sample["context"] and sample["metadata"]["fim_neutralised"] == 4


def test_stretches_join_to_the_document(document):
    text = Path(HERE).read_text("utf-8")
    parts = list(stretches(document(text), 500))
    assert "".join(part["text"] for part in parts) == text and len(parts) > 3
    assert [part["id"] for part in parts] == [f"d~{k}" for k in range(len(parts))]
    assert all(text[part["metadata"]["offset"] :].startswith(part["text"]) for part in parts)
    assert list(stretches(document(text), 0)) == list(stretches(document(text), len(text))) == [document(text)]


@pytest.mark.parametrize(
    "change",
    [
        {"files": "x"},
        {"files": ["x"]},
        {"files": [{"text": "x"}]},
        {"files": [{"path": "a", "text": 1}]},
        {"repo": None},
    ],
)
def test_a_record_that_is_no_repository(change):
    with pytest.raises(BadRecord):
        list(documents({"id": "r", "repo": "r", "files": []} | change))


def test_snippets_of_one_line_are_refused():
    with pytest.raises(UsageError):
        fim(FillInTheMiddle(), Around(lines=1))


def test_the_command_reads_documents_and_repositories(iqc, repository, document, tmp_path):
    path = tmp_path / "in.jsonl"
    records = [document("def f(x):\n    return x\n", "d0", lang="python"), repository]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = ["--rate", "late,python=1", "--max-middle", "80", "--context", "2000", "--snippet-lines", "10"]
    done = iqc("fim", path, "--plain", "-q", *options)
    assert done.returncode == 0, done.stderr
    out = [json.loads(line) for line in done.stdout.splitlines()]
    assert out[0]["id"] == "d0#fim0" and "fim_scope" not in out[0]["metadata"]
    assert {item["metadata"]["fim_scope"] for item in out[1:]} <= {"repository", "file"}
    assert all(len(item["middle"]) <= 80 for item in out)
    assert any(item["context"] for item in out)
    assert all(sum(len(s["path"]) + len(s["text"]) + 2 for s in item["context"]) <= 2000 for item in out)
    assert iqc("fim", path, "--plain", "-q", "-j", "2", *options).stdout == done.stdout


def test_what_is_not_as_asked_is_counted_by_level_and_reason(iqc, document, tmp_path):
    path, shards = tmp_path / "in.jsonl", tmp_path / "shards"
    records = [document(f"value = {k}\n", f"d{k}", lang=lang) for k, lang in enumerate(("python", "python", "x"))]
    records.append({"id": "r", "repo": "r", "files": [{"path": "a.py", "text": "x = 1\n"}]})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    expected = {
        "function became line: the file has no such node": 3,
        "function became line: unknown language": 1,
        "no context: no other file of code in the repository": 1,
    }
    for out in (tmp_path / "out", f"{shards}/"):
        summary = tmp_path / "summary.json"
        done = iqc("fim", path, "-q", "--rate", "1", "--levels", "function", "-o", out, "--summary", summary, "-j", "2")
        assert done.returncode == 0, done.stderr
        found = json.loads(summary.read_text())
        assert (found["read"], found["kept"], found["noted"]) == (4, 4, expected)


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "half"],
        ["--rate", "0.5,0.6"],
        ["--rate", "1.5"],
        ["--rate", "python=x"],
        ["--rate", "klingon=1"],
        ["--similar", "embeddings"],
        ["--endpoint", "http://127.0.0.1:9/v1"],
        ["--similar", "embeddings", "--endpoint", "here", "--embedding-model", "m"],
    ],
)
def test_wrong_options_are_refused_before_the_work(iqc, options):
    done = iqc("fim", *options)
    assert done.returncode == 2 and done.stderr.startswith(b"iqc fim: ") and done.stderr.count(b"\n") == 2

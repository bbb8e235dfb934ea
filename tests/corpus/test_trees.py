"""A tree with everything a tree can hold: what is listed, what is read, what is dropped and why."""

import os

import pytest

pytest.importorskip("iqc.syntax.languages")

from iqc.corpus.trees import MAX_BYTES, list_files, read_file
from iqc.errors import IqcError
from iqc.streams.stage import Dropped


def grow(root, files: dict[str, bytes]) -> None:
    for path, data in files.items():
        full = os.path.join(os.fsencode(root), os.fsencode(path))
        os.makedirs(os.path.dirname(full), exist_ok=True)
        with open(full, "wb") as file:
            file.write(data)


def test_listing_is_sorted_and_leaves_out_what_is_no_source(tmp_path):
    outside = tmp_path / "outside.py"
    outside.write_text("secret")
    root = tmp_path / "tree"
    grow(
        root,
        {
            p: b"x"
            for p in ("b.py", "a/z.py", "a-b.py", "a/B.py", ".git/config", "a/__pycache__/z.pyc", ".github/w.yml")
        },
    )
    (root / "link.py").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "inside.py").symlink_to(root / "b.py")
    os.mkfifo(root / "pipe")
    assert list_files(root) == [".github/w.yml", "a-b.py", "a/B.py", "a/z.py", "b.py"]


def test_a_document(tmp_path):
    grow(tmp_path, {"pkg/né.py": b"x = '\xc3\xa9'\r\n"})
    record = read_file(tmp_path, "pkg/né.py", "mine", repo="o/r")
    assert record["text"] == "x = 'é'\r\n" and record["source"] == "mine"
    assert record["metadata"] == {"path": "pkg/né.py", "lang": "python", "bytes": 10, "repo": "o/r"}


def test_the_id_depends_on_source_path_and_content_alone(tmp_path):
    grow(tmp_path, {"one/a.c": b"int x;", "one/b.c": b"int x;", "two/a.c": b"int x;"})
    ids = [read_file(tmp_path / top, path, source)["id"] for top, path, source in
           [("one", "a.c", "s"), ("two", "a.c", "s"), ("one", "b.c", "s"), ("one", "a.c", "t")]]  # fmt: skip
    assert ids[0] == ids[1] and len(set(ids)) == 3
    grow(tmp_path, {"two/a.c": b"int y;"})
    assert read_file(tmp_path / "two", "a.c", "s")["id"] != ids[0]


@pytest.mark.parametrize(
    ("data", "rule", "value"),
    [
        (b"\x7fELF\0\0", "binary", 4),
        ("x = 1\n".encode("utf-16"), "encoding", "utf-16-le"),
        (b"\xfe\xff\0x", "encoding", "utf-16-be"),
        ("x".encode("utf-32"), "encoding", "utf-32-le"),
        ("café".encode("latin-1"), "encoding", "not UTF-8 at byte 3: windows-1252, latin-1 or another legacy encoding"),
        (b"x" * (MAX_BYTES + 1), "file_bytes", MAX_BYTES + 1),
    ],
)
def test_what_is_dropped_and_why(tmp_path, data, rule, value):
    grow(tmp_path, {"f.py": data})
    got = read_file(tmp_path, "f.py", "s")
    assert isinstance(got, Dropped) and (got.rule, got.value) == (rule, value)
    assert got.record["id"] and got.record["metadata"]["bytes"] == len(data) and not got.record["text"]


def test_a_byte_order_mark_is_removed_and_an_empty_file_is_a_document(tmp_path):
    grow(tmp_path, {"a.py": b"\xef\xbb\xbfx\n", "b.py": b""})
    assert [read_file(tmp_path, p, "s")["text"] for p in list_files(tmp_path)] == ["x\n", ""]


def test_a_name_that_is_not_utf_8_is_dropped_by_a_printable_name(tmp_path):
    grow(tmp_path, {"caf\udce9.py": b"x"})
    (path,) = list_files(tmp_path)
    got = read_file(tmp_path, path, "s")
    assert (got.rule, got.value) == ("path_encoding", r"caf\xe9.py")


def test_what_cannot_be_read_is_an_error_with_a_remedy(tmp_path):
    for call in (lambda: list_files(tmp_path / "none"), lambda: read_file(tmp_path, "none", "s")):
        with pytest.raises(IqcError) as error:
            call()
        assert error.value.remedy and "none" in error.value.where

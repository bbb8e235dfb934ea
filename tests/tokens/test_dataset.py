"""Rows come back from wherever they lie; what is cut, damaged, swapped or no row is refused by name."""

import gzip
import os
import shutil
import subprocess
import sys

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.streams.container import read_index
from iqc.streams.frames import OpenFiles
from iqc.streams.runner import Settings, run_stage
from iqc.streams.writer import dump
from iqc.tokens import dataset as module
from iqc.tokens.dataset import Held, Shard, open_dataset
from iqc.tokens.sequence import decode_sequence


def contents(found):
    """(tokens, loss, lengths, ids) of all rows."""
    rows = found.rows(np.arange(len(found)))
    return [(row.tokens.tolist(), row.loss.tolist(), row.lengths.tolist(), row.ids) for row in rows]


def direct(records):
    rows = map(decode_sequence, records)
    return [(row.tokens.tolist(), row.loss.tolist(), row.lengths.tolist(), row.ids) for row in rows]


@given(sizes=st.lists(st.integers(0, 150), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_how_rows_are_sharded_does_not_matter(tmp_path_factory, rows_of, write_shards, sizes):
    place = tmp_path_factory.mktemp("rows")
    records = rows_of(sum(sizes))
    write_shards(place / "rows", records, sizes)
    if not records:
        with pytest.raises(IqcError, match="no training rows"):
            open_dataset([str(place / "rows")])
        return
    found, inputs = open_dataset([str(place / "rows")])
    with found:
        assert contents(found) == direct(records) and len(inputs) == 1
        some = np.random.Generator(np.random.PCG64(0)).integers(0, len(found), 50)
        assert [row.ids for row in found.rows(some)] == [records[index]["ids"] for index in some]


def test_every_form_of_input_gives_the_same_rows(tmp_path, rows_of, write_rows, write_shards, make_stream):
    records = rows_of(30)
    lines = b"".join(dump(record) + b"\n" for record in records)
    write_rows(tmp_path / "rows.zst", records)
    make_stream(tmp_path / "large-frames.zst", records, per_frame=7)
    (tmp_path / "rows.jsonl").write_bytes(lines)
    (tmp_path / "rows.gz").write_bytes(gzip.compress(lines))
    write_shards(tmp_path / "rows", records, [11, 0, 19])
    digests = set()
    kinds = {"rows.zst": Shard, "rows": Shard, "large-frames.zst": Held, "rows.jsonl": Held, "rows.gz": Held}
    for name, kind in kinds.items():
        found, (item,) = open_dataset([str(tmp_path / name)])
        with found:
            assert contents(found) == direct(records), name
            assert {type(part) for part in found.parts} == {kind} and item.records == 30
        digests |= {item.digest} if name != "rows" else set()
    assert len(digests) == 1
    found, inputs = open_dataset([str(tmp_path / name) for name in kinds])
    with found:
        assert contents(found) == direct(records) * 5 and len(inputs) == 5
        assert [found.place(index).rpartition("/")[2] for index in (0, 29, 30, 41, 149)] == [
            "rows.zst:1", "rows.zst:30", "part-00000.jsonl.zst:1", "part-00002.jsonl.zst:1", "rows.gz:30",
        ]  # fmt: skip


def test_a_pipe(tmp_path, rows_of, write_rows):
    write_rows(tmp_path / "rows.zst", rows_of(5))
    code = (
        "from iqc.tokens.dataset import open_dataset; found, (item,) = open_dataset([]); print(len(found), item.digest)"
    )
    with open(tmp_path / "rows.zst", "rb") as file:
        done = subprocess.run([sys.executable, "-c", code], stdin=file, capture_output=True, text=True, check=True)
        cat = subprocess.Popen(["cat", tmp_path / "rows.zst"], stdout=subprocess.PIPE)
        piped = subprocess.run([sys.executable, "-c", code], stdin=cat.stdout, capture_output=True, text=True)
    cat.wait()
    assert done.stdout == piped.stdout == f"5 {read_index(str(tmp_path / 'rows.zst')).lineage['output']['digest']}\n"


def test_what_is_held_is_bounded(tmp_path, rows_of):
    records = rows_of(20)
    total = sum(row[0].__len__() for row in direct(records))
    for name in "ab":
        (tmp_path / name).write_bytes(b"".join(dump(record) + b"\n" for record in records))
    assert len(open_dataset([str(tmp_path / "a")], max_held=total)[0]) == 20
    for names, bound in ((["a"], total - 1), (["a", "b"], 2 * total - 1)):
        with pytest.raises(IqcError, match="held in memory"):
            open_dataset([str(tmp_path / name) for name in names], max_held=bound)


def test_what_a_stage_writes_is_read_in_place(tmp_path, rows_of):
    records = rows_of(6)
    (tmp_path / "in.jsonl").write_bytes(b"".join(dump(record) + b"\n" for record in records))
    asked = Settings(inputs=[str(tmp_path / "in.jsonl")], output=f"{tmp_path}/rows/", quiet=True, shard_mib=0, jobs=1)
    run_stage("gather", {}, asked, lambda: lambda record: [record], reduce=iter)
    found, _ = open_dataset([f"{tmp_path}/rows"])
    with found:
        assert len(found.parts) >= 6 and contents(found) == direct(records)


def test_few_files_are_open_at_once(tmp_path, rows_of, write_shards, monkeypatch):
    records = rows_of(40)
    write_shards(tmp_path / "rows", records, [1] * 40)
    monkeypatch.setattr(module, "OpenFiles", lambda: OpenFiles(3))
    before = len(os.listdir("/proc/self/fd"))
    found, _ = open_dataset([str(tmp_path / "rows")])
    with found:
        assert contents(found) == direct(records)
        assert len(os.listdir("/proc/self/fd")) <= before + 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_damage_is_named(tmp_path, rows_of, write_rows, write_shards):
    records = rows_of(30)
    place = write_shards(tmp_path / "rows", records, [10, 10, 10])
    second = place / "part-00001.jsonl.zst"
    whole = second.read_bytes()
    frame = read_index(str(second)).frames[4]

    def fails(change, rows=range(30)):
        """The error of reading those rows when the second shard has other bytes; "" when they are what they were."""
        second.write_bytes(change)
        found, _ = open_dataset([str(place)])
        try:
            with found:
                assert [row.ids for row in found.rows(np.array(rows))] == [records[row]["ids"] for row in rows]
            return ""
        except IqcError as error:
            return str(error)

    harmless = 0
    for at in range(frame.offset, frame.offset + frame.compressed):
        bad = bytearray(whole)
        bad[at] ^= 0x10
        error = fails(bytes(bad), [14])
        assert not error or error.startswith(f"{second}:5: ")
        harmless += not error
    assert harmless <= 3  # bits without a meaning (RFC 8878): the checksum is of the text
    assert f"{second}: not a whole stream file" in fails(whole[:-1])
    assert f"{second}: not a whole stream file" in fails(whole[:-400])
    assert f"{second}: " in fails(whole[7:])
    assert f"{second}: not the shard that its manifest lists" in fails((place / "part-00002.jsonl.zst").read_bytes())
    write_rows(second, records[9:20])
    assert f"{second}: not the shard" in fails(second.read_bytes())
    second.write_bytes(whole)
    found, _ = open_dataset([str(place)])
    with found:
        list(found.rows(np.array([15])))
        os.truncate(second, 40)
        with pytest.raises(IqcError, match="shorter than when it was opened"):
            list(found.rows(np.array([19])))
    second.unlink()
    found, _ = open_dataset([str(place)])
    with found, pytest.raises(IqcError, match="not a whole stream file"):
        list(found.rows(np.array([15])))


def test_a_file_that_is_replaced_is_noticed(tmp_path, rows_of, write_shards, monkeypatch):
    place = write_shards(tmp_path / "rows", rows_of(6), [1] * 6)
    monkeypatch.setattr(module, "OpenFiles", lambda: OpenFiles(1))
    found, _ = open_dataset([str(place)])
    with found:
        list(found.rows(np.arange(6)))
        shutil.copy(place / "part-00001.jsonl.zst", tmp_path / "copy")
        os.replace(tmp_path / "copy", place / "part-00001.jsonl.zst")
        with pytest.raises(IqcError, match=r"part-00001.*replaced while it was in use"):
            list(found.rows(np.arange(6)))


def test_what_is_no_row_is_named(tmp_path, rows_of, write_rows, make_stream):
    good = rows_of(3)
    bad = {
        "trie": (good[1] | {"parents": "AAAA"}, "trie"),
        "sum": (good[1] | {"lengths": good[2]["lengths"]}, "add up"),
        "ids": (good[1] | {"ids": []}, "one id each"),
        "base64": (good[1] | {"tokens": "?"}, "not base64"),
    }
    for name, (record, match) in bad.items():
        write_rows(tmp_path / name, [good[0], record, good[2]])
        found, _ = open_dataset([str(tmp_path / name)])
        with found, pytest.raises(BadRecord, match=match) as caught:
            list(found.rows(np.arange(3)))
        assert caught.value.where == f"{tmp_path / name}:2" and caught.value.remedy
        plain = tmp_path / f"{name}.jsonl"
        plain.write_bytes(b"\n".join([dump(good[0]), b"", dump(record)]) + b"\n")  # read when it is opened
        with pytest.raises(BadRecord, match=match) as caught:
            open_dataset([str(plain)])
        assert caught.value.where == f"{plain}:3" and caught.value.remedy
    make_stream(tmp_path / "other", [{"id": "x", "text": "no row"}], per_frame=1)
    found, _ = open_dataset([str(tmp_path / "other")])
    with found, pytest.raises(BadRecord, match="no sequence record: it has no tokens"):
        list(found.rows(np.arange(1)))


def test_an_older_directory_is_held(tmp_path, rows_of, write_shards, make_stream):
    """Of frames of several rows, as stages wrote them once: whole in memory, or refused where only some shards are."""
    records = rows_of(12)
    place = write_shards(tmp_path / "rows", records, [4, 4, 4])
    manifest = orjson.loads((place / "manifest.json").read_bytes())
    for number in range(3):
        make_stream(place / f"part-0000{number}.jsonl.zst", records[4 * number : 4 * number + 4])
    found, _ = open_dataset([str(place)])
    with found:
        assert contents(found) == direct(records) and type(found.parts[0]) is Held
    assert manifest["output"]["records"] == 12
    write_shards(tmp_path / "again", records, [4, 4, 4])
    make_stream(tmp_path / "again" / "part-00001.jsonl.zst", records[4:8])
    found, _ = open_dataset([str(tmp_path / "again")])
    with found, pytest.raises(IqcError, match=r"part-00001.*frames of several records"):
        contents(found)

"""Any container gives the same records and the same digest; odd lines; where chunks end."""

import gzip
import io
import json
import subprocess

import orjson
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.streams import container, reader, worker
from iqc.streams.container import CHUNK, MAX_RECORD, ByteSource, skippable
from iqc.streams.lineage import Digest, line_digest
from iqc.streams.reader import LONG

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.from_regex(r"\A, ?[0-9]{19,22} ?,\Z"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.lists(st.dictionaries(TEXT, VALUES, max_size=5), max_size=12)


@given(records=RECORDS, per_frame=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_round_trip_of_any_records(tmp_path_factory, make_stream, read, records, per_frame):
    path = tmp_path_factory.getbasetemp() / "trip.zst"
    found, digest, lineage = read(make_stream(path, records, per_frame))
    assert found == records and digest == lineage["output"]["digest"]
    assert [list(record) for record in found] == [list(record) for record in records]  # fields keep their order


@given(records=RECORDS)
@settings(max_examples=60, deadline=None)
def test_every_container_gives_the_same_records_and_digest(tmp_path_factory, make_stream, read, records):
    place = tmp_path_factory.getbasetemp()
    ours = make_stream(place / "ours.zst", records, 3)
    lines = [orjson.dumps(record) + b"\n" for record in records]
    text = b"".join(lines)
    stream = zstandard.ZstdCompressor().compressobj()
    zst = zstandard.ZstdCompressor(write_content_size=False)
    forms = {
        "plain": text,
        "unended": text.removesuffix(b"\n"),
        "blank": b"\n \n".join([b"", *lines, b""]),
        "gzip": gzip.compress(text),
        "members": b"".join(gzip.compress(line) for line in [b"", *lines]),
        "one-frame": zst.compress(text),
        "unsized": stream.compress(text) + stream.flush(),
        "frames": b"".join(zst.compress(line) for line in [b"", *lines]),
        "torn": b"".join(zst.compress(text[n : n + 7]) for n in range(0, len(text) or 1, 7)),
        "skippable": skippable(0x184D2A50, b"hello") + zst.compress(text) + skippable(0x184D2A5F, b""),
    }
    expected = read(ours)[:2]
    for name, data in forms.items():
        path = place / name
        path.write_bytes(data)
        assert read(path)[:2] == expected, name


def test_one_giant_foreign_frame(samples, read, iqc):
    subprocess.run(["zstd", "-qf", "--long=27", "sample.jsonl", "-o", "giant.zst"], cwd=samples, check=True)
    records, digest, lineage = read(samples / "giant.zst")
    plain = read(samples / "sample.jsonl")
    ours = read(samples / "sample.zst")
    assert lineage is None and (records, digest) == plain[:2] and records == ours[0] and digest == ours[1]


def chunks_of(data, piece=1 << 20):
    source = reader.Source("x")
    texts = (data[start : start + piece] for start in range(0, len(data), piece))
    return [chunk.text for chunk in source._cut(texts, "x")]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_chunk_ends_at_the_first_line_end_at_or_after_its_size(over):
    first = b"a" * (CHUNK - 1 + over) + b"\n"
    found = chunks_of(first + b"b\n" + b"c")
    assert found == ([first, b"b\nc"] if over >= 0 else [first + b"b\n", b"c"])
    assert chunks_of(first + b"b\n" + b"c", piece=4097) == found


@given(st.lists(st.sampled_from([0, 1, 99, LONG - 1, LONG, LONG + 1, 9 * LONG]), max_size=20), st.booleans())
@settings(max_examples=100, deadline=None)
def test_lines_are_those_of_split(sizes, ended):
    text = b"\n".join(bytes([65 + number]) * size for number, size in enumerate(sizes)) + b"\n" * ended
    lines = text.split(b"\n")
    if not lines[-1]:
        lines.pop()
    assert list(reader.Chunk(0, "x", text=text).lines()) == lines
    frame = container.compress(text, len(lines)).data
    assert list(reader.Chunk(0, "x", frame=frame, records=len(lines)).lines()) == lines
    with pytest.raises(IqcError, match=f"a frame of {len(lines)} records"):
        list(reader.Chunk(0, "x", frame=frame, records=len(lines) + 1).lines())


@given(sizes=st.lists(st.integers(0, 200), max_size=60), piece=st.integers(1, 70))
@settings(max_examples=100, deadline=None)
def test_chunks_do_not_depend_on_how_the_bytes_arrive(sizes, piece):
    before = reader.CHUNK, reader.MAX_RECORD
    reader.CHUNK, reader.MAX_RECORD = 64, 150
    try:
        data = b"\n".join(b"x" * size for size in sizes)
        whole, pieces = chunks_of(data), chunks_of(data, piece)
        if max(sizes, default=0) <= 150:
            assert whole == pieces and b"".join(whole) == data
            assert all(len(chunk) >= 64 and chunk.endswith(b"\n") for chunk in whole[:-1])
        lines = b"".join(pieces).split(b"\n")
        assert len(lines) == max(1, len(sizes))
        for size, line in zip(sizes, lines):
            assert line.endswith(reader.OVERSIZED) if size > 150 + 70 else size > 150 or len(line) == size
    finally:
        reader.CHUNK, reader.MAX_RECORD = before


def test_a_record_larger_than_a_chunk_and_one_over_the_cap(tmp_path, iqc, read):
    path = tmp_path / "long.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"id":"0"}\n{"id":"1","text":"' + b"x" * (CHUNK + 5) + b'"}\n')
        file.write(b'{"id":"2","text":"' + b"x" * (MAX_RECORD + (3 << 20)) + b'"}\n{"id":"3"}\n')
    failed = iqc("head", "-n", "all", path, "-o", tmp_path / "out.zst")
    assert failed.returncode == 1 and b"long.jsonl:3: a record over 64 MiB" in failed.stderr
    assert not (tmp_path / "out.zst").exists()
    assert iqc("head", "-n", "all", path, "-o", tmp_path / "out.zst", "--on-error", "skip", "-j2").returncode == 0
    assert [record["id"] for record in read(tmp_path / "out.zst")[0]] == ["0", "1", "3"]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1e999}', "not JSON"),
        (b'{"a": "\\ud800"}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        (b'{"a": "\xed\xa0\x80"}', "not JSON"),
        (b'{"a": 18446744073709551616}', "beyond 64 bits"),
        (b'{"a": [1, -9223372036854775809]}', "beyond 64 bits"),
        (b'{"a": 123456789012345678901, "b": 123456789012345678902}', "beyond 64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON|beyond 64 bits"),
        (b"[1]", "a JSON list"),
        (b"null", "a JSON NoneType"),
        (b"\0\0\0\0", "binary data"),
        (b'{"a": "\0"}', "binary data"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
    ],
)
def test_a_bad_line_is_named(line, what):
    with pytest.raises(IqcError, match=what):
        worker.parse(line)


def test_odd_lines_that_are_good():
    assert worker.parse(b'{"id": "a"}\r') == {"id": "a"}
    assert worker.parse(b' \t{"id": "a", "id": "b"} ') == {"id": "b"}
    assert worker.parse(b'{"a": 18446744073709551615, "b": 1e30}') == {"a": 2**64 - 1, "b": 1e30}
    assert worker.parse(b'{"a": ",99999999999999999999,", "b": 1e30, "c": "\\",1e99"}')["b"] == 1e30
    assert worker.parse(b'{"a": "\\u0000"}') == {"a": "\0"}


def test_a_deep_record_that_can_be_read_but_not_written_is_bad(tmp_path, iqc):
    path = tmp_path / "deep.jsonl"
    path.write_bytes(b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}\n")
    for count in ("1", "all"):
        done = iqc("head", "-n", count, path, "-o", tmp_path / "out.zst")
        assert done.returncode == 1 and b"cannot be written as JSON" in done.stderr
    assert not (tmp_path / "out.zst").exists()


def test_crlf_blank_lines_no_final_newline_and_duplicate_ids(tmp_path, iqc):
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b'\r\n\n{"id":"a"}\r\n\n  \n{"id":"a"}\r\n{"id":"b"}')
    done = iqc("head", "-n", "all", "--plain", path)
    assert done.stdout == b'{"id":"a"}\n{"id":"a"}\n{"id":"b"}\n'
    path.write_bytes(path.read_bytes() + b"\nnot")
    done = iqc("head", "-n", "all", "--plain", path)
    assert done.returncode == 1 and b"odd.jsonl:8: not JSON" in done.stderr


def test_line_numbers_after_a_chunk_that_ends_with_blank_lines(tmp_path, iqc):
    path = tmp_path / "blank.jsonl"
    line = json.dumps({"id": "x", "text": "y" * (1 << 20)}).encode()
    path.write_bytes((line + b"\n") * 7 + b" " * (1 << 20) + b"\nbad\n")
    for jobs in (1, 2):
        done = iqc("head", "-n", "all", path, "-j", jobs)
        assert b"blank.jsonl:9: not JSON" in done.stderr


def test_empty_inputs(tmp_path, make_stream, read, iqc):
    (tmp_path / "empty.jsonl").write_bytes(b"")
    (tmp_path / "empty.gz").write_bytes(gzip.compress(b""))
    (tmp_path / "foreign.zst").write_bytes(zstandard.ZstdCompressor().compress(b""))
    make_stream(tmp_path / "ours.zst", [])
    for name in ("empty.jsonl", "empty.gz", "foreign.zst", "ours.zst"):
        records, digest, _ = read(tmp_path / name)
        assert records == [] and digest == Digest().text(), name
        once = iqc("head", "-n", "all", tmp_path / name).stdout
        assert iqc("head", "-n", "all", stdin=once).returncode == 0
    (tmp_path / "cut.zst").write_bytes(b"")
    assert b"truncated" in iqc("head", tmp_path / "cut.zst").stderr
    done = iqc("head", "-n", "all")
    assert done.returncode == 1 and b"not even the mark of" in done.stderr


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_cut_foreign_file_is_an_error(tmp_path, fails, name):
    text = b"".join(b'{"id":"%d"}\n' % n for n in range(50))
    data = gzip.compress(text) if name == "gzip" else zstandard.ZstdCompressor(write_checksum=True).compress(text)
    path = tmp_path / "cut"
    for length in range(4, len(data)):
        path.write_bytes(data[:length])
        assert fails(path) is None, length


def test_a_directory_of_shards_is_one_input(tmp_path, samples, read, iqc):
    out = tmp_path / "shards"
    assert iqc("head", "-n", "all", samples / "sample.zst", "-o", f"{out}/", "--shard-mib", 8).returncode == 0
    made = iqc("head", "-n", "all", out, "-o", tmp_path / "again.zst")
    assert made.returncode == 0 and read(tmp_path / "again.zst")[0] == read(samples / "sample.zst")[0]
    assert iqc("lineage", "--verify", out).returncode == 0
    shard = sorted(out.glob("part-*"))[1]
    shard.write_bytes(sorted(out.glob("part-*"))[0].read_bytes())
    for check in (["head", "-n", "all", out], ["lineage", "--verify", out]):
        done = iqc(*check)
        assert done.returncode == 1 and (b"part-00001" in done.stderr or b"its digest is" in done.stderr)
    shard.unlink()
    assert iqc("head", "-n", "all", out).returncode == 1
    (out / "manifest.json").unlink()
    done = iqc("head", "-n", "all", out)
    assert done.returncode == 1 and b"a directory without manifest.json" in done.stderr


def test_the_digest_is_that_of_the_lines():
    digest = Digest()
    digest.add(line_digest(b"a") + line_digest(b"b"))
    other = Digest()
    other.add(line_digest(b"a"))
    other.add(line_digest(b"b"))
    assert digest.text() == other.text() != Digest().text()


def test_a_gzip_bomb_is_read_a_megabyte_at_a_time():
    bomb = gzip.compress(b"\0" * (64 << 20), 9)
    source = ByteSource(io.BufferedReader(io.BytesIO(bomb)), "x")
    assert max(map(len, container.gzip_text(source))) <= 1 << 20


@given(sizes=st.lists(st.integers(0, 400), max_size=60), per_frame=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_small_frames_come_together_and_the_same_from_a_pipe(tmp_path_factory, make_stream, sizes, per_frame):
    path = make_stream(tmp_path_factory.getbasetemp() / "small.zst", [{"x": "y" * size} for size in sizes], per_frame)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "GATHER", 1000)
        patch.setattr(reader, "CHUNK", 2000)
        whole = [list(chunk.lines()) for chunk in reader.Source(str(path)).chunks()]
        patch.setattr(container, "read_index", lambda path: None)
        piped = [list(chunk.lines()) for chunk in reader.Source(str(path)).chunks()]
    assert piped == whole
    assert [line for lines in whole for line in lines] == [orjson.dumps({"x": "y" * size}) for size in sizes]
    chunks = [sum(len(line) + 1 for line in lines) for lines in whole]
    assert all(size <= 2000 for size in chunks)
    # a chunk ends before 1000 bytes only where the next frame would take it beyond 2000
    assert all(size >= 1000 or size + chunks[at + 1] > 2000 for at, size in enumerate(chunks[:-1]))

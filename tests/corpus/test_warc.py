"""WARC files built by hypothesis and read back in every packing, and the real ones with their counts."""

import gzip
import io
import zlib
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from iqc.corpus import warc
from iqc.corpus.warc import documents, parse_http, read_records
from iqc.errors import IqcError
from iqc.streams.stage import Dropped

SHARED = Path(__file__).resolve().parents[2] / "../shared/data/warc"


def record(payload: bytes, kind: str = "resource", **headers: str) -> bytes:
    lines = ["WARC/1.1", f"WARC-Type: {kind}", f"Content-Length: {len(payload)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload + b"\r\n\r\n"


def http(body: bytes, headers: bytes = b"Content-Type: text/plain\r\n", status: int = 200) -> bytes:
    payload = b"HTTP/1.1 %d X\r\n" % status + headers + b"\r\n" + body
    return record(payload, "response", Content_Type="application/http; msgtype=response")


def write(path: Path, records: list[bytes], packing: str) -> Path:
    data = {
        "plain": lambda: b"".join(records),
        "gzip": lambda: b"".join(map(gzip.compress, records)),
        "one member": lambda: gzip.compress(b"".join(records)),
        "zstd": lambda: b"".join(map(zstandard.compress, records)),
    }[packing]()
    path.write_bytes(data)
    return path


def read(path: Path) -> list:
    return list(documents(path))


payloads = st.lists(
    st.binary(max_size=300) | st.sampled_from([b"WARC/1.0\r\n\r\n", b"\r\n" * 9]), min_size=1, max_size=6
)
function_scoped = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)


@pytest.mark.parametrize("packing", ["plain", "gzip", "one member", "zstd"])
@given(payloads=payloads, chunk=st.sampled_from([1, 7, 65536]))
@function_scoped
def test_what_is_written_is_read(tmp_path, packing, payloads, chunk):
    path = write(tmp_path / "x.warc", [record(p) for p in payloads], packing)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warc, "_CHUNK", chunk)  # every boundary falls everywhere
        assert [payload for _, _, payload in read_records(path)] == payloads


@given(payloads)
@function_scoped
def test_offsets_are_where_a_record_can_be_read_from(tmp_path, payloads):
    plain = write(tmp_path / "x.warc", [record(p) for p in payloads], "plain")
    packed = write(tmp_path / "x.warc.gz", [record(p) for p in payloads], "gzip")
    for (at, headers, payload), (packed_at, _, _) in zip(read_records(plain), read_records(packed)):
        assert plain.read_bytes()[at:].startswith(record(payload))
        assert zlib.decompressobj(31).decompress(packed.read_bytes()[packed_at:]) == record(payload)
        assert headers["warc-type"] == "resource"


@pytest.mark.parametrize("packing", ["plain", "gzip", "one member", "zstd"])
@given(payloads=payloads, share=st.floats(0, 1, exclude_max=True))
@function_scoped
def test_a_cut_file_gives_whole_records_then_an_error_that_names_a_byte(tmp_path, packing, payloads, share):
    records = [record(p) for p in payloads]
    data = write(tmp_path / "x.warc", records, packing).read_bytes()
    path = tmp_path / "cut.warc"
    path.write_bytes(cut := data[: int(len(data) * share)])
    got, silent = [], True
    try:
        for _, _, payload in read_records(path):
            got.append(payload)
    except IqcError as error:
        assert "byte" in error.what and error.where == str(path)
        silent = False
    assert got == payloads[: len(got)]
    if silent:  # then the cut fell between two records, or into the line ends after the last one
        whole = write(path, records[: len(got)], packing).read_bytes() if got or packing != "one member" else b""
        assert whole == cut if packing != "plain" else cut.rstrip(b"\r\n") == whole.rstrip(b"\r\n")


@settings(deadline=None)
@given(body=st.binary(max_size=200), sizes=st.lists(st.integers(1, 50), max_size=9), upper=st.booleans())
def test_chunks_are_joined(body, sizes, upper):
    out, at = io.BytesIO(), 0
    for size in [*sizes, 1 << 20]:
        piece = body[at : at + size]
        at += size
        if piece:
            out.write((f"{len(piece):X}" if upper else f"{len(piece):x};a=b").encode() + b"\r\n" + piece + b"\r\n")
    out.write(b"0\r\n\r\n")
    payload = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + out.getvalue()
    assert parse_http(payload) == (200, {"transfer-encoding": "chunked"}, body)


def test_a_chunked_header_over_a_joined_body(tmp_path):
    body = b"plain words, no chunk size"
    path = write(tmp_path / "x", [http(body, b"Content-Type: text/plain\r\nTransfer-Encoding: chunked\r\n")], "gzip")
    assert [d["text"] for d in read(path)] == [body.decode()]


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("gzip", bytes),
        ("identity", bytes),
    ],
)
def test_content_encodings(tmp_path, coding, pack):
    headers = f"Content-Type: text/plain; charset=utf-8\r\nContent-Encoding: {coding}\r\n".encode()
    path = write(tmp_path / "x", [http(pack("grüße".encode()), headers)], "plain")
    assert [d["text"] for d in read(path)] == ["grüße"]


@pytest.mark.parametrize(
    ("data", "rule", "value"),
    [
        (http(b"", status=404), "http_status", 404),
        (http(b"x", b"Content-Type: image/png\r\n"), "media_type", "image/png"),
        (http(b"x", b"Content-Type: text/plain\r\nContent-Encoding: br\r\n"), "content_encoding", "br"),
        (http(b" \n"), "empty", 0),
        (record(b"garbage", "response", Content_Type="application/http"), "http", "no HTTP status line: b'garbage'"),
        (record(b"1.2.3.4", "response", Content_Type="text/dns"), "record_type", "text/dns"),
    ],
)
def test_what_is_dropped_and_why(tmp_path, data, rule, value):
    path = write(tmp_path / "x", [data, http(b"the next one")], "gzip")
    bad, good = read(path)
    assert isinstance(bad, Dropped) and (bad.rule, bad.value) == (rule, value)
    assert good["text"] == "the next one"


def test_a_bomb_and_a_film_are_dropped_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(warc, "MAX_BODY", 1000)
    bomb = http(gzip.compress(bytes(5000)), b"Content-Type: text/plain\r\nContent-Encoding: gzip\r\n")
    path = write(tmp_path / "x", [bomb, http(b"." * 2000), http(b"ok")], "gzip")
    assert [r.rule if isinstance(r, Dropped) else r["text"] for r in read(path)] == [
        "content_encoding",
        "payload_bytes",
        "ok",
    ]


@pytest.mark.parametrize(
    ("charset", "declared", "head"),
    [
        ("utf-8", "; charset=UTF-8", ""),
        ("windows-1252", "; charset=ISO-8859-1", ""),
        ("koi8-r", "", "<meta charset='koi8-r'>"),
        ("shift_jis", "", '<meta http-equiv="Content-Type" content="text/html; charset=Shift_JIS">'),
        ("utf-8", "; charset=no-such", "<meta charset=utf-8>"),
        ("utf-8", "; charset=utf-8", "<meta charset=latin1>"),
        ("utf-16", "", ""),
    ],
)
def test_charsets(tmp_path, charset, declared, head):
    word = {"koi8-r": "привет", "shift_jis": "日本語"}.get(charset, "“café”" if charset == "windows-1252" else "café")
    page = f"<html><head>{head}</head><body><p>{word} {word}</p></body></html>".encode(charset)
    path = write(tmp_path / "x", [http(page, f"Content-Type: text/html{declared}\r\n".encode())], "gzip")
    assert [d["text"] for d in read(path)] == [f"{word} {word}"]


def test_conversion_records_are_text_and_ids_are_stable(tmp_path):
    wet = record("naïve\n".encode(), "conversion", Content_Type="text/plain", WARC_Record_ID="<urn:uuid:1-2>")
    path = write(tmp_path / "x.wet.gz", [record(b"", "warcinfo"), wet, wet.replace(b"WARC-Record-ID", b"X")], "gzip")
    first, second = read(path)
    assert (first["id"], first["text"], first["source"]) == ("1-2", "naïve\n", "x.wet.gz")
    assert len(second["id"]) == 32 and second == read(path)[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"filedesc://x.arc 0.0.0.0 20000101 text/plain 1\n", "an ARC file"),
        (b"\x04\x22\x4d\x18....", "lz4"),
        (b"hello\n", "byte 0: not a WARC record"),
        (b"WARC/1.0\r\nContent-Length: -1\r\n\r\n", "usable Content-Length"),
        (b"WARC/1.0\r\nWARC-Type: x\r\n\r\n", "usable Content-Length"),
        (b"WARC/1.0\r\nX: " + b"y" * 200_000, "header line of more than"),
        (b"WARC/1.0\r\n" + b"X: y\r\n" * 2000, "header lines"),
        (gzip.compress(record(b"x"))[:10] + b"\xff" * 99, "corrupt gzip"),
    ],
)
def test_refusals_are_by_name(tmp_path, data, message):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(IqcError, match=message) as error:
        list(read_records(path))
    assert error.value.remedy


def test_an_empty_file_has_no_records(tmp_path):
    (tmp_path / "x").touch()
    assert not list(read_records(tmp_path / "x"))


# Real files: (records, kept documents, words of the error or None).
REAL = {
    "whirlwind-python__whirlwind.warc.gz": (4, 1, None),
    "whirlwind-python__whirlwind.warc.wet.gz": (2, 1, None),
    "whirlwind-python__whirlwind.warc.wat.gz": (2, 0, None),
    "dolma__sample-0000.warc.gz": (48, 24, None),
    "chatnoir-resiliparse__warcfile.warc.gz": (50, 16, None),
    "chatnoir-resiliparse__warcfile.warc.lz4": (0, 0, "lz4"),
    "chatnoir-resiliparse__clipped.warc.gz": (0, 0, "byte 18184: ends inside a gzip member"),
    "chatnoir-resiliparse__block-sized-records.warc.gz": (3, 0, None),
    "jwarc__cc.warc.gz": (1, 1, None),
    "aut__example.warc.gz": (822, 128, None),
    "aut__issue-514.warc": (8, 3, None),
    "webarchive-discovery__BL-20140325121225068-00000-32090_opera_8443.warc.gz": (190, 34, None),
    "webarchive-discovery__flashfrozen-jwat-recompressed.warc.gz": (82, 4, None),
    "webarchive-discovery__IAH-20080430204825-00000-blackbook-truncated.warc.gz": (23, 3, None),
    "webarchive-discovery__transfer_compression_brotli.warc.gz": (5, 1, None),
    "webarchive-discovery__truncated_datetime.warc": (5, 2, None),
    "node-warc__parseMe.warc.gz": (30, 1, None),
    "warcio__bad.arc": (0, 0, "ARC"),
    "warcio__example-digest.warc": (4, 0, None),
    "warcio__example-iana.org-chunked.warc": (3, 1, None),
    "warcio__example-resource.warc.gz": (3, 1, None),
    "warcio__example-space-in-target-uri.warc.gz": (2, 0, None),
    "warcio__example-trunc.warc": (3, 1, "byte 2560: not a WARC record"),
    "warcio__example-wrong-chunks.warc.gz": (2, 1, None),
    "warcio__example.arc": (0, 0, "ARC"),
    "warcio__example.arc.gz": (0, 0, "ARC"),
    "warcio__example.warc": (6, 1, None),
    "warcio__example.warc.gz": (6, 1, None),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} absent")
    kinds: Counter = Counter()
    out, message = [], None
    try:
        for _, headers, _ in read_records(SHARED / name):
            kinds[headers.get("warc-type")] += 1
    except IqcError as error:
        message = error.what
    try:
        out += documents(SHARED / name)
    except IqcError as error:
        assert error.what == message
    records, kept, expected = REAL[name]
    assert kinds.total() == records
    assert (message is None) == (expected is None) and (expected or "") in (message or "")
    assert sum(isinstance(r, dict) for r in out) == kept
    assert all(r["text"].strip() and r["id"] for r in out if isinstance(r, dict))


@pytest.mark.parametrize("name", ["dolma__sample-0000.warc.gz", "warcio__example.warc.gz", "aut__example.warc.gz"])
def test_a_real_file_reads_the_same_unpacked(tmp_path, name):
    if not (SHARED / name).exists():
        pytest.skip(f"{name} absent")
    (tmp_path / "x").write_bytes(gzip.decompress((SHARED / name).read_bytes()))
    assert [r[1:] for r in read_records(SHARED / name)] == [r[1:] for r in read_records(tmp_path / "x")]

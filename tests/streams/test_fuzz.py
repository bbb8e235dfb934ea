"""Damaged and hostile inputs end in an error for the user or in records: no traceback, no hang, no great memory.

The same cases by the thousand, in a subprocess whose memory is watched: tests/bench/fuzz_streams.py.
"""

import gzip
import io
import random
import struct
import time

import orjson
import pytest
import zstandard

from iqc.errors import IqcError
from iqc.streams import container, inspect, reader, runner
from iqc.streams.container import FrameWriter, compress, mark, skippable
from iqc.streams.lineage import Digest, Stage, line_digest, lineage_of

SECONDS = 20  # that one case may take; the slowest, 100 MB of blank lines, takes about 13


def stream(lines: list[bytes], per_frame: int) -> bytes:
    file, digest = io.BytesIO(), Digest()
    writer = FrameWriter(file)
    for start in range(0, len(lines), per_frame):
        part = lines[start : start + per_frame]
        writer.write(compress(b"\n".join(part) + b"\n", len(part)))
    digest.add(b"".join(map(line_digest, lines)))
    output = {"digest": digest.text(), "records": len(lines), "bytes": sum(len(line) + 1 for line in lines)}
    writer.finish(lineage_of(Stage("sample", "1"), [], {"read": len(lines), "kept": len(lines)}, output))
    return file.getvalue()


def seed_input(draw: random.Random) -> bytes:
    """A good input in one of the forms."""
    lines = []
    for number in range(draw.randrange(40)):
        text = "".join(draw.choices('abc \u00e9\u4e2d\U0001f600\\"\n\0', k=draw.randrange(60)))
        lines.append(orjson.dumps({"id": str(number), "text": text, "n": draw.choice([0, 2**63, 1e30, None, [[]]])}))
    text = b"".join(line + b"\n" for line in lines)
    zst = zstandard.ZstdCompressor(write_checksum=draw.random() < 0.5, write_content_size=draw.random() < 0.5)
    form = draw.randrange(5)
    if form == 0:
        return text
    if form == 1:
        return gzip.compress(text, mtime=0)
    if form == 2:
        return zst.compress(text) + skippable(0x184D2A50, b"hello") + zst.compress(text)
    return stream(lines, draw.randrange(1, 9))


def flip(data: bytes, draw: random.Random) -> bytes:
    flipped = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8])):
        if flipped:
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def cut(data: bytes, draw: random.Random) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def splice(data: bytes, draw: random.Random) -> bytes:
    other = seed_input(draw)
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def insert(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    what = [
        b"\0" * draw.randrange(1, 5000),
        b"\xff\xfe",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"\n\n\r\n",
        draw.randbytes(30),
    ]
    return data[:place] + draw.choice(what) + data[place:]


def overwrite_number(data: bytes, draw: random.Random) -> bytes:
    """Sizes of headers, seek tables and skippable frames are little-endian numbers."""
    if len(data) < 8:
        return data
    place = draw.choice([draw.randrange(len(data) - 7), max(0, len(data) - draw.randrange(8, 60)), draw.randrange(8)])
    number = draw.choice([0, 1, 2**31 - 1, 2**32 - 1, 2**63, 2**64 - 1, len(data), draw.randrange(2**32)])
    return data[:place] + struct.pack("<Q", number)[: draw.choice([4, 8])] + data[place + 8 :]


def new_table(data: bytes, draw: random.Random) -> bytes:
    entries = [(draw.randrange(len(data) + 1), draw.randrange(2000)) for _ in range(draw.randrange(6))]
    if entries and draw.random() < 0.5:  # its sum is right
        total = sum(size for size, _ in entries[:-1])
        entries[-1] = (max(0, len(data) - total), 0)
    return data + container.seek_table(entries)


def edit_lineage(data: bytes, draw: random.Random) -> bytes:
    start = data.find(b'{"iqc":')
    if start < 0:
        return flip(data, draw)
    end = data.find(b"}", data.find(b'"frames"', start)) + 1 or len(data)
    words = [b"null", b"[]", b"{}", b"-1", b'"x"', b"1e9", b'"sha256:"', b""]
    text = data[start:end]
    place = draw.randrange(len(text))
    stop = min(len(text), place + draw.randrange(1, 12))
    return (
        data[:start] + (text[:place] + draw.choice(words) + text[stop:])[: end - start].ljust(end - start) + data[end:]
    )


def deep(data: bytes, draw: random.Random) -> bytes:
    depth = draw.choice([200, 300, 1000, 5000, 100_000])
    opening, closing = draw.choice([(b"[", b"]"), (b'{"a":', b"}")])
    return b'{"id":"deep","a":' + opening * depth + b"1" + closing * draw.choice([depth, depth - 1]) + b"}\n" + data


SMALL = [flip, flip, flip, cut, splice, insert, overwrite_number, overwrite_number, new_table, edit_lineage, deep]


def gzip_bomb(draw: random.Random) -> bytes:
    return gzip.compress(draw.choice([b"\0", b"\n", b" ", b"["]) * (draw.choice([20, 50]) << 20), 9)


def zstd_bomb(draw: random.Random) -> bytes:
    zst = zstandard.ZstdCompressor(level=1, write_content_size=draw.random() < 0.5)
    return zst.compress(draw.choice([b"\0", b"\n", b"x"]) * (draw.choice([20, 50]) << 20)) * draw.randrange(1, 3)


def rle_bomb(draw: random.Random) -> bytes:
    """Blocks of 4 bytes that regenerate 128 KiB each, in a frame that says nothing, or lies, of its size."""
    count = draw.choice([400, 2000])
    header = draw.choice([b"\x00\x58", b"\xe4" + struct.pack("<Q", 1 << 20), b"\xe4" + struct.pack("<Q", 2**50)])
    blocks = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"{"
    return b"\x28\xb5\x2f\xfd" + header + blocks * count + b"\x01\x00\x00"


def many_blocks(draw: random.Random) -> bytes:
    """A marked frame of very many empty blocks."""
    header = b"\x28\xb5\x2f\xfd\xe4" + struct.pack("<Q", draw.choice([0, 5, 2**33]))
    return header + b"\x00\x00\x00" * draw.choice([1000, 300_000]) + b"\x01\x00\x00" + b"\x99\xe9\xd8\x51"


def huge_content_size(draw: random.Random) -> bytes:
    data = compress(b'{"id":"a"}\n', 1).data
    return mark(data, draw.choice([2**26, 2**27, 2**31, 2**40, 2**64 - 1])) * draw.randrange(1, 3)


def huge_window(draw: random.Random) -> bytes:
    return b"\x28\xb5\x2f\xfd\x00" + bytes([draw.choice([0x88, 0x90, 0xF8, 0xFF])]) + b"\x09\x00\x00a" + b"\x01\x00\x00"


def huge_skippable(draw: random.Random) -> bytes:
    size = draw.choice([2**20, 50 << 20, 2**31, 2**32 - 1])
    first = draw.choice([b"", compress(b"", 0).data, mark(compress(b"", 0).data, 0)])
    return (
        first + struct.pack("<II", draw.choice([0x184D2A50, 0x184D2A52, 0x184D2A5E]), size) + b"\0" * draw.randrange(9)
    )


def long_line(draw: random.Random) -> bytes:
    size = draw.choice([9, 50]) << 20
    line = draw.choice([b'{"id":"' + b"a" * size + b'"}\n', b"a" * size, b"\0" * size, b"[" * size + b"\n"])
    return line + draw.choice([b"", b'{"id":"b"}\n'])


LARGE = [gzip_bomb, zstd_bomb, rle_bomb, many_blocks, huge_content_size, huge_window, huge_skippable, long_line]


def case(number: int, large_share: float = 0.01) -> tuple[str, bytes]:
    """The name and the bytes of one case; they depend on the number alone."""
    draw = random.Random(f"streams {number}")
    if draw.random() < large_share:
        make = draw.choice(LARGE)
        return make.__name__, make(draw)
    data, names = seed_input(draw), []
    for _ in range(draw.choice([1, 1, 2, 3])):
        change = draw.choice(SMALL)
        data = change(data, draw)
        names.append(change.__name__)
    return "+".join(names), data


def run_case(path: str, data: bytes, jobs: int = 1) -> str:
    """Put one case through the library as a command does, strict, skipping, shown; returns what became of it."""
    with open(path, "wb") as file:
        file.write(data)
    out = path + ".out.zst"
    try:
        inspect.lineage_text(reader.lineage_at(path))
    except IqcError:
        pass
    settings = runner.Settings(inputs=[path], output=out, jobs=jobs, quiet=True, on_error="skip")
    try:
        counts = runner.run_stage("head", {}, settings, runner.identity_factory)
    except IqcError:
        return "refused"
    assert counts.kept == sum(1 for _ in runner.read_records(runner.StreamInput([out])))  # what we write, we read
    return "read" if not counts.skipped else "skipped"


@pytest.mark.parametrize("part", range(5))
def test_mutations(tmp_path, part):
    outcomes = {}
    for number in range(part * 80, part * 80 + 80):
        name, data = case(number, large_share=0)
        started = time.monotonic()
        outcome = run_case(str(tmp_path / "case"), data)
        assert time.monotonic() - started < SECONDS, (number, name)
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    assert outcomes["refused"] > 10 and outcomes["skipped"] > 3  # the cases do damage, and not only to frames


@pytest.mark.parametrize("make", LARGE, ids=lambda make: make.__name__)
@pytest.mark.parametrize("seed", range(3))
def test_large_cases(tmp_path, make, seed):
    started = time.monotonic()
    run_case(str(tmp_path / "case"), make(random.Random(seed)))
    assert time.monotonic() - started < SECONDS


def test_cases_are_the_same_every_time():
    assert [case(number, 0) for number in range(30)] == [case(number, 0) for number in range(30)]

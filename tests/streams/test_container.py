"""The bytes of stream files: every cut and every flip is noticed, and other tools read them."""

import io
import random
import subprocess

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import IqcError
from iqc.streams import container
from iqc.streams.container import ByteSource, compress, mark, skippable


def some(count):
    return [{"id": str(n), "text": f"line {n} " * (n % 5)} for n in range(count)]


@pytest.fixture(scope="module")
def small(tmp_path_factory, make_stream):
    """Three frames, 7 records."""
    return make_stream(tmp_path_factory.mktemp("small") / "small.zst", some(7), per_frame=3).read_bytes()


@given(st.binary(max_size=300_000))
@settings(max_examples=30, deadline=None)
def test_a_marked_frame_is_the_same_frame(text):
    frame = compress(text, 0)
    marked = mark(frame.data, frame.size)
    assert container.is_marked(marked) and not container.is_marked(frame.data)
    assert container.decompress(marked, "x") == text
    assert zstandard.ZstdDecompressor().decompress(marked) == text


def test_the_mark_of_a_frame_with_a_window():
    text = random.Random(0).randbytes(9 << 20)  # larger than the window, so the header has a window descriptor
    frame = compress(text, 1)
    assert not frame.data[4] & 0x20
    marked = mark(frame.data, frame.size)
    assert container.is_marked(marked) and container.decompress(marked, "x") == text


@pytest.mark.parametrize("options", [{}, {"write_checksum": True}, {"write_content_size": False}])
@pytest.mark.parametrize("size", [0, 10, 300, 70_000, 5_000_000])
def test_no_frame_of_another_encoder_is_marked(options, size):
    text = b"ab" * (size // 2)
    made = zstandard.ZstdCompressor(**options).compress(text)
    tool = subprocess.run(["zstd", "-c"], input=text, capture_output=True, check=True).stdout
    assert not container.is_marked(made) and not container.is_marked(tool)


@pytest.mark.parametrize("pipe", [False, True])
def test_a_cut_at_every_byte_is_an_error(small, tmp_path, fails, pipe, monkeypatch):
    if pipe:
        monkeypatch.setattr(container, "read_index", lambda path: None)  # as a pipe is read: in order
    path = tmp_path / "cut.zst"
    for length in range(len(small)):
        path.write_bytes(small[:length])
        assert fails(path) is None, length
    path.write_bytes(small)
    assert fails(path)[0] == some(7)


@pytest.mark.parametrize("pipe", [False, True])
def test_a_flip_of_any_bit_is_an_error_or_in_the_lineage(small, tmp_path, fails, pipe, monkeypatch):
    if pipe:
        monkeypatch.setattr(container, "read_index", lambda path: None)
    path = tmp_path / "flipped.zst"
    lineage = small.index(b'{"iqc":1')
    lineage = range(lineage, small.index(b"}", small.index(b'"frames"')) + 1)
    starts = [len(frame) for frame in frames_of(small)]
    unused = [(sum(starts[:number]) + 4, 16) for number in (1, 2)]  # RFC 8878, 3.1.1.1.1.3: a bit that nobody reads
    for position in range(len(small)):
        for bit in (1, 16, 128):
            if (position, bit) in unused:
                continue
            flipped = bytearray(small)
            flipped[position] ^= bit
            path.write_bytes(flipped)
            found = fails(path)
            assert found is None or (position in lineage and found[0] == some(7)), (position, bit)


def test_a_sampled_cut_of_a_larger_file(tmp_path, make_stream, fails):
    data = make_stream(tmp_path / "whole.zst", some(20_000)).read_bytes()
    path = tmp_path / "cut.zst"
    draw = random.Random(1)
    for length in [0, 1, *draw.sample(range(len(data)), 60), len(data) - 1]:
        path.write_bytes(data[:length])
        assert fails(path) is None, length


def frames_of(data):
    source = ByteSource(io.BufferedReader(io.BytesIO(data)), "x")
    frames, parts = [], b""
    for piece in container.zstd_pieces(source):
        parts += piece.data
        if piece.last:
            frames.append(parts)
            parts = b""
    return frames


def test_every_loss_swap_and_repetition_of_a_frame_is_an_error(small, tmp_path, fails):
    frames = frames_of(small)
    assert len(frames) == 5 and b"".join(frames) == small
    path = tmp_path / "spliced.zst"
    spliced = [frames[:n] + frames[n + 1 :] for n in range(5)]
    spliced += [frames[: n + 1] + frames[n:] for n in range(5)]
    spliced += [[*frames[:2], frames[2], frames[1], *frames[3:]], frames[::-1]]
    spliced += [[frames[0], skippable(0x184D2A53, b"x"), *frames[1:]], [skippable(0x184D2A53, b"x"), *frames]]
    for parts in spliced:
        path.write_bytes(b"".join(parts))
        assert fails(path) is None


def test_joined_streams_are_refused(small, tmp_path, fails):
    foreign = zstandard.ZstdCompressor().compress(b'{"id":"1"}\n')
    for data in (small + small, foreign + small, small + foreign, small + b"\n", small + b"\0" * 100):
        path = tmp_path / "joined.zst"
        path.write_bytes(data)
        assert fails(path) is None


def test_other_tools_read_our_files_whole(small, tmp_path, make_stream):
    for data in (small, make_stream(tmp_path / "empty.zst", []).read_bytes()):
        path = tmp_path / "x.zst"
        path.write_bytes(data)
        expected = b"".join(
            container.decompress(frame, "x") for frame in frames_of(data) if frame[:4] == b"\x28\xb5\x2f\xfd"
        )
        assert subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout == expected
        with open(path, "rb") as file:
            assert zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read() == expected


def test_a_wrong_seek_table_is_an_error(small, tmp_path, fails):
    index = small.index(container.seek_table([])[:4], len(small) - 70)
    frames = frames_of(small)
    sizes = [(len(frame), max(0, zstandard.frame_content_size(frame))) for frame in frames[:4]]
    assert container.seek_table(sizes) == small[index:]
    path = tmp_path / "wrong.zst"
    moved = [(sizes[0][0] + 1, sizes[0][1]), (sizes[1][0] - 1, sizes[1][1]), *sizes[2:]]
    hidden = [sizes[0], (sizes[1][0], 0), *sizes[2:]]
    merged = [(sizes[0][0] + sizes[1][0], sizes[0][1] + sizes[1][1]), *sizes[2:]]
    for table in (moved, hidden, merged, sizes[:3], [], [*sizes, (0, 0)], [(2**32 - 1, 2**32 - 1)] * 4):
        path.write_bytes(small[:index] + container.seek_table(table))
        assert fails(path) is None, table


def test_one_bad_frame_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(IqcError, match=r"over the cap"):
        container.decompress(mark(compress(b"x", 1).data, 1 << 40), "x")
    with pytest.raises(IqcError, match=r"damaged"):
        container.decompress(compress(b"x", 1).data + b"more", "x")

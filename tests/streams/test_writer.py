"""Nothing half-written: full disks, limits, two writers, devices, links."""

import os
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iqc.errors import BadRecord, IqcError
from iqc.streams import writer
from iqc.streams.container import CHUNK, MAX_RECORD, read_index
from iqc.streams.lineage import Stage, line_digest, lineage_of
from iqc.streams.writer import BLOCK, AtomicFile, StreamWriter, Texts, dump


def test_a_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with AtomicFile(path) as file:
        file.write(b"whole")
        assert not path.exists()
        file.commit()
    assert path.read_bytes() == b"whole"
    with pytest.raises(ZeroDivisionError), AtomicFile(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"whole" and os.listdir(tmp_path) == ["file"]


def test_a_lock_that_a_dying_process_still_holds_is_waited_for(tmp_path):
    first = AtomicFile(tmp_path / "file")
    threading.Timer(0.2, first.discard).start()
    with AtomicFile(tmp_path / "file") as second:
        second.write(b"second")
        second.commit()
    assert (tmp_path / "file").read_bytes() == b"second"


def test_two_writers_at_once_are_refused(tmp_path):
    with AtomicFile(tmp_path / "file") as first:
        with pytest.raises(IqcError, match="another process is writing it"):
            AtomicFile(tmp_path / "file")
        first.write(b"first")
        first.commit()
    assert (tmp_path / "file").read_bytes() == b"first"


def test_many_writers_in_turn_never_mix(tmp_path):
    path, done = tmp_path / "file", []

    def write(letter):
        for _ in range(50):
            try:
                with AtomicFile(path) as file:
                    file.write(letter * 500)
                    file.write(letter * 500)
                    file.commit()
                    done.append(letter)
            except IqcError:
                pass

    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    data = path.read_bytes()
    assert done and len(data) == 1000 and len(set(data)) == 1 and os.listdir(tmp_path) == ["file"]


def test_what_a_killed_run_left_is_written_over(tmp_path):
    (tmp_path / ".file.partial").write_bytes(b"left" * 1000)
    writer.write_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("target")
    writer.write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"


def test_a_device_or_a_named_pipe_is_written_to_and_not_replaced(tmp_path, iqc, samples):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE) as reader:
        done = iqc("head", "-n", 1, samples / "sample.zst", "-o", pipe, "--plain", "-q")
        assert reader.communicate()[0].startswith(b'{"id":"0"') and done.returncode == 0
    assert pipe.is_fifo()
    done = iqc("head", "-n", 1, samples / "sample.zst", "-o", "/dev/full")
    assert done.returncode == 1 and b"/dev/full: cannot be written: No space left" in done.stderr
    with open("/dev/full", "wb") as full:
        done = iqc("head", "-n", 1, samples / "sample.zst", stdout=full)
        assert done.returncode == 1 and b"No space left" in done.stderr
        assert iqc("stats", samples / "sample.zst", stdout=full).returncode == 1


FULL = """
mount -t tmpfs -o size=256k none "$1" || exit 77
"$2" -m iqc head -n all "$3" -o "$1/out.zst" -j "$4"; status=$?
ls -A "$1"
exit $status
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_publishes_nothing(tmp_path, samples, environment, jobs):
    """On a small disk of a private mount namespace; where that is not allowed, under a limit of file size."""
    how = {"env": environment, "capture_output": True, "timeout": 60}
    noise = tmp_path / "noise.jsonl"
    noise.write_bytes(b"".join(b'{"id":"%s"}\n' % os.urandom(300).hex().encode() for _ in range(2000)))
    place = tmp_path / "disk"
    place.mkdir()
    script = ["unshare", "-m", "sh", "-c", FULL, "sh", place, sys.executable, noise, str(jobs)]
    done = subprocess.run(script, **how)
    if b"out.zst" not in done.stderr:  # no private disk here
        limited = (
            f'ulimit -f 256; trap "" XFSZ; exec "{sys.executable}" -m iqc head -n all "{noise}" -o "{place}/out.zst"'
        )
        done = subprocess.run(["sh", "-c", limited], **how)
        assert os.listdir(place) == []
    assert done.returncode == 1 and b"out.zst: cannot be written: " in done.stderr and b"Traceback" not in done.stderr
    assert done.stdout == b""


def test_a_missing_or_closed_place_is_a_clear_error(tmp_path, samples, iqc):
    done = iqc("head", samples / "sample.zst", "-o", tmp_path / "no/such/file.zst")
    assert done.returncode == 1 and b"mkdir -p" in done.stderr
    done = iqc("head", samples / "sample.zst", "-o", tmp_path / "x", "--explain", tmp_path / "x")
    assert done.returncode == 2 and b"is -o, too" in done.stderr and os.listdir(tmp_path) == []


def test_a_record_that_no_reader_takes_is_not_written():
    for value in ({1, 2}, 2**64, "\ud800"):
        with pytest.raises(BadRecord):
            dump({"a": value})
    with pytest.raises(BadRecord, match="over 64 MiB"):
        dump({"a": "x" * MAX_RECORD})


@given(st.lists(st.sampled_from([0, 1, 99, BLOCK - 1, BLOCK, 3 * BLOCK, CHUNK - 2, CHUNK - 1, CHUNK]), max_size=9))
@settings(max_examples=40, deadline=None)
def test_texts_end_at_the_first_line_end_at_or_after_the_chunk(sizes):
    lines = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    texts = Texts()
    for line in lines:
        texts.add(line)
    found = texts.finish()
    assert b"".join(text for text, _, _ in found) == b"".join(line + b"\n" for line in lines)
    assert b"".join(digests for _, _, digests in found) == b"".join(map(line_digest, lines))
    for text, count, digests in found:
        assert text.count(b"\n") == count == len(digests) // 32
        assert len(text) - len(text.splitlines()[-1]) - 1 < CHUNK  # its last line was needed
    assert all(len(text) >= CHUNK for text, _, _ in found[:-1])


def test_small_texts_are_gathered(tmp_path):
    lines = [b'{"a":"' + b"x" * 100_000 + b'"}'] * 200
    out = StreamWriter(AtomicFile(tmp_path / "x.zst"))
    for line in lines:
        out.add_text(line + b"\n", 1, b"")
    out.finish({"iqc": 1, "stage": "s", "stages": {}, "output": out.output()})
    data = (tmp_path / "x.zst").read_bytes()
    assert data.count(b"\x28\xb5\x2f\xfd") == 5  # 20 MB in frames of 4 MiB
    with pytest.raises(IqcError):
        read_index(str(tmp_path / "x.zst"))  # that lineage has no stage


def test_a_sequence_is_a_frame_of_its_own(tmp_path):
    row = {"id": "r", "tokens": "", "lengths": "", "loss": ""}
    other = {"id": "o", "text": ""}
    out = StreamWriter(AtomicFile(tmp_path / "x.zst"))
    for record in (other, other, row, row, other, row):
        out.add_record(record)
    out.finish(lineage_of(Stage("x", "1"), [], {}, out.output()))
    assert [frame.records for frame in read_index(str(tmp_path / "x.zst")).frames] == [2, 1, 1, 1, 1]

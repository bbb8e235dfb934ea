"""What history.py is measured against: `python history_peers.py bare|pydriller REPO COMMITS OUT`.

`bare` is the shortest loop over Git that reads both texts of every changed file of the commits named in the file
COMMITS, makes their patches and writes it all as JSONL.zst. `pydriller` does the same through PyDriller. Both write
{"commit", "message", "files": [{"path", "old", "new"}], "patch"}; a side that does not exist is null.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import zstandard

LOG = ["log", "--first-parent", "--reverse", "--raw", "-z", "--no-abbrev", "--no-renames"]
LOG += ["--diff-merges=first-parent", "--format=%x01%H%x00%P%x00%B"]
DIFF = ["diff-tree", "--stdin", "--no-commit-id", "-r", "-p", "-M", "--full-index"]


def bare(repository: str, wanted: set[str]) -> Iterator[dict]:
    def start(*arguments: str) -> subprocess.Popen:
        command = ["git", "-C", repository, *arguments]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tokens() -> Iterator[bytes]:
        rest = b""
        while chunk := log.stdout.read(1 << 16):
            *whole, rest = (rest + chunk).split(b"\0")
            yield from whole

    def text(oid: str) -> str | None:
        if not oid.strip("0"):
            return None
        blobs.stdin.write(f"{oid}\n".encode())
        blobs.stdin.flush()
        size = int(blobs.stdout.readline().split()[2])
        return blobs.stdout.read(size + 1)[:-1].decode(errors="replace")

    def patch(old: str, new: str) -> str:
        diffs.stdin.write(f"{new} {old}\nend\n".encode())
        diffs.stdin.flush()
        lines = []
        while (line := diffs.stdout.readline()) != b"end\n":
            lines.append(line)
        return b"".join(lines).decode(errors="replace")

    def commits() -> Iterator[tuple[list[str], list[tuple[list[str], str]]]]:
        found, head, changes = tokens(), None, []
        for token in found:
            if token[:1] == b"\x01":
                if head:
                    yield head, changes
                head, changes = [token[1:].decode(), next(found).decode(), next(found).decode(errors="replace")], []
            else:
                changes.append((token.lstrip(b"\n:").decode().split(), next(found).decode(errors="replace")))
        if head:
            yield head, changes

    log, blobs, diffs = start(*LOG), start("cat-file", "--batch"), start(*DIFF)
    for (commit, parents, message), changes in commits():
        if commit in wanted:
            files = [{"path": path, "old": text(row[2]), "new": text(row[3])} for row, path in changes]
            yield {"commit": commit, "message": message, "files": files, "patch": patch(parents.split()[0], commit)}
    for process in (log, blobs, diffs):
        process.stdin.close()
        process.wait()


def pydriller(repository: str, wanted: set[str]) -> Iterator[dict]:
    from pydriller import Repository

    for commit in Repository(repository, only_commits=list(wanted)).traverse_commits():
        files, patch = [], []
        for file in commit.modified_files:
            # Its source_code is None for an empty file, too.
            before = (file.content_before or b"").decode(errors="replace") if file.old_path else None
            after = (file.content or b"").decode(errors="replace") if file.new_path else None
            if before is not None and after is not None and file.old_path != file.new_path:
                files.append({"path": file.old_path, "old": before, "new": None})  # as in the other loop
                before = None
            files.append({"path": file.new_path or file.old_path, "old": before, "new": after})
            patch.append(file.diff)
        yield {"commit": commit.hash, "message": commit.msg, "files": files, "patch": "".join(patch)}


def main() -> None:
    kind, repository, commits, out = sys.argv[1:]
    wanted = set(Path(commits).read_text().split())
    peer = {"bare": bare, "pydriller": pydriller}[kind]
    compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
    with open(out, "wb") as file, compressor.stream_writer(file) as writer:
        for record in peer(repository, wanted):
            writer.write(orjson.dumps(record) + b"\n")


if __name__ == "__main__":
    main()

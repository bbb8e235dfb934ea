"""The command line in processes forked from one that has imported everything, so that a run costs no start; a small
world of real inputs for every command; a model small enough to train in a second."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

# Takes {"args"} with three descriptors, answers with a process id; takes {"wait"}, answers with how that ended.
# A forked child is a session of its own, so that it can be killed with all that it starts.
SERVER = """
import json, os, signal, socket, sys
import torch
torch.set_num_threads(1)
from iqc import cli
from iqc.model.config import PRESETS, ModelConfig
from iqc.model.decoder import Decoder
import iqc.commands.crawl_clean, iqc.commands.triplets, iqc.corpus.stages, iqc.dedup.stages, iqc.history.stages
import iqc.fim.stages, iqc.rl.trainer, iqc.evals.run, iqc.export.huggingface
from iqc.evals import humaneval, fim, tasks
PRESETS["tiny"] = ModelConfig(512, 32, 64, 2, 4, 2, 384, loop_num=2)
PRESETS["tiny-dense"] = ModelConfig(512, 32, 64, 2, 4, 2, 384)
Decoder(PRESETS["tiny"], device="meta")  # which makes PyTorch import much more
link = socket.socket(fileno=0)
while True:
    data, fds, _, _ = socket.recv_fds(link, 1 << 16, 3)
    if not data:
        break
    asked = json.loads(data)
    if "wait" in asked:
        link.send(json.dumps(os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])).encode())
        continue
    pid = os.fork()
    if pid == 0:
        os.setsid()
        link.close()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w"), open(2, "w", 1)
        os.environ.update(asked["env"])
        status = cli.run(asked["args"])
        sys.stdout.flush()
        os._exit(status)
    for fd in fds:
        os.close(fd)
    link.send(json.dumps(pid).encode())
"""


@dataclass(slots=True)
class Done:
    returncode: int
    stdout: bytes
    stderr: str


class Child:
    """A running command."""

    def __init__(self, server: "Server", pid: int, stdout, stderr):
        self.server, self.pid, self.stdout, self.stderr = server, pid, stdout, stderr

    def kill(self, group: bool) -> None:
        """SIGKILL to the command, or to all that it started, too."""
        try:
            os.killpg(self.pid, signal.SIGKILL) if group else os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def wait(self) -> Done:
        status = self.server.ask({"wait": self.pid})
        self.stdout.seek(0)
        self.stderr.seek(0)
        errors = self.stderr.read().decode()
        assert "Traceback" not in errors and "internal error" not in errors, errors
        return Done(status, self.stdout.read(), errors)


class Server:
    def __init__(self, env: dict[str, str], place: Path):
        self.place = place
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(120)
        self.process = subprocess.Popen([sys.executable, "-c", SERVER], stdin=theirs, env=env, cwd=place)
        theirs.close()

    def ask(self, message: dict, fds: list[int] | None = None):
        socket.send_fds(self.link, [json.dumps(message).encode()], fds or [])
        return json.loads(self.link.recv(1 << 16))

    def start(self, *args: object, stdin=subprocess.DEVNULL, stdout: int | None = None, env=None) -> Child:
        """stdin: bytes, or a descriptor; stdout: a descriptor, or kept for `wait`."""
        out, err, given = (tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115  (open until `wait`)
        if isinstance(stdin, bytes):
            given.write(stdin)
            given.seek(0)
        entry = given.fileno() if isinstance(stdin, bytes) or stdin == subprocess.DEVNULL else stdin
        fds = [entry, out.fileno() if stdout is None else stdout, err.fileno()]
        pid = self.ask({"args": [str(arg) for arg in args], "env": env or {}}, fds)
        given.close()
        return Child(self, pid, out, err)

    def run(self, *args: object, **how) -> Done:
        return self.start(*args, **how).wait()

    def make(self, *args: object, **how) -> Done:
        """Run it; it must succeed."""
        done = self.run(*args, **how)
        assert done.returncode == 0, (args, done.stderr)
        return done


@pytest.fixture(scope="session")
def server(environment, tmp_path_factory):
    served = Server(environment | {"OMP_NUM_THREADS": "1"}, tmp_path_factory.mktemp("server"))
    yield served
    served.link.close()
    served.process.wait(timeout=20)


@pytest.fixture(scope="session")
def wait_for_end():
    """Wait until no process of a session is left; returns those that stay."""

    def left(session: int) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            # A zombie whose threads are still ending holds what it held.
            if int(fields[3]) == session and (fields[0] != "Z" or int(fields[17]) > 1):
                found.append(int(entry.parent.name))
        return found

    def wait(session: int, seconds: float = 5.0) -> list[int]:
        end = time.monotonic() + seconds
        while (found := left(session)) and time.monotonic() < end:
            time.sleep(0.01)
        return found

    return wait


@pytest.fixture(scope="session")
def read():
    """The records of a stream, or of a directory of shards."""

    def records(path) -> list[dict]:
        from iqc.streams.runner import StreamInput, read_records

        return list(read_records(StreamInput([str(path)])))

    return records


@pytest.fixture(scope="session")
def contents():
    """What a file or directory holds, without what is hidden and how long it took: name -> bytes."""

    def of(path: Path) -> dict[str, bytes]:
        if path.is_file():
            return {"": path.read_bytes()}
        found = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "timings.jsonl")
        names = {str(file.relative_to(path)): file for file in found}
        shown = {name: file for name, file in names.items() if not any(p.startswith(".") for p in Path(name).parts)}
        return {name: file.read_bytes() for name, file in shown.items()}

    return of


def git(place: Path, *args: str, number: int = 0) -> None:
    when = f"{1_700_000_000 + 86_400 * number} +0000"
    names = {f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    env = {"PATH": os.environ["PATH"], "HOME": str(place), "GIT_CONFIG_NOSYSTEM": "1"} | names
    env |= {"GIT_AUTHOR_DATE": when, "GIT_COMMITTER_DATE": when}
    subprocess.run(["git", *args], cwd=place, env=env, check=True, capture_output=True)


MODULES = ("argparse", "ast", "bisect", "calendar", "csv", "dis", "glob", "heapq", "json.decoder", "json.encoder",
           "json.scanner", "keyword", "shlex", "statistics", "string", "textwrap")  # fmt: skip


@pytest.fixture(scope="session")
def world(server, tmp_path_factory) -> Path:
    """A source tree, a repository and, made from them by the commands, an input for each command."""
    place = tmp_path_factory.mktemp("world")
    (place / "tree").mkdir()
    for name in MODULES:
        source = Path(importlib.import_module(name).__file__)
        (place / "tree" / f"{name}.py").write_bytes(source.read_bytes())
    (place / "tree/again.py").write_bytes((place / "tree/textwrap.py").read_bytes())
    (place / "tree/broken.py").write_text("def f(:\n    return\n" * 20)

    repository = place / "repository"
    repository.mkdir()
    git(repository, "init", "-q", "-b", "main")
    lines = (place / "tree/statistics.py").read_text().splitlines(keepends=True)
    for number in range(24):
        (repository / f"module{number % 4}.py").write_text("".join(lines[: 60 + 25 * number]))
        (repository / "README.md").write_text(f"# A module\n\nPart {number}.\n")
        git(repository, "add", "-A")
        git(repository, "commit", "-q", "-m", f"Add functions, part {number}", number=number)

    def to(name: str) -> list[object]:
        return ["-o", place / name, "-q"]

    make = server.make
    make("crawl-clean", place / "tree", "--source", "stdlib", *to("documents.zst"))
    make("dedup", place / "documents.zst", *to("unique.zst"))
    make("fim", place / "unique.zst", "--rate", 1, "--stretch", 600, *to("fim.zst"))
    make("triplets", place / "repository", "--density", 20, "--min-score", 0.1, *to("triplets.zst"))
    make("tokenizer", "train", place / "unique.zst", "--vocab-size", 512, *to("tokenizer"))
    make("tasks", "-n", 60, *to("tasks.zst"))
    make("tasks", "-n", 60, "--as", "chat", *to("chats.zst"))
    make("tasks", "-n", 6, "--split", "test", *to("held-out.zst"))
    tokenizer = ["--tokenizer", place / "tokenizer"]
    make("head", "-n", 40, place / "fim.zst", *to("few.zst"))
    make("pack", place / "few.zst", *tokenizer, "--context", 384, *to("sequences.zst"))
    make("head", "-n", 2, place / "sequences.zst", *to("held-out-rows.zst"))
    make("pack", place / "chats.zst", *tokenizer, "--context", 256, *to("chat-sequences.zst"))
    make("eval", "prompts", "tasks", "--data", place / "held-out.zst", *to("prompts.zst"))
    train = ["train", place / "sequences.zst", *tokenizer, "--steps", 4, "--batch-rows", 4]
    make(*train, "--model", "tiny", *to("run"))
    make(*train, "--model", "tiny-dense", *to("dense"))
    rows = [{"id": f"r{n}", "ids": [(7 * n + i * i) % 512 for i in range(1 + n % 40)]} for n in range(60)]
    (place / "ids.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make("head", "-n", "all", place / "ids.jsonl", *to("ids.zst"))
    return place


@pytest.fixture(scope="session")
def isolation() -> None:
    from iqc.sandbox import available

    layers = available()
    if not layers[0].holds:
        pytest.skip(f"no isolation here: {layers[0].detail}")

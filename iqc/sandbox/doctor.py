"""Whether the wall holds here: every promise of the sandbox is attacked, and what happened is looked up on this side.

A probe's code may say what it likes; a row is decided by what the host can see (a connection that arrived, a file that
appeared, a process that lives), and by results only where the sandbox itself reports (a limit that was hit).
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from iqc.sandbox.pool import RunResult, Sandbox


@dataclass(slots=True)
class Probe:
    """A promise, whether it held under attack, and what was seen."""

    promise: str
    holds: bool
    seen: str


def doctor(sandbox: Sandbox) -> list[Probe]:
    """One row a promise. Takes about two seconds, leaves nothing behind."""

    def attack(code: str, *args: object, seconds: float = 10.0) -> RunResult:
        return sandbox.run(code, [("attack", args, {})], replace(sandbox.limits, seconds=seconds))

    return [probe(attack) for probe in _PROBES]


Attack = Callable[..., RunResult]


def _told(result: RunResult) -> str:
    """What the run says, for a human."""
    outcome = result.results[0] if result.results else None
    return f"{result.status}: {outcome.error or outcome.value}" if outcome else result.status


def _network(attack: Attack) -> Probe:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        result = attack(
            "import socket\ndef attack(port):\n    socket.create_connection(('127.0.0.1', port), 0.5).send(b'x')",
            server.getsockname()[1],
        )
        server.settimeout(0.05)
        try:
            server.accept()[0].close()
            arrived = True
        except TimeoutError:
            arrived = False
    return Probe("the network cannot be reached", not arrived, _told(result))


def _secret(attack: Attack) -> Probe:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        secret = secrets.token_hex(16)
        path = Path(folder) / "secret"
        path.write_text(secret)
        result = attack(
            "def attack(paths):\n"
            "    seen = []\n"
            "    for path in paths:\n"
            "        try:\n            seen.append(open(path).read())\n"
            "        except OSError as error:\n            seen.append(error.strerror)\n"
            "    return seen",
            [str(path), f"/proc/1/root{path}", f"/proc/self/root{path}", "/etc/passwd", "/etc/shadow"],
        )
        read = result.results[0].value if result.results else []
        clean = isinstance(read, list) and not any(secret in text or "root:" in text for text in read)
    return Probe("files of the host cannot be read", clean and result.status == "ok", _told(result))


def _write(attack: Attack) -> Probe:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        name = f"iqc-probe-{secrets.token_hex(8)}"
        places = [folder, "/", "/usr", "/tmp", "/var/tmp", "/dev/shm", "/dev", sys.base_prefix]
        result = attack(
            "import ctypes\n"
            "def attack(paths):\n"
            "    libc, written = ctypes.CDLL(None), 0\n"
            "    for path in paths:\n"
            "        written += libc.creat(path.encode(), 0o666) >= 0\n"
            "    return written",
            [f"{place}/{name}" for place in places],
        )
        appeared = [place for place in places if (Path(place) / name).exists()]
        for place in appeared:
            (Path(place) / name).unlink()
    return Probe(
        "nothing is written on the host", not appeared, f"appeared in {appeared}" if appeared else _told(result)
    )


def _memory(attack: Attack) -> Probe:
    result = attack("def attack():\n    return len(bytearray(1 << 34))")
    return Probe("memory is limited", result.status == "memory", _told(result))


def _left(marker: str) -> int:
    """How many processes of the host carry this name (/proc/PID/comm), which ends them."""
    count = 0
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == marker:
                count += 1
                os.kill(int(comm.parent.name), signal.SIGKILL)
        except OSError:  # it ended meanwhile
            pass
    return count


_NAME_ME = "import ctypes, os, time\ndef name(text):\n    ctypes.CDLL(None).prctl(15, text.encode())\n"  # PR_SET_NAME


def _bomb(attack: Attack) -> Probe:
    marker = secrets.token_hex(7)
    result = attack(
        _NAME_ME + "def attack(marker):\n"
        "    name(marker)\n"
        "    made = 0\n"
        "    while made < 2000:\n"
        "        try:\n            pid = os.fork()\n"
        "        except OSError:\n            return made\n"
        "        if pid == 0:\n            time.sleep(60)\n"
        "        made += 1\n"
        "    return made",
        marker,
    )
    made, left = (result.results[0].value if result.results else None), _left(marker)
    return Probe(
        "a fork bomb is contained", isinstance(made, int) and made < 64 and not left, f"{made} forks, {left} left"
    )


def _daemon(attack: Attack) -> Probe:
    marker = secrets.token_hex(7)
    result = attack(
        _NAME_ME + "def attack(marker):\n"
        "    ready, go = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork() == 0:\n"
        "            name(marker)\n"
        "            os.write(go, b'x')\n"
        "            os.closerange(0, 64)\n"
        "            time.sleep(60)\n"
        "        os._exit(0)\n"
        "    return os.read(ready, 1)",
        marker,
    )
    started, left = bool(result.results) and result.results[0].value == b"x", _left(marker)
    return Probe("a daemon does not outlive its run", started and not left, f"started: {started}, {left} left")


def _signal(attack: Attack) -> Probe:
    quiet = subprocess.DEVNULL
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet) as victim:
        result = attack("import os\ndef attack(pid):\n    os.kill(pid, 9)", victim.pid)
        try:
            victim.wait(0.2)  # a signal that arrived takes a moment
            alive = False
        except subprocess.TimeoutExpired:
            alive = True
        victim.kill()
    return Probe("processes of the host cannot be signalled", alive, _told(result))


def _privileges(attack: Attack) -> Probe:
    result = attack(
        "import ctypes, os\n"
        "def attack():\n"
        "    libc = ctypes.CDLL(None)\n"
        "    caps = (ctypes.c_uint32 * 6)()\n"
        "    libc.capget((ctypes.c_uint32 * 2)(0x20080522, 0), caps)\n"
        "    gained = [libc.setuid(0), libc.unshare(0x10000000), libc.mount(b'x', b'/tmp', b'tmpfs', 0, b'')]\n"
        "    return [any(caps), any(code == 0 for code in gained), os.getuid() == 0]"
    )
    value = result.results[0].value if result.results else None
    return Probe("a run has no privileges and gains none", value == [False, False, False], _told(result))


def _time(attack: Attack) -> Probe:
    result = attack("import time\ndef attack():\n    time.sleep(60)", seconds=1.0)
    return Probe("time is limited", result.status == "timeout", f"{result.status} after {result.seconds:.1f} s")


def _flood(attack: Attack) -> Probe:
    result = attack("def attack():\n    return 'x' * (1 << 22)")
    return Probe("results are limited", result.status == "output", _told(result))


_PROBES = (_network, _secret, _write, _memory, _bomb, _daemon, _signal, _privileges, _time, _flood)

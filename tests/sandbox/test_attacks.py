"""Code that tries to pass without the answer, to get out, or to stay: none passes, and nothing is left on the host."""

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import pytest

HONEST = "def f(x):\n    return x + 1\n"
ATTACKS = {
    "always equal": "class E:\n    __eq__ = lambda *_: True\n    __hash__ = None\ndef f(x): return E()",
    "equal int": "class E(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\ndef f(x): return E(7)",
    "equal str in reduce": "class E(str):\n    def __reduce__(self): return (eval, ('1',))\ndef f(x): return E('a')",
    "frames": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for name, value in list(frame.f_locals.items()):
            if name in ('expected', 'tests', 'test', 'task'):
                return value
        frame = frame.f_back
""",
    "garbage collector": """
import gc
def f(x):
    found = [v for o in gc.get_objects() if type(o) is dict for k, v in list(o.items()) if k == 'expected']
    return found[0]
""",
    "_exit in call": "import os\ndef f(x): os._exit(0)",
    "_exit at load": "import os\nos._exit(0)",
    "sys.exit in call": "import sys\ndef f(x): sys.exit(0)",
    "sys.exit at load": "import sys\nsys.exit(0)",
    "forged lines": 'import os\nos.write(3, b\'{"loaded": true}\\n{"value": true}\\n\')\nos._exit(0)',
    "nested line": "import os\ndef f(x):\n os.write(3, b'[' * 200000 + b'\\n')\n return 1",
    "unknown tag": 'import os\ndef f(x):\n os.write(3, b\'{"value": {"eval": "1"}}\\n\')\n os._exit(0)',
    "patched json": """
import json, builtins as b
json.dumps = lambda *_: '{}'
b.isinstance = lambda *_: True
def f(x): return 1
""",
    "daemon": """
import os, time
def f(x):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(100)
        os._exit(0)
    time.sleep(0.1)
""",
    "fork bomb": "import os\ndef f(x):\n while True:\n  try: os.fork()\n  except OSError: pass",
    "thread bomb": """
import threading as t, time
def f(x):
 while True: t.Thread(target=time.sleep, args=(9,)).start()
""",
    "memory bomb": "def f(x):\n data = []\n while True: data.append(bytearray(1 << 24))",
    "memory at load": "x = bytearray(1 << 33)",
    "disk bomb": "def f(x):\n for i in range(99999): open(f'/tmp/{i}', 'wb').write(bytes(1 << 22))",
    "output flood": "def f(x):\n while True: print('x' * 9999)",
    "result flood": "def f(x): return 'x' * (1 << 24)",
    "busy": "def f(x):\n while True: pass",
    "deaf": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
time.sleep(99)
""",
    "stopped": "import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(x): return f(x)",
    "segfault": "import ctypes\ndef f(x): return ctypes.string_at(0)",
    "no descriptors": "import os\ndef f(x):\n os.closerange(0, 64)\n return 1",
    "kill all": "import os\ndef f(x):\n os.kill(-1, 9)",
    "kill worker": "import os\ndef f(x):\n for s in (2, 3, 9, 10, 15): os.kill(1, s)\n return 0",
    "kill any": "import os\ndef f(x):\n for pid in range(2, 70000):\n  try: os.kill(pid, 9)\n  except OSError: pass",
    "trace worker": """
import ctypes
l = ctypes.CDLL(None)
def f(x): return [l.ptrace(16, 1, 0, 0), l.ptrace(16, 0, 0, 0)]
""",
    "new namespaces": "import ctypes\nl = ctypes.CDLL(None)\ndef f(x): return l.unshare(0x10020000)",
    "mount": "import ctypes\nl = ctypes.CDLL(None)\ndef f(x): return l.mount(b'x', b'/usr', b'tmpfs', 0, b'')",
    "remount": "import ctypes\nl = ctypes.CDLL(None)\ndef f(x): return l.mount(b'', b'/usr', b'', 0x1020, b'')",
    "shared memory": "import ctypes\nl = ctypes.CDLL(None)\ndef f(x): return l.shmget(77, 4096, 0o1666)",
    "proc": "import os\ndef f(x): return [p for p in os.listdir('/proc')]",
    "escape": "import os\ndef f(x):\n os.chroot('/tmp')\n os.chdir('../' * 30)\n return os.listdir('.')",
    "syntax": "def f(x) return",
    "surrogate": "def f(x): return '\\ud800'",
    "huge int": "def f(x): return 1 << 10**6",
    "deep": "def f(x):\n a = []\n for _ in range(10**5): a = [a]\n return a",
    "recursive": "def f(x):\n a = []\n a.append(a)\n return a",
    "no function": "x = 1",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_never_passes_and_leaves_nothing(name, sandbox, host):
    honest = {"id": "t", "entry_point": "f", "tests": [{"args": [1], "expected": 2}]}
    assert sandbox.run_tests(honest, HONEST).passed  # the worker lives: what follows is the attack's doing
    before = host()
    secret = secrets.randbits(60)
    task = {"id": "t", "entry_point": "f", "tests": [{"args": [x], "expected": secret + x} for x in (0, 1)]}
    verdict = sandbox.run_tests(task, ATTACKS[name])
    assert not verdict.passed
    assert verdict.fraction == 0
    assert verdict.detail
    assert host() == before
    assert sandbox.run_tests(honest, HONEST).passed


def test_privilege_attacks_are_refused_not_merely_wrong(sandbox):
    for name, refused in {"trace worker": [-1, -1], "new namespaces": -1, "mount": -1, "remount": -1}.items():
        assert sandbox.run(ATTACKS[name], [("f", [0], {})]).results[0].value == refused, name
    for name in ("proc", "escape"):
        outcome = sandbox.run(ATTACKS[name], [("f", [0], {})]).results[0]
        assert outcome.value is None, name


def test_a_secret_of_the_host_cannot_be_read_even_when_its_path_is_known(sandbox, tmp_path):
    secret = secrets.randbits(60)
    path = tmp_path / "answer"
    path.write_text(str(secret))
    path.chmod(0o644)
    code = "def f(path):\n    return int(open(path).read())"
    task = {"id": "t", "entry_point": "f", "tests": [{"args": [str(path)], "expected": secret}]}
    assert not sandbox.run_tests(task, code).passed
    assert "FileNotFoundError" in sandbox.run(code, [("f", [str(path)], {})]).results[0].error


def test_nothing_is_written_outside(sandbox, tmp_path):
    tmp_path.chmod(0o777)
    code = (
        "import os\ndef f(path):\n    os.makedirs(os.path.dirname(path), exist_ok=True)\n    open(path, 'w').write('x')"
    )
    result = sandbox.run(code, [("f", [str(tmp_path / "x")], {}), ("f", ["/usr/x"], {}), ("f", ["/x"], {})])
    assert all("OSError" in o.error or "PermissionError" in o.error for o in result.results[1:])
    assert list(tmp_path.iterdir()) == []


def test_runs_share_neither_files_nor_memory_segments(sandbox):
    write = (
        "import ctypes, os\n"
        "def f():\n"
        "    seen = os.listdir('/tmp'), ctypes.CDLL(None).shmget(77, 4096, 0o666)\n"
        "    os.makedirs('/tmp/a/b'); open('/tmp/x', 'w').write('x'); ctypes.CDLL(None).shmget(77, 4096, 0o1666)\n"
        "    return seen"
    )
    for _ in range(3):
        assert sandbox.run(write, [("f", [], {})]).results[0].value == ([], -1)


def test_a_run_does_not_see_the_code_of_the_one_before(sandbox):
    marker = secrets.token_hex(16)
    sandbox.run(f"marker = '{marker}'\ndef f(): return marker", [("f", [], {})])
    code = "import gc\ndef f(head, tail):\n    return any(head + tail in repr(o)[:9999] for o in gc.get_objects())"
    assert sandbox.run(code, [("f", [marker[:16], marker[16:]], {})]).results[0].value is False


@pytest.mark.parametrize("code", ["import os\nos._exit(0)", "raise SystemExit(0)", "import os\ndef f(x): os._exit(0)"])
def test_leaving_early_fails_a_same_process_suite(code, sandbox):
    suite = "def check(candidate):\n    for x in range(3):\n        assert candidate(x) == x"
    task = {"id": "t", "entry_point": "f", "tests": suite}
    verdict = sandbox.run_tests(task, code)
    assert (verdict.passed, verdict.kind) == (False, "same-process")
    assert sandbox.run_tests(task, "def f(x): return x").passed


def test_a_killed_parent_takes_the_sandbox_with_it(isolation, host):
    root = Path(__file__).resolve().parents[2]
    code = (
        "from iqc.sandbox import Sandbox, Limits\n"
        "s = Sandbox(1)\n"
        "w = s._idle.queue[0]\n"
        "print(w.process.pid, flush=True)\n"
        "s.run('import time\\ntime.sleep(60)', [], Limits(seconds=60))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        time.sleep(0.3)
        parent.kill()
    for _ in range(50):
        if not os.path.exists(f"/proc/{worker}") or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the worker outlived its parent")

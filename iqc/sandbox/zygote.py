"""The worker of the sandbox: a Python that locks itself into namespaces once, then forks for every run.

Namespaces: mount, pid, network, ipc and uts, and a user namespace when it is not started by root. Its root is a
read-only tmpfs with read-only binds of the system's programs, its libraries and the Python installation, a few harmless
devices and no /proc. It is process 1 of its pid namespace, so `kill(-1)` after a run reaches every process that the run
left, and its own death kills all. A run is a forked child with its own mount and ipc namespace, an empty /tmp, an
unprivileged uid, no capabilities, rlimits and a seccomp filter.

The worker never sees code or results: it gets descriptors (request, results, output) from the parent by SCM_RIGHTS and
hands them to the child. So nothing of one run stays in the memory that the next one inherits. It keeps no time: the
parent says when to stop. Linux >= 5.12 (mount_setattr).
"""

import ctypes
import gc
import importlib
import json
import os
import random
import resource
import select
import signal
import socket
import sys
import traceback
from typing import Any

from iqc.sandbox.harness import execute

# What tests commonly import, loaded once before the first fork.
PRELOADED = """
    abc array base64 bisect calendar cmath collections contextlib copy csv dataclasses datetime decimal encodings.idna
    enum fractions functools hashlib heapq inspect io itertools json math numbers operator pprint queue random re
    secrets socket statistics string struct subprocess textwrap threading time types typing unicodedata uuid
"""
NOBODY = 65534
SLOT_UIDS = 0x70000000  # root's runs get the uid SLOT_UIDS + worker pid: RLIMIT_NPROC counts by uid over the host

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE, _MS_NOSUID, _MS_NODEV, _MNT_DETACH = 0x1000, 0x4000, 1 << 18, 2, 4, 2
_ATTR_RDONLY, _ATTR_NOSUID, _AT_FDCWD, _AT_RECURSIVE, _SYS_MOUNT_SETATTR = 1, 2, -100, 0x8000, 442
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_CAP_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: Any) -> None:
    """A libc function that returns -1 and errno on failure."""
    if getattr(_libc, name)(*(ctypes.c_ulong(a) if isinstance(a, int) else a for a in args)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())


def new_namespaces(uid: int, gid: int) -> None:
    """Leave the host's namespaces; an ordinary user first becomes nobody, with capabilities, in one of its own."""
    if uid != 0:
        _call("unshare", NEWUSER)
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{NOBODY} {uid} 1"),
            ("gid_map", f"{NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{file}", "w") as handle:
                handle.write(text)
    _call("unshare", NEWNS | NEWPID | NEWNET | NEWIPC | NEWUTS)


def private_root() -> None:
    """Make a read-only tmpfs with what Python needs the root; the host's tree is then not mounted any more."""
    mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    root = "/proc"  # exists everywhere and holds nothing that is bound; only this mount namespace sees it covered
    prefixes = [p for p in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix)) if p not in ("/", "/usr")]
    mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for path in ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", *prefixes]:
        if os.path.islink(path) and path not in prefixes:
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path) and not os.path.exists(root + path):  # a prefix under /usr is there already
            os.makedirs(root + path, mode=0o755)
            mount(path, root + path, "none", _MS_BIND | _MS_REC)
    os.mkdir(root + "/tmp", mode=0o755)
    os.mkdir(root + "/dev", mode=0o755)
    for device in ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"):
        os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(device, root + device, "none", _MS_BIND)
    os.chdir(root)
    _call("pivot_root", b".", b".")  # stacks the old root on the new one (pivot_root(2)) ...
    _call("umount2", b".", _MNT_DETACH)  # ... and takes it away
    os.chdir("/")
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID, 0, 0, 0)
    _call("syscall", _SYS_MOUNT_SETATTR, ctypes.c_int(_AT_FDCWD), b"/", _AT_RECURSIVE, ctypes.byref(attributes), 32)


def drop_privileges(uid: int) -> None:
    """Become `uid` without groups or capabilities; the uid stays where only one is mapped."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    header, none = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    _call("capset", ctypes.byref(header), ctypes.byref(none))
    _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def set_limits(limits: dict[str, Any], others: int) -> None:
    """rlimits of one run, soft = hard. `others` is the number of the worker's own processes under this uid."""
    for kind, wanted in (
        (resource.RLIMIT_AS, limits["memory"]),
        (resource.RLIMIT_CPU, int(limits["seconds"]) + 1),
        (resource.RLIMIT_FSIZE, limits["file_size"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, limits["processes"] + others),
    ):
        hard = resource.getrlimit(kind)[1]  # a host's lower hard limit stays: it cannot be raised
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))


def run_child(limits: dict[str, Any], fds: list[int], config: dict[str, Any], uid: int, others: int) -> None:
    """The forked child: lock down, take the request, execute it. Never returns."""
    status = 70
    try:
        os.setsid()
        if config["isolated"]:
            _call("unshare", NEWNS | NEWIPC)
            options = f"size={limits['tmp_size']},nr_inodes=1024,mode=1777"
            mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, options)
        os.chdir("/tmp")
        null = os.open("/dev/null", os.O_RDONLY)
        # out of the way of 0..4 first, then into place: 0 input, 1 and 2 output, 3 results, 4 request
        high = [os.dup2(fd, 100 + i) for i, fd in enumerate((null, fds[2], fds[2], fds[1], fds[0]))]
        for target, fd in enumerate(high):
            os.dup2(fd, target)
        os.closerange(5, 65536)
        with open(4, "rb") as file:
            request = json.loads(file.read())
        drop_privileges(uid)
        set_limits(limits, others)
        if config["seccomp"]:
            code = bytes.fromhex(config["seccomp"])
            buffer = ctypes.create_string_buffer(code, len(code))

            class Program(ctypes.Structure):  # struct sock_fprog
                _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

            program = Program(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
            _call("prctl", _PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)
        random.seed(0)  # `random` takes a new seed at every fork; a verdict must not depend on it
        execute(request, 3)
        sys.stdout.flush()
        sys.stderr.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def sweep(child: int, isolated: bool) -> tuple[int, Any]:
    """Kill all that the run left and reap it; the wait status and resource usage of the run's first process."""
    try:
        if isolated:
            os.kill(-1, signal.SIGKILL)  # from process 1: every process of the namespace but itself
        else:
            os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    _, status, usage = os.wait4(child, 0)
    try:
        while isolated:
            os.waitpid(-1, 0)
    except ChildProcessError:
        pass
    return status, usage


def serve(control: socket.socket, config: dict[str, Any], uid: int, others: int) -> None:
    """One run a message: limits as JSON and three descriptors; the reply is how the run ended. Ends with its parent."""
    while True:
        message, fds, _, _ = socket.recv_fds(control, 65536, 3)
        if not message:
            return
        if len(fds) != 3:  # a late "stop" for a run that had just ended
            continue
        child = os.fork()
        if child == 0:
            run_child(json.loads(message), fds, config, uid, others)
        for fd in fds:
            os.close(fd)
        watch = os.pidfd_open(child)
        select.select(
            [watch, control.fileno()], [], []
        )  # the run ended by itself, or the parent says stop (or is gone)
        os.close(watch)
        status, usage = sweep(child, config["isolated"])
        control.send(json.dumps({"status": status, "cpu": usage.ru_utime + usage.ru_stime}).encode())


def main() -> None:
    """Entry point of the worker: descriptor 0 is the control socket; the first message is the configuration."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 is deaf to signals without a handler
    control = socket.socket(fileno=os.dup(0))
    config = json.loads(control.recv(65536))
    for name in PRELOADED.split():
        importlib.import_module(name)
    uid, others, step = os.getuid(), 0, "namespaces"
    slot = SLOT_UIDS + os.getpid() if uid == 0 else uid
    try:
        if config["isolated"]:
            others = 0 if uid == 0 else 3  # this process, the worker and the first process of the run share the uid
            new_namespaces(uid, os.getgid())
            worker = os.fork()
            if worker:
                control.close()
                os.close(0)
                os._exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) & 255)
            _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            step = "private root"
            private_root()
        step = "privileges"
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)
        for capability in range(64):
            if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
                break  # past the last capability, or no privilege to lose
    except OSError as error:
        control.send(json.dumps({"failed": step, "why": str(error)}).encode())
        return
    control.send(json.dumps({"ready": True}).encode())
    gc.collect()
    gc.freeze()  # the objects of the worker stay out of the children's collections: fewer pages are copied
    serve(control, config, slot, others)

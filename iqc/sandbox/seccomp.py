"""The system calls that untrusted code may not make, as a classic BPF program for seccomp(2).

A denylist of what widens the kernel's attack surface or outlives a run (namespaces, mounts, tracing, keyrings, bpf,
perf, io_uring, userfaultfd, modules, anonymous files); files, network and processes are held by namespaces and rlimits.
It is the last layer, not the first: a denylist ages with the kernel.
"""

import platform
import struct

# name -> (x86_64, aarch64), from Linux arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_DENIED = {
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "personality": (135, 92),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
_CLONE, _CLONE3 = (56, 220), (435, 435)
_NEW_NAMESPACES = 0x7E020000  # every CLONE_NEW* flag of clone(2)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH_*
_X32 = 0x40000000  # the x32 calls share x86_64's AUDIT_ARCH and would go round the table

_LOAD, _EQUAL, _AT_LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050001, 0x00050026


def program() -> bytes | None:
    """The filter as an array of struct sock_filter (8 bytes each), or None on an architecture without a table."""
    if platform.machine() not in _ARCHITECTURES:
        return None
    column, architecture = _ARCHITECTURES[platform.machine()]

    def op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    # struct seccomp_data: nr at byte 0, arch at 4, args[0] at 16 (little-endian: its low half comes first)
    code = op(_LOAD, 4) + op(_EQUAL, architecture, 1, 0) + op(_RETURN, _KILL) + op(_LOAD, 0)
    if architecture == _ARCHITECTURES["x86_64"][1]:
        code += op(_AT_LEAST, _X32, 0, 1) + op(_RETURN, _EPERM)
    for numbers in _DENIED.values():
        code += op(_EQUAL, numbers[column], 0, 1) + op(_RETURN, _EPERM)
    code += op(_EQUAL, _CLONE3[column], 0, 1) + op(_RETURN, _ENOSYS)  # its flags are behind a pointer; libc uses clone
    code += op(_EQUAL, _CLONE[column], 0, 3) + op(_LOAD, 16) + op(_BITS, _NEW_NAMESPACES, 0, 1) + op(_RETURN, _EPERM)
    return code + op(_RETURN, _ALLOW)

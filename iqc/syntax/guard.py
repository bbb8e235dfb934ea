"""Texts that a parser may not survive are parsed in a process of their own first, which may run out of time or crash.

Grammars have their hostile texts: 2 KB of `/*/*...` hold Swift's for 18 s, 40 KB of `a<a<...` take Java's 20 s and
3.5 GB, 500 bytes of nested quotes end Perl's with a segmentation fault. py-tree-sitter cannot end a parse of bytes; one
of a callable it can, between two steps (most of these hang within one), but then it never frees what it was handed.
So what looks as no hand writes it, with a line of over 400 bytes, 300 brackets or comments left open, or so much of the
same that it can be packed thirtyfold, pays for a fork and a second parse.
"""

import faulthandler
import os
import resource
from collections.abc import Callable
from math import ceil

import zstandard

LONGEST_LINE = 400  # bytes
LEFT_OPEN = 300
PACKED = 30  # times; of 2,500 files of the standard library and of system headers none can be packed more than 13-fold
MEMORY = 1_500_000_000  # bytes of a trial, with what the process holds already; real trees take 80 a byte of source
_COMPRESSOR = zstandard.ZstdCompressor(level=-1)
_BRACKETS = b"<>()[]{}"
_OTHERS = bytes(set(range(256)) - set(_BRACKETS))


def suspicious(data: bytes) -> bool:
    """Whether the text is of the kind that holds parsers; a few files in a hundred are, nearly all of them harmless."""
    if max(map(len, data.split(b"\n"))) > LONGEST_LINE or len(data) > PACKED * len(_COMPRESSOR.compress(data)):
        return True
    marks = data.translate(None, _OTHERS)  # the few that count: four times as fast as to look for each in the text
    open_brackets = (marks.count(a) - marks.count(b) for a, b in zip(_BRACKETS[::2], _BRACKETS[1::2]))
    return any(count > LEFT_OPEN for count in (*open_brackets, data.count(b"/*") - data.count(b"*/")))


def survives(work: Callable[[], object], seconds: float) -> bool:
    """Whether the work ends in another process, without an exception or a crash, within that much processor time
    (whole seconds, rounded up)."""
    if not (child := os.fork()):
        try:
            faulthandler.disable()  # a crash is an answer
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (ceil(seconds), ceil(seconds)))
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""The fuzzer of tests/streams/test_fuzz.py by the thousand: `python tests/bench/fuzz_streams.py --count 10000`.

The cases run in a subprocess whose peak memory is measured against MEMORY_CAP. A traceback, a case over the time limit
or a peak over the cap fails the run; it prints what became of the cases.
"""

import argparse
import importlib.util
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

# What one process (--jobs 1) may hold at once, from the caps of iqc/streams/container.py, in bytes:
#   40 MiB   the interpreter with iqc, orjson and zstandard
#  144 MiB   2 x MAX_FRAME: a compressed frame and its text, both of which may be as large as the cap
#  144 MiB   the lines cut from a chunk's text, and the joined text when the chunk is put together
#   64 MiB   MAX_RECORD: the record that is being parsed
#   72 MiB   the text to be written
#  128 MiB   MAX_WINDOW: the window of a foreign zstd frame
# Cases add their own 50 MiB of input, which the fuzzer holds while they run, twice when it is made.
MEMORY_CAP = (40 + 144 + 144 + 64 + 72 + 128 + 100) << 20


def load_cases():
    spec = importlib.util.spec_from_file_location("test_fuzz", REPO / "tests/streams/test_fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(first: int, count: int) -> int:
    fuzz = load_cases()
    outcomes, failed, slowest = Counter(), 0, (0.0, "")
    with tempfile.TemporaryDirectory() as place:
        for number in range(first, first + count):
            name, data = fuzz.case(number)
            started = time.process_time()
            try:
                outcomes[fuzz.run_case(f"{place}/case", data)] += 1
            except Exception:
                failed += 1
                print(f"case {number} ({name})\n{traceback.format_exc()}")
            seconds = time.process_time() - started  # a wait without end meets the time limit of main
            slowest = max(slowest, (seconds, f"case {number} ({name})"))
            failed += seconds > fuzz.SECONDS
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    print(f"{count} cases: {dict(outcomes)}, {failed} failed; slowest {slowest[0]:.1f} s, {slowest[1]}")
    print(f"peak {peak >> 20} MiB of at most {MEMORY_CAP >> 20}")
    return int(failed > 0 or peak > MEMORY_CAP)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process")
    args = parser.parse_args()
    if args.here:
        return work(args.first, args.count)
    command = [sys.executable, __file__, "--here", "--count", str(args.count), "--first", str(args.first)]
    limit = 60 + args.count  # seconds; a hang ends here
    return subprocess.run(command, timeout=limit).returncode


if __name__ == "__main__":
    sys.exit(main())

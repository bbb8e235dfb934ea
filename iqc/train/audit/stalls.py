"""A thread that says where the training loop hangs, and ends the process when it was told to."""

import os
import statistics
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable
from types import TracebackType

EVERY = 1.0  # seconds between looks
KEPT = 64  # durations of a phase that its median is of
SHOWN = 12  # innermost frames of the stack


class Stalls:
    """Watches one loop, in the thread that made it. A phase that takes longer than its limit is said once.

    stall, least, first: of watch.toml. `tell` gets (phase, seconds, where), in the watching thread; `stop`: the process
    then ends with status 1, because nothing can interrupt a thread that waits for a device or for other ranks.
    """

    def __init__(
        self, stall: float, least: float, first: float, tell: Callable[[str, float, str], None], stop: bool = False
    ):
        self.stall, self.least, self.first, self.tell, self.stop = stall, least, first, tell, stop
        self.durations: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=KEPT))
        self.watched = threading.get_ident()
        self.phase, self.since, self.said = "", time.monotonic(), True
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="stalls", daemon=True)

    def __enter__(self) -> "Stalls":
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.done.set()
        self.thread.join()

    def at(self, phase: str) -> None:
        """What the loop does from now on; "": nothing that is watched."""
        now = time.monotonic()
        if self.phase:
            self.durations[self.phase].append(now - self.since)
        self.said, self.phase, self.since = not phase, phase, now

    def limit(self, phase: str) -> float:
        """Seconds."""
        known = self.durations[phase]
        return max(self.least, self.stall * statistics.median(known)) if known else self.first

    def _run(self) -> None:
        while not self.done.wait(min(EVERY, self.least)):
            phase, seconds = self.phase, time.monotonic() - self.since
            if self.said or seconds <= self.limit(phase):
                continue
            self.said = True
            self.tell(phase, seconds, self.where())
            if self.stop:
                os._exit(1)

    def where(self) -> str:
        """The stack of the watched thread, innermost last."""
        frame = sys._current_frames().get(self.watched)
        if frame is None:
            return ""
        return "".join(traceback.format_list(traceback.extract_stack(frame)[-SHOWN:]))

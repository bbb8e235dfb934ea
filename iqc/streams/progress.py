"""A progress bar on a terminal, and nothing elsewhere."""

import os
import stat
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iqc.streams.runner import Settings
    from iqc.streams.worker import Result


class Progress:
    """Counts records on standard error. In `a | b | c` only the last command draws a bar."""

    def __init__(self, command: str, settings: "Settings"):
        self.bar: Any = None
        if not settings.quiet and sys.stderr.isatty() and not _into_a_pipe(settings):
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # its thread and the workers' fork do not go together
            self.bar = tqdm(desc=f"iqc {command}", unit=" records", unit_scale=True, leave=False)

    def update(self, result: "Result") -> None:
        if self.bar is not None:
            self.bar.update(result.read)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _into_a_pipe(settings: "Settings") -> bool:
    if sys.stdout is None:  # closed
        return False
    return settings.output in (None, "-") and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)

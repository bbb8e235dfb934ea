"""Running untrusted code: isolation, limits, a pool of warm workers. Python programs, on Linux."""

from iqc.sandbox.pool import Layer, Limits, Outcome, RunResult, Sandbox, available
from iqc.sandbox.verdict import Verdict

__all__ = ["Layer", "Limits", "Outcome", "RunResult", "Sandbox", "Verdict", "available"]

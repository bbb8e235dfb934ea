"""Failures that a user can act on. Anything else that escapes a command is a bug and keeps its traceback."""


class IqcError(Exception):
    """What went wrong, where, and one line of remedy. Ends a command with exit status 1, without a traceback.

    `where` is what a compiler prints before the message: `file`, or `file:line`.
    """

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None):
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"\n  remedy: {self.remedy}" if self.remedy else "")

    def __reduce__(self):  # keyword-only arguments do not survive pickling, and workers send errors home
        return _rebuild, (type(self), self.what, self.where, self.remedy)


def _rebuild(kind: type[IqcError], what: str, where: str | None, remedy: str | None) -> IqcError:
    return kind(what, where=where, remedy=remedy)


class UsageError(IqcError):
    """The command was called wrongly: exit status 2."""


class ClosedPipe(Exception):
    """The reader of the standard output went away: the command ends quietly with status 141."""


class BadRecord(IqcError):
    """One record cannot be used; `--on-error` decides whether that ends the run. Stages raise it without `where`."""

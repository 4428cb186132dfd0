"""The errors a user can meet, and the exit status each one gives the command line."""

from __future__ import annotations


class LayerifError(Exception):
    """Something a user can act on: one paragraph, what is wrong and what is expected."""

    exit_code = 1


class InputError(LayerifError):
    """What was asked for cannot be done as asked: a wrong name, value, file or plan."""

    exit_code = 2


class DiskError(InputError):
    """A file cannot be written where it should be: a full or read-only disk, a closed folder.

    Attributes:
        reason: the system's, without the file.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class FieldError(InputError):
    """A file is not right: the message names its own fields or keys, and not arguments."""


class ProcessError(LayerifError):
    """One of several processes that work together has ended before the work was done."""


class NumericalError(LayerifError):
    """A computation produced a value that is not finite, and was stopped there.

    Attributes:
        keeps_steps: whether what was finished before is of use to another try.
    """

    exit_code = 3
    keeps_steps = False


class MissingDependencyError(LayerifError):
    """Something that has to be installed or fetched first; the message gives the command."""

    exit_code = 4

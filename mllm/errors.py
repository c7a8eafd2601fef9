"""Errors that a user can act on: one line that says what is wrong, where, and what to do.

Each class carries a `code`, a word for programs, and the `status` with which a server answers it over HTTP.
The command line prints the line as `error: …` and exits with `exit_status`; anything else is a bug and keeps
its traceback.
"""

from typing import ClassVar


class MllmError(ValueError):
    """Base of every error that the user can fix."""

    code: ClassVar[str] = "invalid_input"
    status: ClassVar[int] = 400

    @property
    def exit_status(self) -> int:
        """Exit status of the command: 2 for invalid input, 1 for a failed server (status 500 and above)."""
        return 1 if self.status >= 500 else 2


class ConfigError(MllmError):
    """An experiment file, an override or a model configuration is wrong."""

    code = "invalid_config"


class ChatError(MllmError):
    """A list of messages cannot be turned into a prompt."""

    code = "invalid_messages"


class RecordError(MllmError):
    """A conversation record is wrong; the message names file and row."""

    code = "invalid_record"


class MediaError(MllmError):
    """A recording cannot be read; the message names file and cause."""

    code = "unreadable_media"

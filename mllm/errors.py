"""Errors that a user can act on: one line that says what is wrong, where, and what to do.

The command line prints them as `error: …` and exits with status 2; anything else is a bug and keeps its
traceback.
"""


class MllmError(ValueError):
    """Base of every error that the user, not the code, has to mend."""


class ConfigError(MllmError):
    """An experiment file, an override or a model configuration is wrong."""


class ChatError(MllmError):
    """A list of messages cannot be turned into a prompt."""


class RecordError(MllmError):
    """A conversation record is wrong; the message names file and row."""


class MediaError(MllmError):
    """A recording cannot be read; the message names file and cause."""

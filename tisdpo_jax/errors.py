"""Errors that are the user's to mend: one clear line, exit code 2, no traceback."""

from __future__ import annotations


class UserError(ValueError):
    """Something outside the program is wrong; the message says what, where, and what to do."""


class ConfigError(UserError):
    """A field or a combination of fields of the configuration."""


class DataError(UserError):
    """A record, or a data file as a whole. The message begins with `file:line`."""


class CheckpointError(UserError):
    """A model directory, a weights file, a cache or a checkpoint of a run."""


class DamagedError(CheckpointError):
    """A checkpoint, model or cache of a run does not hold what was written: bytes are gone or changed."""


class MissingKeyError(CheckpointError):
    """A tensor that the model needs is not in the checkpoint."""


class UnexpectedKeyError(CheckpointError):
    """A tensor of the checkpoint has no place in the model."""


class ShapeMismatchError(CheckpointError):
    """A tensor of the checkpoint has another shape than the model's."""


class DuplicateKeyError(CheckpointError):
    """The same tensor stands in two files of the checkpoint."""

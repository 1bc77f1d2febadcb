"""Exceptions whose messages are meant for the user."""

from __future__ import annotations


class UserError(Exception):
    """Something asked for cannot be done as stated: what, where, why, and what to do next.

    The command line prints the message without a traceback and exits with 2.
    """


class StorageError(UserError):
    """A file cannot be written: whatever is built next could not be stored either."""

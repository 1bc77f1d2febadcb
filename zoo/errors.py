"""The one exception whose message is meant for the user."""

from __future__ import annotations


class UserError(Exception):
    """Something asked for cannot be done as stated: what, where, why, and what to do next.

    The command line prints the message without a traceback and exits with 2.
    """

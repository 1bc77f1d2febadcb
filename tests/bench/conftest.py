"""The command line as tests call it."""

import sys
from typing import NamedTuple

import pytest

from bench.cli import main


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def bench(capfd, monkeypatch):
    """Runs the real entry point in this process."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments)])
        capfd.readouterr()
        try:
            main()
            code = 0
        except SystemExit as leave:
            code = leave.code or 0
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run

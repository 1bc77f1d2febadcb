"""The command line as tests call it, and a dask cluster as the docs start it."""

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


@pytest.fixture(scope="session")
def scheduler(tmp_path_factory):
    """Address of a scheduler with two worker processes, started by the commands of the docs."""
    from tests.bench.clusters import running_cluster  # dask, which few tests need

    with running_cluster(tmp_path_factory.mktemp("dask")) as cluster:
        yield cluster.address

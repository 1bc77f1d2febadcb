"""What could break: an import against the direction, or torch where it has no business."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_imports_flow_one_way():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def loads_torch(statement):
    code = f"import sys\n{statement}\nsys.exit('torch' in sys.modules)"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 1


@pytest.mark.parametrize(
    "module",
    [
        *("leaderboard.render", "leaderboard.difference_page"),
        *("bench.cli", "bench.records", "bench.rendering", "bench.merging", "bench.releasing"),
    ],
)
def test_reading_and_rendering_need_no_torch(module):
    assert not loads_torch(f"import {module}")


def test_the_check_above_can_fail():
    assert loads_torch("import zoo.train")


def test_methods_do_not_import_methods():
    """A method module imports helpers (leading underscore), base modules and nothing of its kind.

    But for the attack that is a composition of others.
    """
    for package in ("attacks", "defenses"):
        methods = {p.stem for p in (ROOT / package).glob("*.py") if not p.stem.startswith("_")} - {
            "base"
        }
        for name in methods - {"multi_trigger"}:
            text = (ROOT / package / f"{name}.py").read_text()
            for other in methods - {name}:
                assert f"{package}.{other} import" not in text, f"{package}/{name}.py"


RUNS_CODE = ["S102", "S202", "S301", "S302", "S307", "S506", "S602", "S604", "S605", "TID251"]


def ruff(*arguments, text=None):
    return subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", *arguments],
        cwd=ROOT,
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_runs_code_out_of_a_file():
    packages = ["attacks", "zoo", "defenses", "bench", "leaderboard"]
    done = ruff("--select", ",".join(RUNS_CODE), *packages)
    assert done.returncode == 0, done.stdout + done.stderr
    # Nor is any line excused from it.
    for package in packages:
        for path in (ROOT / package).rglob("*.py"):
            excused = re.findall(r"# noqa: ?(.*)", path.read_text(encoding="utf-8"))
            assert not [x for x in excused if set(re.findall(r"[A-Z]+[0-9]+", x)) & set(RUNS_CODE)]


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import torch\n\nx = torch.load('a.pt')",
        "from torch import load",
        "import numpy as np\n\nx = np.load('a.npy')",
        "from joblib import load",
        "x = eval('1')",
        "exec('1')",
        "import tarfile",
        "from zipfile import ZipFile",
        "import subprocess\n\nsubprocess.run('ls', shell=True)",
        "import os\n\nos.system('ls')",
        "import yaml",
    ],
)
def test_what_runs_code_is_refused_where_a_defense_would_be(line):
    """By the project's own settings, as `ruff check .` applies them."""
    done = ruff("--stdin-filename", "zoo/stranger.py", "-", text=line + "\n")
    assert any(rule in done.stdout for rule in RUNS_CODE), done.stdout + done.stderr


def test_top_level_is_as_agreed():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    agreed = (
        "pyproject.toml README.md LICENSE .gitignore .ci bench zoo defenses attacks leaderboard"
    )
    assert top <= {*agreed.split(), "tests", "docs"}

"""What could break: an import against the direction, or torch where it has no business."""

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
    "module", ["leaderboard.render", "bench.cli", "bench.records", "bench.rendering"]
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

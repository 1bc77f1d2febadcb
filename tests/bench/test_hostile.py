"""What could break: a stranger's defense reads the user's files, fills the memory, or stops the run."""

import resource
import shutil
from pathlib import Path

import pytest

from bench.records import path_of, read_all
from leaderboard.render import log_tails
from tests.bench.setups import Setup

HOSTILE = Path(__file__).parents[1] / "plugins" / "hostile.py"
SECRET = "the user's own secret"
GOOD = ("log-link", "pictures-link", "pictures")  # a model comes back
REFUSED = {
    "result-link": "result.json is a link",
    "result-pipe": "not a regular file",
    "result-huge": "more than the 1,048,576 that are read",
    "result-deep": "result.json cannot be used",
    "result-nan": "cost.seconds",
    "another-model": "expected models of the victim's architecture",
    "weights-link": "repaired-0.safetensors is a link",
    "weights-pipe": "not a regular file",
    "weights-huge": "repaired-0.safetensors has 10,995,116,277,760 bytes",
    "weights-nan": "weights that are not finite",
    "weights-bomb": "head.weight: expected",
}


@pytest.fixture
def setup(root, toy_data, toy_profile, tmp_path):
    plugin = Path(shutil.copy(HOSTILE, tmp_path / "hostile.py"))
    plugin.with_suffix(".secret").write_text(SECRET)
    return Setup(root, toy_data, toy_profile, [plugin])


def test_what_no_honest_defense_leaves_costs_its_cell_and_nothing_else(setup):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    names = [f"plants[what={what}]" for what in (*REFUSED, *GOOD)]
    found = setup.run("identity", *names, budgets=("0",), twins=False)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    by_name = {r.cell.defense: r for r in found}
    for what, message in REFUSED.items():
        record = by_name[f"plants[what={what}]"]
        assert (record.status, record.after) == ("error", None), what
        assert message in record.error["message"], what
    for name in ("identity", *(f"plants[what={what}]" for what in GOOD)):
        assert by_name[name].status == "ok", by_name[name].error
    assert grown < 500_000  # kB; the largest file claims ten TB
    stored, problems = read_all(setup.root)
    assert (len(stored), problems) == (len(found), [])
    texts = [p for p in (setup.root / "records").rglob("*") if p.is_file()]
    assert not [p for p in texts if SECRET.encode() in p.read_bytes()]
    (picture,) = (setup.root / "records").rglob("*.png")
    assert picture.stem == by_name["plants[what=pictures]"].key


def test_a_log_that_is_a_link_is_not_published(setup):
    (record,) = setup.run("plants[what=result-nan]", budgets=("0",), twins=False)
    log = path_of(setup.root, record).with_suffix(".log")
    log.write_text("an honest log")
    assert log_tails(setup.root, [record]) == {record.key: "an honest log"}
    log.unlink()
    log.symlink_to(setup.sources[0].replace(".py", ".secret"))
    assert SECRET in log.read_text()
    assert log_tails(setup.root, [record]) == {}

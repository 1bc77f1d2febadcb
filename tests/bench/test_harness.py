"""What could break: one bad cell harms others, a fresh cell runs again, a secret reaches a defense."""

import hashlib
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from bench.child import CURVE_POINTS, thin
from bench.codehash import code_hash
from bench.harness import oracle_choice
from bench.plan import plan_cells, states
from bench.records import path_of, read, read_all
from bench.selection import Selection, select
from defenses import defense
from tests.bench.setups import Setup, by_cell
from zoo.build import judge_of
from zoo.data import Library
from zoo.evaluate import evaluate
from zoo.store import Zoo

PLUGINS = Path(__file__).parents[1] / "plugins"
FAULTY = PLUGINS / "faulty.py"


@pytest.fixture
def setup(root, toy_data, toy_profile):
    return Setup(root, toy_data, toy_profile, [FAULTY])


def test_the_whole_matrix(setup):
    found = by_cell(setup.run())
    # Data-free defenses once, at 0; ft at every budget; victim and clean twin.
    assert {k[:2] for k in found} == {
        *((d, "0") for d in ("identity", "scramble", "clp")),
        *(("ft", b) for b in ("0", "1", "20", "unlabeled", "ood")),
    }
    assert {k[2] for k in found} == {"badnets", "none"}
    nothing = found["ft", "0", "badnets"]
    assert (nothing.status, nothing.error["message"]) == (
        "not-applicable",
        "needs labels; this budget has none",
    )
    assert nothing.after is None
    done = [r for r in found.values() if r.cell.budget != "0"]
    assert {r.status for r in done} == {"ok"}
    granted = {r.cell.budget: r.data_touched for r in done if r.cell.attack != "none"}
    assert {b: g["granted_labels"] for b, g in granted.items()} == {
        "1": "true",
        "20": "true",
        "unlabeled": "pseudo",
        "ood": "pseudo",
    }
    classes = {b: g["granted_classes"] for b, g in granted.items()}
    assert (classes["1"], classes["20"]) == (10, 10)
    assert 1 <= classes["ood"] <= 10  # as the victim sees those images
    assert {b: g["granted_images"] for b, g in granted.items()} == {
        "1": 10,
        "20": 20,
        "unlabeled": 100,
        "ood": 60,
    }
    same = found["identity", "0", "badnets"]
    assert same.after == same.before
    assert same.score is not None
    assert same.cost.images_forward == same.cost.images_backward == 0
    assert same.data_touched["granted_images"] == 0
    twin = found["ft", "20", "none"]
    assert (twin.score, twin.after.strengths) == (None, {})
    cost = found["ft", "20", "badnets"].cost
    assert (cost.images_forward, cost.images_backward) == (40, 40)  # 2 steps of 20 images
    assert cost.peak_rss > 50e6


def test_figures_are_those_of_the_returned_weights(setup):
    """The record's figures, recomputed from the victim's own weights."""
    record = by_cell(setup.run("identity"))["identity", "0", "badnets"]
    cell = next(c for c in setup.cells if c.key == record.key)
    data = setup.library.load("cifar10")
    metrics = evaluate(cell.victim.model(), judge_of(cell.victim, data))
    assert record.after.acc == metrics["acc"]
    assert record.after.strengths["x4"].ra == metrics["strengths"]["x4"]["ra"]


def test_not_detected_keeps_the_victim(setup):
    record = by_cell(setup.run("finds-nothing", budgets=("20",)))["finds-nothing", "20", "badnets"]
    assert record.status == "not-detected"
    assert record.error["message"] == "no class stands out"
    assert record.after == record.before


def test_what_a_detector_found_stands_in_the_record_and_beside_it(setup):
    name = "finds-class-two"
    record = by_cell(setup.run(name, budgets=("20",)))[name, "20", "badnets"]
    assert record.status == "not-detected"
    assert record.finding == {
        "statistic": "a number",
        "values": [0.9, 1.0, -2.0],
        "index": [0.1, 0.0, 3.0],
        "threshold": 2.0,
        "flagged": [2],
    }
    assert read(path_of(setup.root, record)).finding == record.finding
    with Image.open(path_of(setup.root, record).with_suffix(".png")) as picture:
        assert picture.size == (3 * 8 + 2 * 2, 8)
        assert len(picture.getcolors(1000)) > 100  # noise, not a blank sheet


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("flags-all", "not-detected", "all 10 classes are flagged: none stands out"),
        ("finds-and-fails", "diverged", "the loss is nan"),
        ("finds-and-breaks", "diverged", "weights are not finite: head.weight"),
    ],
)
def test_what_a_detector_saw_is_told_however_it_ends(setup, name, status, message):
    record = by_cell(setup.run(name, budgets=("20",)))[name, "20", "badnets"]
    assert (record.status, record.error["message"]) == (status, message)
    assert len(record.finding["flagged"]) == (10 if name == "flags-all" else 1)
    if status == "not-detected":
        assert record.after == record.before
    else:
        assert [point["loss"] for point in record.curve] == [2.0]


@pytest.mark.parametrize("points", [0, 1, 2, 199, 200, 201, 202, 398, 400, 5000])
def test_a_long_curve_keeps_its_ends_and_no_more_than_it_may(points):
    curve = [{"step": step} for step in range(points)]
    kept = thin(curve)
    assert kept == curve if points <= CURVE_POINTS else 100 <= len(kept) <= CURVE_POINTS
    assert kept[:1] == curve[:1]
    assert kept[-1:] == curve[-1:]
    steps = {after["step"] - before["step"] for before, after in pairwise(kept[:-1])}
    assert len(steps) <= 1  # evenly, but for the last


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hooks", "it computes something else than its weights"),
        ("walks-out", "it called sys.exit(3)"),
    ],
)
def test_what_is_no_repair_is_an_error_that_says_why(setup, name, message):
    record = by_cell(setup.run(name, budgets=("20",)))[name, "20", "badnets"]
    assert record.status == "error"
    assert message in record.error["message"]


def test_who_is_told_the_target_is_an_oracle():
    def told(model, view):
        return model

    assert defense("told", paper="x", needs="target")(told).defense.oracle


def test_an_oracle_is_told_the_target_and_its_best_candidate_is_kept(setup):
    found = by_cell(setup.run("peeks", budgets=("0", "20")))
    record = found["peeks", "20", "badnets"]
    assert record.cell.oracle
    assert record.after == record.before  # the other candidate loses more than 10 % accuracy
    log = next(setup.root.glob(f"records/peeks/*/{record.key}.log"))
    assert f"target {record.cell.target} labels 20" in log.read_text()
    assert found["peeks", "0", "badnets"].status == "not-applicable"
    clean = found["peeks", "20", "none"]
    assert (clean.status, clean.error["message"]) == (
        "not-applicable",
        "needs the target class; there is none",
    )


def test_optional_data_are_handed_over_where_there_are_any_and_nothing_else_is_missing(setup):
    name = "takes-what-there-is"
    found = by_cell(setup.run(name, budgets=("0", "20", "unlabeled")))
    assert {key[1] for key in found} == {"0", "20", "unlabeled"}
    assert {r.status for r in found.values()} == {"ok"}
    touched = {key[1]: r.data_touched for key, r in found.items()}
    assert touched["0"]["granted_images"] == 0
    assert touched["20"]["granted_images"] == 20
    labels = {budget: ledger["granted_labels"] for budget, ledger in touched.items()}
    assert labels == {"0": "none", "20": "true", "unlabeled": "pseudo"}


def candidate(acc, asr):
    strengths = {"x1": {"asr": asr, "ra": 0, "asr_conditional": asr, "asr_including_target": asr}}
    return {"acc": acc, "images": 10, "strengths": strengths}


def test_the_published_rule_takes_the_lowest_asr_within_ten_percent():
    before = candidate(0.9, 1.0)
    untouched, good, wrecked = candidate(0.9, 1.0), candidate(0.82, 0.1), candidate(0.7, 0.0)
    assert oracle_choice([untouched, good, wrecked], before) is good
    assert oracle_choice([candidate(0.5, 0.0), wrecked], before) is wrecked
    twin = {"acc": 0.9, "images": 10, "strengths": {}}
    assert oracle_choice([{**twin, "acc": 0.8}, twin], twin) is twin


def test_what_is_recorded_is_not_run_again(setup):
    first = by_cell(setup.run("works", "raises", budgets=("20",)))
    again = by_cell(setup.run("works", "raises", budgets=("20",)))
    assert setup.ran == []
    assert {k: r.after for k, r in again.items()} == {k: r.after for k, r in first.items()}
    setup.options = {"retry_failed": True}
    setup.run("works", "raises", budgets=("20",))
    assert {r.cell.defense for r in setup.ran} == {"raises"}


def test_curve_log_and_hyper_parameters_are_kept(setup):
    found = by_cell(setup.run("works[lr=2]", budgets=("20",)))
    record = found["works[lr=2]", "20", "badnets"]
    assert record.cell.params == {"lr": 2.0}
    assert record.curve == [{"step": 1, "images": 20.0, "lr": 2.0}]
    log = next(setup.root.glob(f"records/works/*/{record.key}.log"))
    assert "hello from 20 images" in log.read_text()
    assert record.env["torch"] == torch.__version__
    assert record.data_touched["read_labels"]
    assert record.cell.origin == "file:faulty.py"


def test_keys_change_with_every_input_and_only_with_inputs(setup, tmp_path, toy_data, toy_profile):
    import shutil

    setup.run("works", budgets=("20",))
    keys = {c.key for c in setup.cells}
    moved = tmp_path / "moved"
    shutil.copytree(setup.root, moved)
    plugin = tmp_path / "faulty.py"
    plugin.write_text(FAULTY.read_text().replace("and one that works", "and another"))
    copy = Setup(moved, toy_data, toy_profile, [plugin])
    copy.run("works", budgets=("20",))
    assert copy.ran == []  # another place, another docstring: nothing to do
    for change in ("works[lr=3]", "works"):
        if change == "works":
            plugin.write_text(FAULTY.read_text().replace("step=1", "step=2"))
            code_hash.cache_clear()
            copy = Setup(moved, toy_data, toy_profile, [plugin])
        copy.run(change, budgets=("20",))
        assert len(copy.ran) == 2
        assert not keys & {r.key for r in copy.ran}
    known, _ = read_all(moved)
    cells, _ = plan_cells(
        select(copy.profile, Selection(defenses=("works",)), copy.library),
        copy.registry,
        moved,
        copy.library,
    )
    counted = list(states(moved, cells, [r for r in known if r.key in keys]))
    assert counted.count("stale") == 2


def test_serial_local_and_fresh_processes_agree(root, toy_data, toy_profile, tmp_path):
    import shutil

    figures = []
    for i, options in enumerate(({"executor": "serial"}, {"executor": "local"}, {"fork": False})):
        place = tmp_path / str(i)
        shutil.copytree(root, place)
        chosen = ("ft", "scramble") if options.get("fork", True) else ("scramble",)
        records = Setup(place, toy_data, toy_profile, **options).run(*chosen)
        figures.append({r.key: (r.status, r.after, r.score) for r in records})
    assert figures[0] == figures[1]
    assert figures[2]
    assert figures[2].items() <= figures[0].items()


def test_a_broken_plugin_is_a_row(root, toy_data, toy_profile, tmp_path):
    plugin = tmp_path / "my_prune.py"
    plugin.write_text("import not_installed_anywhere\n")
    records = Setup(root, toy_data, toy_profile, [plugin]).run("identity")
    record = by_cell(records)["my-prune", "0", "badnets"]
    assert record.status == "import-error"
    assert "not_installed_anywhere" in record.error["message"]


def test_damaged_weights_are_one_clear_message(setup):
    for path in setup.root.glob("zoo/**/weights.safetensors"):
        path.write_bytes(b"damaged")
    records = setup.run("identity")
    assert {r.status for r in records} == {"error"}
    assert all("weights.safetensors" in r.error["message"] for r in records)


# --- no leak ---


@pytest.fixture(scope="module")
def report(built_root, toy_data, toy_profile, tmp_path_factory):
    import shutil

    root = tmp_path_factory.mktemp("leak") / "root"
    shutil.copytree(built_root, root)
    plugin = tmp_path_factory.mktemp("plugin") / "snoop.py"
    shutil.copyfile(PLUGINS / "snoop.py", plugin)
    setup = Setup(root, toy_data, toy_profile, [plugin])
    record = by_cell(setup.run("snoop", budgets=("20",)))["snoop", "20", "badnets"]
    assert record.status == "ok", record.error
    return root, toy_data, json.loads(plugin.with_suffix(".json").read_text())


def hashes_of(images):
    return {hashlib.sha256(i.contiguous().numpy().tobytes()).hexdigest() for i in images}


def test_no_evaluation_image_and_no_trigger_is_in_memory(report):
    root, data, seen = report
    victim = next(
        z
        for path in root.glob("zoo/**/victim.json")
        if (meta := json.loads(path.read_text()))["attack"] != "none"
        and (z := stored(path.parent, meta))
    )
    judge = judge_of(victim, Library(data=data, cache=root / "cache").load("cifar10"))
    found = set(seen["hashes"])
    assert len(found) >= 20  # it does see its own images, so it can see
    assert not found & hashes_of(judge.clean)
    for images in judge.triggered.values():
        assert not found & hashes_of(images)


def stored(folder, meta):
    from zoo.store import Stored

    return Stored(folder=folder, meta=meta)


def test_no_word_of_attack_target_or_place_is_in_memory(report):
    root, data, seen = report
    places = [str(root), str(data), root.name]
    for text in [*seen["strings"], *seen["arguments"], seen["cmdline"], seen["environ"]]:
        assert text != "badnets"
        assert not any(place in text for place in places[:2]), text
    secrets = {"poison_rate", "label_rule", "victim_seed", "twin_metrics", "poisoned_images"}
    assert not secrets & set(seen["strings"])
    assert not {"trigger", "attack", "poison_rate"} & set(seen["attributes"])
    assert seen["target"] is None, "only oracles are told"


def test_no_module_that_knows_is_loaded(report):
    modules = report[2]["modules"]
    assert "defenses.ft" in modules
    knowing = ("attacks", "zoo.build", "zoo.store", "zoo.evaluate", "zoo.data", "zoo.splits")
    for name in (*knowing, "zoo.recipes", "bench.plan", "bench.harness", "leaderboard"):
        assert not [m for m in modules if m == name or m.startswith(f"{name}.")], name


def test_environment_folder_and_open_files_tell_nothing(report):
    root, data, seen = report
    assert not [k for k in seen["environment"] if k.startswith("BENCH")]
    assert set(seen["files"]) <= {"model.safetensors", "data.safetensors"}
    for target in seen["fds"].values():
        assert not target.startswith((str(root), str(data)))
    assert str(root) not in seen["cwd"]


def test_label_free_defenses_get_no_labels_at_all(setup):
    found = by_cell(setup.run("finds-nothing", budgets=("20",)))
    touched = found["finds-nothing", "20", "badnets"].data_touched
    assert (touched["granted_images"], touched["granted_labels"]) == (20, "none")


def test_the_zoo_is_not_touched(setup):
    def snapshot():
        return {p: p.read_bytes() for p in sorted((setup.root / "zoo").rglob("*")) if p.is_file()}

    before = snapshot()
    setup.run("scramble", "ft", "raises", budgets=("20",))
    after = snapshot()
    assert all(after[p] == content for p, content in before.items())
    assert Zoo(setup.root).path.is_dir()

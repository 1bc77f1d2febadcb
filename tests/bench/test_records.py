"""What could break: a torn or edited record is taken for a good one, or a good one is refused."""

import dataclasses
import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bench.records import (
    FAILED,
    STATUSES,
    Attacked,
    Cell,
    Cost,
    Metrics,
    Record,
    RecordError,
    RobustAccuracy,
    Robustness,
    canonical,
    digest,
    digest_of_text,
    path_of,
    read,
    read_all,
    scan,
    write,
)


def make(**changes):
    cell = Cell(
        dataset="signs",
        arch="small_vgg",
        attack="badnets",
        label_rule="all-to-one",
        poison_rate=0.1,
        victim_seed=0,
        target=3,
        twin="t",
        defense="ibau[mode=repository]",
        params={"rounds": 3},
        budget="100",
        defense_seed=0,
    )
    entry = Attacked(asr=0.5, ra=0.25, asr_conditional=None, asr_including_target=0.5)
    metrics = Metrics(acc=0.9, images=100, strengths={"x1": entry, "x4": entry})
    fields = {
        "key": "ab" * 32,
        "status": "ok",
        "cell": cell,
        "inputs": {"seed": 0},
        "before": metrics,
        "after": metrics,
        "twin": metrics,
        "score": 12.5,
        "der": 0.5,
        "cost": Cost(seconds=1.5, images_forward=10, images_backward=5, peak_rss=1),
        "error": None,
    }
    return Record(**{**fields, **changes})


def test_what_is_written_is_read(tmp_path):
    record = make()
    path = write(tmp_path, record, "the log")
    assert path == path_of(tmp_path, record)
    assert path.relative_to(tmp_path).parts[:2] == ("records", "ibau")
    assert path.with_suffix(".log").read_text() == "the log"
    again = read(path)
    assert dataclasses.replace(again, payload_sha256="") == record
    assert read_all(tmp_path) == ([again], [])
    assert oct(path.stat().st_mode)[-3:] in ("644", "664", "666")


@pytest.mark.parametrize("came_back", [True, False])
def test_robust_accuracy_is_written_and_read(tmp_path, came_back):
    low = RobustAccuracy(acc=0.9, pgd={"8": 0.1, "16": 0.0}, autoattack={})
    high = RobustAccuracy(acc=0.8, pgd={"8": 0.4, "16": 0.2}, autoattack={"8": 0.3})
    robust = Robustness(
        images=500,
        autoattack_images=100,
        autoattack="pyautoattack 0.2.0",
        before=low,
        after=high if came_back else None,
    )
    again = read(write(tmp_path, make(robust=robust)))
    assert again.robust == robust


def test_a_record_from_before_there_was_robust_accuracy_is_read(tmp_path):
    path = write(tmp_path, make())
    payload = json.loads(path.read_text())
    payload.pop("payload_sha256")
    payload.pop("robust")
    payload["cell"].pop("panel")
    path.write_text(json.dumps({**payload, "payload_sha256": digest(payload)}))
    record = read(path)
    assert (record.robust, record.cell.panel) == (None, "")
    assert dataclasses.replace(record, payload_sha256="") == make()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t[: len(t) // 2], "cannot read record"),
        (lambda t: "", "cannot read record"),
        (lambda t: "[1]", "expected a JSON object, got list"),
        (lambda t: t.replace('"score": 12.5', '"score": 99.5'), "edited or damaged"),
        (lambda t: t.replace('"schema": 1', '"schema": 2'), "expected schema 1, got 2"),
    ],
)
def test_damaged_records_are_refused_by_name_and_cost_nothing_else(tmp_path, damage, message):
    write(tmp_path, make(key="cd" * 32))
    path = write(tmp_path, make())
    path.write_text(damage(path.read_text()))
    with pytest.raises(RecordError, match=message):
        read(path)
    good, problems = read_all(tmp_path)
    assert len(good) == len(problems) == 1
    assert path.name in problems[0]


@pytest.mark.parametrize("change", [{"surprise": 1}, {"status": "fine"}, {"cell": {}}])
def test_unknown_fields_and_statuses_are_refused(tmp_path, change):
    path = write(tmp_path, make())
    payload = {**json.loads(path.read_text()), **change}
    payload.pop("payload_sha256")
    payload["payload_sha256"] = digest(payload)
    path.write_text(json.dumps(payload))
    with pytest.raises(RecordError, match="Delete the file and run again"):
        read(path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_any_json_that_is_no_record_gives_one_message(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("fuzz") / "x.json"
    path.write_text(json.dumps(value))
    with pytest.raises(RecordError, match="cannot read record x.json"):
        read(path)


HOSTILE = ['he said \\": x', 'a": b', '"payload_sha256":"', "two\n  lines", "\u2028", 'c\\\\": d']


@pytest.mark.parametrize("message", HOSTILE)
def test_strings_that_look_like_json_are_read_as_they_were_written(tmp_path, message):
    record = make(error={"type": "E", "message": message, message: 1})
    path = write(tmp_path, record)
    assert dataclasses.replace(read(path), payload_sha256="") == record
    edited = path.read_text().replace('"message": "', '"message": " ')
    path.write_text(edited)
    with pytest.raises(RecordError, match="edited or damaged"):
        read(path)


def strings_of(value):
    if isinstance(value, dict):
        return [*value, *(s for v in value.values() for s in strings_of(v))]
    if isinstance(value, list):
        return [s for v in value for s in strings_of(v)]
    return [value] if isinstance(value, str) else []


@example({"": ": "})
@example({"a": [": b", [": "]]})
@example({": a": 1.0})
@example({"\\": None})
@given(st.dictionaries(st.text(), st.recursive(st.none() | st.floats(-9, 9) | st.text(), st.lists)))
def test_the_digest_of_the_text_is_that_of_the_payload_or_none(params):
    payload = {"payload_sha256": "0" * 64, "cell": params, "inputs": [params], "schema": 1}
    raw = (json.dumps(payload, sort_keys=True, indent=1) + "\n").encode()
    del payload["payload_sha256"]
    assert digest_of_text(raw) in (digest(payload), "")
    odd = ('": ' in s or s.startswith(": ") or s.endswith("\\") for s in strings_of(params))
    if not any(odd):
        assert digest_of_text(raw)


def test_records_lie_where_they_are_looked_for_and_in_order(tmp_path):
    assert read_all(tmp_path) == ([], [])
    kept = [write(tmp_path, make(key=f"{n:02x}" * 32)) for n in (3, 1, 2)]
    (tmp_path / "records" / "notes.txt").write_text("")
    (kept[0].parent / "x.log").write_text("")
    (tmp_path / "records" / "ibau" / "longer").mkdir()
    (tmp_path / "records" / "ibau" / "longer" / "x.json").write_text("")
    assert list(scan(tmp_path)) == sorted(kept)


def test_a_failed_write_leaves_neither_half_a_file_nor_litter(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path, make())
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_hostile_names_stay_below_the_root(tmp_path):
    record = make(cell=dataclasses.replace(make().cell, defense="../../etc/passwd"))
    path = write(tmp_path, record)
    assert path.resolve().is_relative_to((tmp_path / "records").resolve())
    assert read_all(tmp_path)[0]


def test_canonical_json_knows_no_order_and_no_nan():
    assert canonical({"b": 1, "a": [1.5, None]}) == '{"a":[1.5,null],"b":1}'
    with pytest.raises(ValueError, match="Out of range"):
        canonical(float("nan"))


def test_every_status_is_evaluated_failed_or_not_applicable():
    assert {"ok", "not-detected", "not-applicable"} | FAILED == set(STATUSES)


def test_convenience_of_metrics():
    low = Attacked(asr=0.1, ra=0.8, asr_conditional=0.1, asr_including_target=0.1)
    high = Attacked(asr=0.7, ra=0.2, asr_conditional=0.7, asr_including_target=0.7)
    metrics = Metrics(acc=0.9, images=1, strengths={"x1": low, "x4": high})
    assert (metrics.asr, metrics.ra, metrics.worst_asr) == (0.1, 0.8, 0.7)
    assert Metrics(acc=0.9, images=1).worst_asr is None

"""What could break: a figure beside one of another attack, a difference in conditions unsaid."""

import dataclasses
from collections import Counter

import pytest

import attacks
import defenses
from bench.records import Record
from leaderboard.aggregate import boards
from leaderboard.outcomes import outcomes
from leaderboard.published import (
    CLASSES,
    SOURCES,
    Beside,
    Published,
    beside,
    data_of,
    published,
)
from leaderboard.victims import merge
from tests.leaderboard.synthetic import metrics, record

PRINTED = Published(
    source="bcu",
    table="Table 1",
    dataset="cifar10",
    arch="resnet18",
    attack="badnets",
    label_rule="all-to-one",
    poison_rate=0.1,
    trigger="",
    defense="ibau",
    data="labelled",
    images=2500,
    figures={"acc": 0.9, "asr": 0.1},
    note="",
)


def found(records: list[Record], *known: Published) -> list[Beside]:
    return beside(boards(outcomes(records, merge([], records))), known)


def tables(records: list[Record], *known: Published) -> list[str]:
    return [entry.published.table for entry in found(records, *known)]


def printed(table: str, **changes: object) -> Published:
    return dataclasses.replace(PRINTED, table=table, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "other",
    [
        {"defense": "bcu"},
        {"dataset": "gtsrb"},
        {"attack": "blended"},
        {"label_rule": "all-to-all"},
        {"data": "unlabelled"},
        {"images": 625 - 1},
        {"images": 10_001},
    ],
)
def test_another_condition_is_never_beside(other: dict[str, object]) -> None:
    assert tables([record()], printed("no", **other)) == []
    assert tables([record()], PRINTED) == ["Table 1"]


def test_parameters_do_not_count_but_the_rest_is_named() -> None:
    ours = record("ibau[mode=paper]", attack="badnets[pattern=tile, size=5]", arch="resnet18*0.5")
    assert tables([ours], PRINTED) == ["Table 1"]
    (entry,) = found([ours], printed("T", poison_rate=0.2, images=5000, trigger="size S", note="n"))
    assert entry.differs == (
        "architecture resnet18, ours resnet18*0.5",
        "5,000 images, ours 2,500",
        "poison rate 0.2, ours 0.1",
        "trigger: size S",
        "our attack is badnets[pattern=tile, size=5]",
        "our defense is ibau[mode=paper]",
        "n",
        "not said whether ASR counts images of the target class",
        "mean of 14 models, ours 1 seed",
    )
    (entry,) = found([ours], printed("T", poison_rate=None, arch="unstated"))
    assert "poison rate not stated, ours 0.1" in entry.differs
    assert "architecture unstated, ours resnet18*0.5" in entry.differs


def test_the_nearest_number_of_images_wins_on_a_logarithmic_scale() -> None:
    # 100 is 2.5 times 40 and a third of 300.
    near, far = printed("near", images=40), printed("far", images=300)
    assert tables([record(budget="100")], far, near) == ["near"]
    assert tables([record(budget="100")], far) == ["far"]


def test_of_equals_the_architecture_then_the_rate_then_the_order_decides() -> None:
    ours = [record(arch="resnet18*0.5")]
    vgg, rate = printed("vgg", arch="vgg16"), printed("rate", poison_rate=0.2)
    assert tables(ours, vgg, rate) == ["rate"]
    assert tables(ours, rate, PRINTED) == ["Table 1"]
    assert tables(ours, printed("first"), PRINTED) == ["first"]


def test_one_row_per_source() -> None:
    assert tables([record()], PRINTED, printed("T5", source="ibau", images=5000)) == [
        "Table 1",
        "T5",
    ]


def test_gap_and_whether_our_interval_holds_the_figure() -> None:
    ours = [record(seed=s, after=metrics(0.88 + 0.01 * s, 0.05, 0.8)) for s in range(3)]
    (entry,) = found(ours, PRINTED)
    assert entry.gaps["acc"].mean == pytest.approx(0.89 - 0.9)
    assert entry.gaps["acc"].holds
    assert entry.gaps["asr"].mean == pytest.approx(-0.05)
    assert set(entry.gaps) == {"acc", "asr"}
    (alone,) = found(ours[:1], PRINTED)
    assert alone.gaps["acc"].holds is None
    (far,) = found(ours, printed("T", figures={"acc": 0.5}))
    assert far.gaps["acc"].holds is False


def test_a_data_free_defense_is_compared_once() -> None:
    known = printed("T", defense="clp", data="none", images=0)
    ours = [record("clp", "0", needs="nothing"), record("ibau", "100")]
    assert [entry.budget for entry in found(ours, known)] == ["0"]


def test_a_clean_twin_has_nothing_beside_it() -> None:
    twin = record(attack="none", label_rule="none", poison_rate=0.0, target=None)
    assert found([twin], PRINTED) == []


def test_budgets_are_kinds_and_numbers() -> None:
    assert data_of("0", "cifar10") == ("none", 0)
    assert data_of("1", "gtsrb") == ("labelled", 43)
    assert data_of("20pc", "gtsrb") == ("labelled", 860)
    assert data_of("2500", "gtsrb") == ("labelled", 2500)
    assert data_of("unlabeled", "cifar10") == ("unlabelled", 2500)
    assert data_of("poisoned-train", "cifar10") == ("poisoned-train", 0)
    assert data_of("20pc", "unknown") == ("labelled", 0)


def test_the_file_is_whole_and_every_row_can_stand_beside_something() -> None:
    entries = published()
    rules = {attack.name: attack.label_rules for attack in attacks.ALL}
    names = {defense.name for defense in defenses.ALL}
    builders = {base.name for base in defenses.BASE_SETS}
    assert len(entries) == len(set(map(repr, entries))) > 600
    for entry in entries:
        assert entry.source in SOURCES
        assert entry.label_rule in rules[entry.attack]
        name, _, builder = entry.defense.partition("@")
        assert name in names
        assert not builder or builder in builders
        assert entry.dataset in CLASSES
        assert entry.data in {"none", "labelled", "unlabelled", "ood", "poisoned-train"}
        assert (entry.images > 0) == (entry.data in {"labelled", "unlabelled", "ood"})
        assert set(entry.figures) >= {"acc", "asr"}
        assert all(0 <= value <= 1 for value in entry.figures.values())
        assert entry.figures["asr"] + entry.figures.get("ra", 0) <= 1.0001
    assert Counter(e.source for e in entries)["backdoorbench"] == 80  # a small part, on purpose


def test_a_figure_of_each_source_is_the_printed_one() -> None:
    def printed_by(source: str, **fields: object) -> dict[str, float]:
        rows = [
            entry
            for entry in published()
            if entry.source == source
            and all(getattr(entry, name) == value for name, value in fields.items())
        ]
        return rows[0].figures

    cifar = {"dataset": "cifar10", "label_rule": "all-to-one"}
    found = printed_by("backdoorbench", **cifar, attack="badnets", defense="ibau")
    assert found == pytest.approx({"acc": 0.8916, "asr": 0.0129, "ra": 0.8924})
    found = printed_by("fred", **cifar, attack="input_aware", defense="ibau@fred", images=10)
    assert found == pytest.approx({"acc": 0.85, "asr": 0.01})

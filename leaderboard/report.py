"""Everything that is known of the records under a root, computed once for every format."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass
from pathlib import Path

from bench.records import Record, collector_paused, read_all
from leaderboard.adversarial import Panel, panel
from leaderboard.aggregate import Board, boards
from leaderboard.analysis import Analysis, analyse
from leaderboard.checks import Finding, findings
from leaderboard.degradation import Ladder, ladders
from leaderboard.outcomes import Outcome, latest, outcomes
from leaderboard.published import Beside, beside
from leaderboard.victims import Victim, merge, read_zoo
from leaderboard.words import plural


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the leaderboard shows, whatever it is written as."""

    outcomes: tuple[Outcome, ...]  # every record that counts
    analyses: tuple[Analysis, ...]  # one per budget, in the order of the protocol
    adversarial: Panel | None  # robust accuracy, of what is made against adversarial examples
    ladders: tuple[Ladder, ...]
    published: tuple[Beside, ...]  # printed figures beside measured ones
    findings: tuple[Finding, ...]  # what to look at before publishing
    victims: tuple[Victim, ...]  # clean twins aside
    twins: int
    spare: int  # victims and twins of the zoo, of other recipes, that no record rests on
    stale: int  # left out: their key is not a current one
    superseded: int  # left out: a later record of the same cell exists
    swept: int  # left out: only a sweep has asked for them
    problems: tuple[str, ...]  # files that could not be read

    @property
    def records(self) -> list[Record]:
        """The records that count."""
        return [outcome.record for outcome in self.outcomes]

    @property
    def boards(self) -> list[Board]:
        """The boards alone."""
        return [analysis.board for analysis in self.analyses]

    @property
    def omissions(self) -> tuple[str, ...]:
        """What was read and left out on purpose, in words."""
        found = (
            (self.stale, "left out as stale: the code or the data behind it has changed"),
            (self.superseded, "left out: a later record of the same cell exists"),
            (self.swept, "of hyper-parameter sweeps left out: pictured by bench sweep, not ranked"),
        )
        texts = [f"{plural(number, 'record')} {words}" for number, words in found if number]
        if self.spare:
            texts.append(
                f"{plural(self.spare, 'model')} of the zoo left out: trained by another recipe "
                "than the one of the same setting and seed that records rest on"
            )
        return tuple(texts)


@collector_paused()
def collect(root: Path, current_keys: Set[str] | None = None) -> Report:
    """Reads records and zoo under a root.

    Cells that only a sweep has asked for are left out: a row for every value that somebody tried
    would bury the methods. With ``current_keys``, records of other keys are stale: left out, and
    counted.
    """
    stored, record_problems = read_all(root)
    fresh = [r for r in stored if current_keys is None or r.key in current_keys]
    asked = [r for r in fresh if not r.cell.swept]
    records, superseded = latest(asked)
    zoo, zoo_problems = read_zoo(root)
    known = merge(zoo, records)
    counted = outcomes(records, known)
    found = boards(counted)
    twins = _twins(records)
    victims = tuple(victim for victim in known.values() if victim.status != "twin")
    return Report(
        outcomes=tuple(counted),
        analyses=tuple(analyse(board) for board in found),
        adversarial=panel(counted),
        ladders=ladders(found),
        published=tuple(beside(found)),
        findings=tuple(findings(counted)),
        victims=victims,
        twins=len(twins) or len(known) - len(victims),
        spare=len({v.weights for v in zoo} - {v.weights for v in known.values()} - twins),
        stale=len(stored) - len(fresh),
        superseded=superseded,
        swept=len(fresh) - len(asked),
        problems=(*record_problems, *zoo_problems),
    )


def _twins(records: Iterable[Record]) -> set[str]:
    """The weights of every clean twin that these records rest on."""
    clean = {str(r.inputs.get("victim")) for r in records if r.cell.attack == "none"}
    return (clean | {str(r.inputs.get("twin")) for r in records}) - {"None"}

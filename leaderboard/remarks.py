"""What a reader must know about a row, in words: failures, refusals, untouched models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from leaderboard.outcomes import Outcome
from leaderboard.words import STATUS_WORDS, percent, plural, shorten

REASON_LIMIT = 140
REACHED = 0.9  # share of synthetic images that should be of the class they were made for


def remarks(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """All remarks on the cells of one defense at one budget; none if all went well."""
    attacked = [o for o in outcomes if not o.setting.clean]
    twins = [o for o in outcomes if o.setting.clean]
    found = (
        _failures(attacked, "cell"),
        _failures(twins, "clean-twin cell"),
        _not_detected(attacked),
        _not_applicable(outcomes),
        _uncounted(outcomes),
        _off_class(outcomes),
    )
    return tuple(remark for remark in found if remark)


def why_not_applicable(outcomes: Iterable[Outcome]) -> str:
    """The most frequent reason of refusal; the status in words where none was given."""
    reasons = Counter(o.reason for o in outcomes if not o.applicable and o.reason)
    return shorten(_commonest(reasons), REASON_LIMIT) if reasons else "no reason given"


def _commonest(counts: Counter[str]) -> str:
    return min(counts, key=lambda reason: (-counts[reason], reason))


def _failures(outcomes: Sequence[Outcome], noun: str) -> str:
    failed = [o for o in outcomes if o.failed]
    if not failed:
        return ""
    statuses = Counter(STATUS_WORDS[o.record.status] for o in failed)
    kinds = ", ".join(f"{word} {n}" for word, n in sorted(statuses.items()))
    reasons = Counter(o.reason for o in failed if o.reason)
    reason = f" — {shorten(_commonest(reasons), REASON_LIMIT)}" if reasons else ""
    total = plural(sum(o.applicable for o in outcomes), noun)
    return f"{len(failed)} of {total} failed ({kinds}), counted as the undefended model{reason}"


def _not_detected(outcomes: Sequence[Outcome]) -> str:
    silent = sum(o.record.status == "not-detected" for o in outcomes)
    total = plural(sum(o.applicable for o in outcomes), "cell")
    return f"nothing detected in {silent} of {total}: the model left as it was" if silent else ""


def _not_applicable(outcomes: Sequence[Outcome]) -> str:
    refused = [o for o in outcomes if not o.applicable]
    if not refused or len(refused) == len(outcomes):
        return ""
    return f"not applicable to {plural(len(refused), 'cell')}: {why_not_applicable(refused)}"


def _uncounted(outcomes: Sequence[Outcome]) -> str:
    lost = sum(o.applicable and not o.figures for o in outcomes)
    return f"{plural(lost, 'cell')} not counted: no figures of the victim" if lost else ""


def _off_class(outcomes: Sequence[Outcome]) -> str:
    """A search for images that has not got there teaches wrong labels."""
    bases = [o.record.data_touched.get("base_set") for o in outcomes]
    shares = [base.get("reached") for base in bases if isinstance(base, dict)]
    known = [share for share in shares if isinstance(share, int | float)]
    if not known or min(known) >= REACHED:
        return ""
    low = sum(share < REACHED for share in known)
    return (
        f"{low} of {plural(len(known), 'base set')} not of the classes asked for: the model sees "
        f"those in {percent(min(known))} % of the images where it is worst"
    )

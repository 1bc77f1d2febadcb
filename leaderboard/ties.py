"""Which neighbours on a board are not separated: groups for the eye, with a letter for each."""

from __future__ import annotations

from leaderboard.analysis import Analysis


def ties(analysis: Analysis) -> dict[str, int]:
    """The group of each defense that shares one; groups are numbered from 0, down the board.

    A group is a defense and all below it that it is not shown to be better than, up to the first
    that it is. So nobody in a group is separated from its first; two others of it may be.
    """
    groups: list[list[str]] = []
    for row in analysis.board.rows:
        known = analysis.rows.get(row.defense)
        if known is None or known.standing is None:
            continue
        pair = analysis.matrix.get((groups[-1][0], row.defense)) if groups else None
        if pair is None or pair.difference.verdict in ("better", "not tested"):
            groups.append([])
        groups[-1].append(row.defense)
    shared = [group for group in groups if len(group) > 1]
    return {name: number for number, group in enumerate(shared) for name in group}

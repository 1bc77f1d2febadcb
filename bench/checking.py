"""`bench check`: the conformance suite over what a plugin (or we) registered, in a child process.

A child, because a plugin may crash, hang or exit; it is given a minute in all.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.app import OK, SOME_FAILED
from bench.conformance import Finding, Rule, findings
from bench.launcher import Launcher
from bench.registry import BaseEntry, Entry, Registry, adopt
from bench.specs import parse_spec
from defenses.base import BaseSet, Defense
from zoo.adoption import ATTACKS
from zoo.errors import UserError
from zoo.files import read_tail
from zoo.recipes import make_attack
from zoo.sets import SETS

SECONDS: Final = 60.0
_FILE: Final = "findings.jsonl"
_INDENT: Final = " " * 8


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that can be checked, as a child is told."""

    kind: str  # "defense", "base set", "attack" or "data set"
    name: str
    origin: str
    reference: dict[str, str]  # of a defense or base set
    plugin: dict[str, str] | None  # of an attack or data set that is not ours
    params: dict[str, Any]
    schedule: str = ""  # its hyper-parameters that are whole numbers

    @property
    def title(self) -> str:
        """Name, kind and origin."""
        return f"{self.name} ({self.kind}, {self.origin})"


def check(what: str, plugins: list[str], data: str | None, json_output: bool) -> int:
    """`bench check`; exit 3 where a rule fails or was not reached."""
    begun = time.monotonic()
    is_source = what.endswith(".py") or os.sep in what
    registry = Registry.with_plugins([*plugins, what] if is_source else plugins)
    broken = [b for b in registry.broken.values() if not b.origin.startswith("entry-point")]
    found = [_import_failure(b.name, b.error_type, b.message) for b in broken]
    subjects = of_source(registry, what) if is_source else [_by_name(registry, what)]
    for subject in subjects:
        left = SECONDS - (time.monotonic() - begun)
        print(f"checking {subject.title}, at most {left:.0f} s", file=sys.stderr)
        found += run(subject, data or os.environ.get("BENCH_DATA"), left)
    if json_output:
        print(json.dumps([finding.to_dict() for finding in found], indent=1))
    else:
        print(report(found, shutil.get_terminal_size().columns))
        print(f"{time.monotonic() - begun:.1f} s", file=sys.stderr)
    return OK if all(f.verdict in ("pass", "note") for f in found) else SOME_FAILED


def _import_failure(name: str, kind: str, message: str) -> Finding:
    return Finding(
        subject=name,
        rule="imports",
        verdict="fail",
        seen=f"{kind}: {message}",
        why="Workers import the plugin by its file or module.",
        remedy="Run `python FILE.py`; install what it imports into this environment.",
    )


def of_source(registry: Registry, source: str) -> list[Subject]:
    """Everything that one file brought."""
    file = str(Path(source).resolve())
    names = [e.defense.name for e in registry.entries.values() if e.reference.file == file]
    names += [b.builder.name for b in registry.bases.values() if b.reference.file == file]
    names += [
        a.name for a in registry.additions if a.reference.file == file and a.kind != "material"
    ]
    return [_by_name(registry, name) for name in names]


def _by_name(registry: Registry, text: str) -> Subject:
    """What a name, perhaps with hyper-parameters, stands for.

    Raises:
        UserError: nothing of that name.
    """
    name, params = parse_spec(text)

    if name in registry.entries:
        registry.parse(text)  # unknown hyper-parameters are told of here
        entry = registry.entries[name]
        return _of_method("defense", entry.defense, entry, params)
    if name in registry.bases:
        base = registry.bases[name]
        return _of_method("base set", base.builder, base, params)
    added = next((a for a in registry.additions if a.name == name), None)
    kind = "attack" if name in ATTACKS else "data set"
    if kind == "attack" or (name in SETS and added is not None):
        if kind == "attack":
            make_attack(name, params)
        origin = "built-in" if added is None else added.origin
        plugin = None if added is None else {**added.reference.to_dict(), "origin": origin}
        return Subject(
            kind=kind, name=name, origin=origin, reference={}, plugin=plugin, params=params
        )
    known = [*registry.entries, *registry.bases, *ATTACKS]
    raise UserError(f"nothing is called {name!r}: expected FILE.py or one of {', '.join(known)}")


def _of_method(
    kind: str, method: Defense | BaseSet, entry: Entry | BaseEntry, params: dict[str, Any]
) -> Subject:
    defaults = method.hyper_parameters()
    return Subject(
        kind=kind,
        name=method.name,
        origin=entry.origin,
        reference=entry.reference.to_dict(),
        plugin=None,
        params=params,
        schedule=", ".join(name for name, value in defaults.items() if type(value) is int),
    )


def run(subject: Subject, data: str | None, seconds: float) -> list[Finding]:
    """The suite over one subject, in a child with a time limit."""
    folder = Path(tempfile.mkdtemp(prefix="check-"))
    launcher = Launcher("bench.checking:in_child")
    try:
        ended = launcher.run(
            {"subject": vars(subject), "data": data},
            cwd=folder,
            log=folder / "log.txt",
            seconds=max(1.0, seconds),
            memory=8 * 2**30,
        )
        path = folder / _FILE
        lines = read_tail(path, 10**6).splitlines()
        found = [Finding(**json.loads(line)) for line in lines]
        if ended.timed_out or ended.rc:
            found.append(_unfinished(subject, ended.rc, ended.timed_out, folder / "log.txt"))
        return found
    finally:
        launcher.close()
        shutil.rmtree(folder, ignore_errors=True)


def _unfinished(subject: Subject, rc: int, timed_out: bool, log: Path) -> Finding:
    """What is said of a child that did not come to the end."""
    tail = read_tail(log, 10_000).strip().splitlines()[-5:]
    seen = f"not all rules were reached in {SECONDS:.0f} s" if timed_out else f"it died: code {rc}"
    return Finding(
        subject=subject.name,
        rule="finishes",
        verdict="fail",
        seen="\n".join([seen, *tail]),
        why="A check that takes longer is not run; a crash costs a cell.",
        remedy=f"Check it with a short schedule: bench check '{subject.name}[...=...]', of "
        f"{subject.schedule}"
        if timed_out
        else "Run it in a notebook on zoo.models.build_model(...) to see where it dies.",
    )


def in_child(job: dict[str, Any]) -> None:
    """Runs the rules and leaves a line of JSON for each; what the child process does."""
    import torch

    torch.set_num_threads(1)
    subject = Subject(**job["subject"])
    with open(_FILE, "w", encoding="utf-8", buffering=1) as stream:
        for finding in suite(subject, job["data"]):
            stream.write(json.dumps(finding.to_dict()) + "\n")


def suite(subject: Subject, data: str | None) -> Iterator[Finding]:
    """The rules of a subject's kind, one after the other."""
    trial, rules = rules_for(subject, data)
    return findings(subject.name, trial, rules)


def rules_for(subject: Subject, data: str | None) -> tuple[Any, Sequence[Rule[Any]]]:
    """What tries a subject out, and the rules that look at it."""
    if subject.plugin is not None:
        adopt(subject.plugin)
    if subject.kind == "attack":
        from bench.attack_rules import RULES as FOR_ATTACKS
        from bench.attack_rules import AttackTrial

        return AttackTrial(ATTACKS.find(subject.name), subject.params), FOR_ATTACKS
    if subject.kind == "data set":
        from bench.set_rules import RULES as FOR_SETS
        from bench.set_rules import SetTrial

        folder = Path(data) if data else None
        return SetTrial(subject.name, SETS.find(subject.name), folder), FOR_SETS
    from bench.child import load_method
    from bench.defense_rules import RULES as FOR_DEFENSES
    from bench.trials import Trial

    return Trial(load_method(subject.reference), subject.params), FOR_DEFENSES


def report(found: list[Finding], width: int) -> str:
    """Findings as text: a line each, and what to do where a rule does not hold."""
    lines = []
    for subject in dict.fromkeys(finding.subject for finding in found):
        own = [finding for finding in found if finding.subject == subject]
        counts = Counter(finding.verdict for finding in own)
        total = ", ".join(f"{counts[v]} {v}" for v in ("pass", "note", "fail") if counts[v])
        lines.append(f"{subject}: {total}")
        for finding in own:
            first, *more = finding.seen.splitlines() or [""]
            said = f": {first}" if first else ""
            lines.append(f"  {finding.verdict:4}  {finding.rule}{said}")
            lines += [_INDENT + line for line in more]
            for label, text in (("why", finding.why), ("do", finding.remedy)):
                if text:
                    lines += textwrap.wrap(
                        f"{label}: {text}",
                        max(width, 60),
                        initial_indent=_INDENT,
                        subsequent_indent=_INDENT,
                    )
    return "\n".join(lines)

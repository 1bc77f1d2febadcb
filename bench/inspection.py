"""What `list` and `doctor` show."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from tabulate import tabulate

from attacks import Attack
from bench.app import USAGE
from bench.budgets import count_of
from bench.config import BUILT_IN, load_profile
from bench.environment import cores, cpu_name, default_device, environment
from bench.registry import CONTROLS, Registry
from bench.rendering import root_of
from defenses.base import Method
from zoo.adoption import ATTACKS
from zoo.models import ARCHITECTURES, ArchSpec, build_model
from zoo.sets import DATASETS, EMBEDDED, SETS
from zoo.sources import parquet_files

Rows = list[dict[str, Any]]
_BELOW: Final = ("requires", "parameters", "paper", "description")  # too long for a column
_INDENT: Final = "    "
_NARROWEST: Final = 40  # characters; anything narrower is no terminal
_PACKAGES: Final = (
    *("torch", "torchvision", "numpy", "pandas", "pyarrow", "scipy", "joblib"),
    *("safetensors", "typer", "pydantic", "jinja2", "seaborn"),
)


def attacks() -> Rows:
    """Every attack with its facts."""
    rows = []
    for attack in map(ATTACKS.find, ATTACKS):
        one = attack()
        source = ATTACKS.source(attack.name)
        rules = sorted(attack.label_rules, key=lambda rule: rule != one.label_rule)
        own = {k: v for k, v in one.params().items() if k not in ("label_rule", "poison_rate")}
        rows.append(
            {
                "name": attack.name,
                "kind": attack.kind,
                "label rules": ", ".join(rules),  # the default first
                "rate": rate(one),
                "origin": "built-in" if source is None else source.origin,
                "requires": requires(one),
                "parameters": ", ".join(f"{k}={v}" for k, v in own.items()),
                "paper": attack.paper,
            }
        )
    return rows


def rate(attack: Attack) -> str:
    """The share of the training set that is poisoned, or of the class that keeps its label."""
    share = f"{100 * attack.poison_rate:g}%"
    return f"{share} of class" if attack.label_rule == "clean-label" else share


def requires(attack: Attack) -> str:
    """What must be built before a victim, or with it, to have a trigger; empty for most."""
    surrogates = {material.surrogate for material in attack.materials(0, 10)}
    found = [f"a {kind} surrogate" for kind in sorted(surrogates)]
    if attack.tuning is not None:
        found.append("the clean twin")
    if type(attack).companion is not Attack.companion:
        found.append("training with the victim")
    return ", ".join(found)


def defenses(registry: Registry) -> Rows:
    """Every defense with its facts; broken plugins too."""
    rows = [
        {
            "name": name,
            "needs": entry.defense.needs,
            "origin": entry.origin
            + (", control" if name in CONTROLS else ", oracle" * entry.defense.oracle),
            "parameters": _parameters(entry.defense),
            "paper": entry.defense.paper,
        }
        for name, entry in registry.entries.items()
    ]
    for name, broken in registry.broken.items():
        error = f"import-error: {broken.error_type}: {broken.message}"
        rows.append(
            {"name": name, "needs": "?", "origin": broken.origin, "parameters": error, "paper": ""}
        )
    return rows


def base_sets(registry: Registry) -> Rows:
    """Every builder of base sets, for use as ``ibau@NAME``."""
    return [
        {
            "name": name,
            "needs": "prior" if entry.builder.needs == "auxiliary" else "nothing",
            "origin": entry.origin,
            "parameters": _parameters(entry.builder),
            "paper": entry.builder.paper,
        }
        for name, entry in registry.bases.items()
    ]


def _parameters(method: Method) -> str:
    return ", ".join(f"{name}={default}" for name, default in method.hyper_parameters().items())


def datasets() -> Rows:
    """Every named set, and whether it is here."""
    data = os.environ.get("BENCH_DATA")
    return [
        {
            "name": name,
            "classes": facts.classes,
            "out of distribution": facts.ood,
            "flip": facts.flip,
            "here": _where(name, data),
        }
        for name, facts in ((name, SETS.find(name)) for name in SETS)
    ]


def _where(name: str, data: str | None) -> str:
    if name in EMBEDDED:
        return "embedded"
    if (source := SETS.source(name)) is not None:
        return source.origin
    if data and parquet_files(Path(data) / name, "train"):
        return "parquet"
    return "not found" if data else "BENCH_DATA is not set"


def models() -> Rows:
    """Every architecture with its size."""
    rows = []
    for name in ARCHITECTURES:
        model = build_model(ArchSpec(name=name, num_classes=10))
        count = sum(p.numel() for p in model.parameters())
        stages = ", ".join(model.stage_names())
        rows.append({"name": name, "parameters": count, "stages": stages})
    return rows


def profiles() -> Rows:
    """Every built-in profile."""
    loaded = [load_profile(name) for name in BUILT_IN]
    return [
        {
            "name": p.name,
            "victims": len(p.seeds) * sum(len(g.attacks) for g in p.grid),
            "seeds": len(p.seeds),
            "defenses": len(p.defenses),
            "description": p.description,
        }
        for p in loaded
    ]


def budgets() -> Rows:
    """The default matrix and the other tokens."""
    meaning = {
        "0": "nothing",
        "1": "one labelled image per class",
        "1t": "one labelled image in all",
        "100": "100 labelled images in all; any number works",
        "2500": "2,500 labelled images in all",
        "20pc": "20 labelled images per class; any number works",
        "unlabeled": "the images of 2500, without labels",
        "ood": "2,500 unlabelled out-of-distribution images",
    }
    return [
        {"token": token, "images (K=10)": count_of(token, 10), "the defender gets": text}
        for token, text in meaning.items()
    ]


def show_list(what: str | None, plugins: list[str], json_output: bool) -> int:
    """`bench list`."""
    registry = Registry.with_plugins(plugins)
    tables = {
        "attacks": attacks,
        "defenses": lambda: defenses(registry),
        "base-sets": lambda: base_sets(registry),
        "datasets": datasets,
        "models": models,
        "profiles": profiles,
        "budgets": budgets,
    }
    chosen = {name: make() for name, make in tables.items() if what in (None, name)}
    if json_output:
        print(json.dumps(chosen if what is None else chosen[what], indent=1))
        return 0
    for name, rows in chosen.items():
        if what is None:
            print(f"\n{name.upper()}")
        print(table(rows, shutil.get_terminal_size().columns))
    return 0


def table(rows: Rows, width: int) -> str:
    """A table as text; parameters and paper follow each row on lines of their own.

    Args:
        rows: all with the same keys.
        width: of the terminal, in characters; only those lines are fitted to it.
    """
    below = [key for key in rows[0] if key in _BELOW and isinstance(rows[0][key], str)]
    columns = [key for key in rows[0] if key not in below]
    if all(row.get("origin") == "built-in" for row in rows):
        columns.remove("origin")
    cells = [[row[key] for key in columns] for row in rows]
    if not below:
        return str(tabulate(cells, columns, disable_numparse=True))
    heading, rule, *lines = str(tabulate(cells, columns, disable_numparse=True)).splitlines()
    text = [heading, rule]
    for row, line in zip(rows, lines, strict=True):
        text.append(line.rstrip())
        for key in below:
            text += textwrap.wrap(
                f"requires {row[key]}" if key == "requires" and row[key] else row[key],
                max(width, _NARROWEST),
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_on_hyphens=False,
            )
    return "\n".join(text)


def doctor(root: str | None, data: str | None, json_output: bool) -> int:
    """`bench doctor`: exit 0 where everything needed for the quick profile is there."""
    checks: Rows = []

    def check(name: str, ok: bool | None, found: str, remedy: str = "") -> None:
        state = {True: "ok", False: "problem", None: "note"}[ok]
        checks.append({"check": name, "state": state, "found": found, "remedy": remedy})

    python_ok = sys.version_info >= (3, 11)
    check("python", python_ok, sys.version.split()[0], "" if python_ok else "install 3.11 or newer")
    for package in _PACKAGES:
        try:
            check(package, True, version(package))
        except PackageNotFoundError:
            check(package, False, "missing", f"pip install {package}")
    device = default_device()
    env = environment(device)
    check("device", True, f"{env['gpu'] or cpu_name()}, {cores()} cores")
    slow = env["precision"] == "float32"
    check(
        "precision",
        None if slow else True,
        str(env["precision"]),
        "no AMX, AVX512-BF16 or recent GPU: training takes about twice as long" if slow else "",
    )
    check("isolation", True, "fork server" if hasattr(os, "fork") else "a fresh process per cell")
    folder = root_of(root)
    existing = folder.resolve()
    while not existing.exists():
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    enough = free > 2e9 and writable
    check("disk", enough, f"{free / 1e9:.1f} GB free", "" if enough else "choose another --root")
    _check_data(check, data or os.environ.get("BENCH_DATA"))
    for extra, module in (("dask", "distributed"), ("dp", "opacus"), ("robust", "pyautoattack")):
        there = importlib.util.find_spec(module) is not None
        remedy = "" if there else f"optional: pip install 'unbackdoor[{extra}]'"
        check(f"extra {extra}", True if there else None, "there" if there else "absent", remedy)
    if json_output:
        print(json.dumps(checks, indent=1))
    else:
        print(tabulate([list(c.values()) for c in checks], list(checks[0]), disable_numparse=True))
    return USAGE if any(c["state"] == "problem" for c in checks) else 0


def _check_data(check: Any, data: str | None) -> None:  # noqa: ANN401 (a local function)
    if not data:
        check("data", None, "no folder given", "--data FOLDER or BENCH_DATA; signs needs none")
        return
    found = [n for n in DATASETS if n not in EMBEDDED and parquet_files(Path(data) / n, "train")]
    remedy = "" if found else "expected NAME/train.parquet there"
    check("data", bool(found), ", ".join(found) or f"no set under {data}", remedy)

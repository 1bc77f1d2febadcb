"""What could break: a plugin is lost in silence, a name has two owners, a typo is bent into a number."""

import re
import sys
from importlib.metadata import EntryPoint

import pytest

from bench import registry as module
from bench.config import BUILT_IN, load_profile
from bench.registry import Registry
from bench.specs import bare, format_spec, parse_spec
from zoo.errors import UserError

PLUGIN = """
from defenses import defense

@defense("{name}", paper="arXiv:2501.01234", needs="images")
def my_prune(model, view, *, ratio: float = 0.1, mode: str = "soft", rounds: int = 3):
    return model
"""


def write(tmp_path, name="my-prune", file="my_prune.py", text=PLUGIN):
    path = tmp_path / file
    path.write_text(text.format(name=name))
    return path


def test_built_ins_are_there():
    names = set(Registry().entries)
    assert {"identity", "scramble", "ft", "clp", "ibau", "bcu"} <= names


def test_a_loose_file(tmp_path):
    registry = Registry()
    registry.add_file(write(tmp_path))
    entry, overrides = registry.parse("my-prune[ratio=1, mode=hard]")
    assert entry.origin == "file:my_prune.py"
    assert entry.reference.file.endswith("my_prune.py")
    assert entry.defense.resolve(overrides) == {"ratio": 1.0, "mode": "hard", "rounds": 3}
    assert registry.plugins() == ["my-prune"]


def test_an_entry_point(tmp_path, monkeypatch):
    write(tmp_path, file="installed_prune.py")
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("my-prune", "installed_prune:my_prune", module.GROUP),
        EntryPoint("gone", "not_there:f", module.GROUP),
        EntryPoint("unmarked", "json:dumps", module.GROUP),
    ]
    monkeypatch.setattr(
        module, "entry_points", lambda group: points if group == module.GROUP else []
    )
    registry = Registry()
    registry.add_entry_points()
    assert registry.entries["my-prune"].origin == "entry-point:installed_prune:my_prune"
    assert registry.entries["my-prune"].reference.module == "installed_prune"
    assert registry.broken["gone"].error_type == "ModuleNotFoundError"
    assert "not a function marked" in registry.broken["unmarked"].message
    del sys.modules["installed_prune"]


def test_duplicate_names_name_both_origins(tmp_path):
    registry = Registry()
    with pytest.raises(UserError, match=r"called 'ft': one from built-in, one from file:my_prune"):
        registry.add_file(write(tmp_path, name="ft"))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("import nothing_of_that_name", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        (PLUGIN.replace("needs=", "wants="), "TypeError"),
        (PLUGIN.replace('"images"', '"magic"'), "ValueError"),
        (PLUGIN.replace("model, view, *,", "model, *,"), "ValueError"),
        (PLUGIN.replace(" = 0.1", ""), "ValueError"),
    ],
)
def test_plugins_that_cannot_be_imported_are_kept_with_their_reason(tmp_path, text, kind):
    registry = Registry()
    registry.add_file(write(tmp_path, text=text))
    assert registry.broken["my-prune"].error_type == kind


def test_a_broken_plugin_does_not_take_the_name_of_a_defense(tmp_path):
    path = tmp_path / "clp.py"
    path.write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match="cannot be imported .*'clp' is the name of a defense from"):
        Registry().add_file(path)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e400"])
def test_hyper_parameters_are_finite(value):
    with pytest.raises(UserError, match=r"ft\[lr\]: expected a finite number, got -?(nan|inf)"):
        Registry().parse(f"ft[lr={value}]")


def test_files_without_a_defense_and_missing_files(tmp_path):
    with pytest.raises(UserError, match="expected at least one function marked"):
        Registry().add_file(write(tmp_path, text="x = 1\n"))
    with pytest.raises(UserError, match="no such file"):
        Registry().add_file(tmp_path / "nothing.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ibua", "Did you mean 'ibau'"),
        ("whatever", "Known: identity"),
        ("ibau[round=3]", "no hyper-parameter 'round'; it has"),
        ("ibau[rounds=many]", "expected a value of type int"),
        ("ibau[rounds]", "expected key=value"),
        ("ibau[rounds=3", "expected NAME or NAME"),
    ],
)
def test_mistakes_in_names(text, message):
    with pytest.raises(UserError, match=message):
        Registry().parse(text)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ibua", {}, "unknown defense or base set 'ibua'. Did you mean 'ibau'"),
        ("fred", {"stpes": 4}, "no hyper-parameter 'stpes'; it has"),
        ("nad", {"lr": "high"}, "expected a value of type float"),
    ],
)
def test_mistakes_in_what_a_profile_sets(name, given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Registry().check_params(name, given)


@pytest.mark.parametrize("built_in", BUILT_IN)
def test_what_our_profiles_set_is_there(built_in):
    for name, given in load_profile(built_in).params.items():
        Registry().check_params(name, given)


def test_a_spec_without_its_brackets():
    assert bare("ibau[rounds=3]@fred[steps=50]") == "ibau@fred"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", {}),
        ("a[]", {}),
        ("a[x=1, y=2.5, z=text, w=true]", {"x": 1, "y": 2.5, "z": "text", "w": True}),
        ("a[lr=1e-3]", {"lr": 0.001}),
    ],
)
def test_specs(text, values):
    assert parse_spec(text) == ("a", values)
    assert parse_spec(format_spec("a", values)) == ("a", values)

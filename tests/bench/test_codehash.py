"""What could break: an edit that matters leaves numbers looking fresh, one that does not loses them."""

from pathlib import Path

import pytest

from bench.codehash import code_hash, code_tokens, file_hashes, file_of
from defenses import ALL, BASE_SETS

SOURCE = '''
"""Docstring."""
import math


def f(x, *, u=3.0):
    """What it does."""
    # a comment
    text = "not a docstring"
    return math.sqrt(x) + u
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("What it does.", "Something else."),
        ("    # a comment\n", ""),
        ("import math\n\n\n", "import math\n\n"),
        ("Docstring.", "Other words."),
    ],
)
def test_words_do_not_count(old, new):
    assert code_tokens(SOURCE.replace(old, new)) == code_tokens(SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("+ u", "- u"),
        ("3.0", "4.0"),
        ("not a docstring", "another text"),
        ("    return", "    if x:\n        return"),
    ],
)
def test_code_counts(old, new):
    assert code_tokens(SOURCE.replace(old, new)) != code_tokens(SOURCE)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    code_hash.cache_clear()
    return code_hash(folder / "plugin.py")


def test_a_siblings_edit_counts_and_a_strangers_does_not(tmp_path):
    base = {
        "plugin": "import helper\nimport os\n",
        "helper": "import deeper\n",
        "deeper": "A = 1\n",
    }
    first = write(tmp_path, **base, other="x = 1\n")
    assert write(tmp_path, other="x = 2\n") == first
    assert write(tmp_path, deeper="A = 1  # why\n") == first
    assert write(tmp_path, deeper="A = 2\n") != first


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("util.py", "from .util import A\n"),
        ("util.py", "from . import util\n"),
        ("util.py", "from mypkg.sub.util import A\n"),
        ("../util.py", "from ..util import A\n"),
        ("../util.py", "import mypkg.util\n"),
    ],
)
def test_the_modules_of_a_plugins_own_package_count(tmp_path, place, line):
    folder = tmp_path / "mypkg" / "sub"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").write_text("")
    helper = folder / place

    def edited(text):
        helper.write_text(text)
        code_hash.cache_clear()
        file_hashes.cache_clear()
        return write(folder, plugin=line), file_hashes(folder / "plugin.py")

    (one, files), (other, changed) = edited("A = 1\n"), edited("A = 2\n")
    assert one != other
    name = helper.resolve().relative_to(tmp_path).as_posix()
    assert [f for f in files if files[f] != changed[f]] == [name]


@pytest.mark.parametrize("edited", ["__init__.py", "core.py", "deep.py"])
@pytest.mark.parametrize("line", ["from mylib import quieten\n", "import mylib.core\n"])
def test_a_package_beside_a_plugin_counts_with_what_its_init_imports(tmp_path, line, edited):
    package = tmp_path / "mylib"
    package.mkdir()
    texts = {
        "__init__.py": "from .core import quieten\nfrom mylib import deep\n",
        "core.py": "def quieten(): return 1\n",
        "deep.py": "A = 1\n",
    }

    def hashed():
        for name, text in texts.items():
            (package / name).write_text(text)
        code_hash.cache_clear()
        file_hashes.cache_clear()
        return write(tmp_path, plugin=line), file_hashes(tmp_path / "plugin.py")

    one, files = hashed()
    texts[edited] += "B = 2\n"
    other, changed = hashed()
    assert one != other
    assert [f for f in files if files[f] != changed[f]] == [f"mylib/{edited}"]


def test_the_place_of_a_file_does_not_count(tmp_path):
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        hashes.append(write(tmp_path / name, plugin="import helper\n", helper="A = 1\n"))
    # The folder of a sibling is part of its name, not of its path; both are equal but for it.
    assert write(tmp_path / "one", plugin="A = 1\n") == write(tmp_path / "two", plugin="A = 1\n")
    assert len(hashes[0]) == 64


def test_a_built_in_depends_on_the_training_loop_but_not_on_other_defenses():
    import defenses
    from bench import codehash

    folder = Path(defenses.__file__).parent
    closure = {p.name for p in codehash._closure((folder / "ft.py").resolve())}
    assert {"ft.py", "base.py", "train.py", "models.py", "augment.py"} <= closure
    assert not closure & {"ibau.py", "bcu.py", "clp.py", "__init__.py"}


@pytest.mark.parametrize("method", [*ALL, *BASE_SETS], ids=lambda method: method.name)
def test_a_built_in_is_hashed_where_it_is_written_not_where_a_decorator_is(method):
    file = file_of(method.run)
    assert file.parent.name == "defenses"
    assert f"defenses/{file.name}" in file_hashes(file)


def test_hashes_of_files_tell_which_has_changed_and_name_no_folder_above(tmp_path):
    write(tmp_path, plugin="import helper\nfrom zoo import augment\n", helper="A = 1\n")
    first = file_hashes(tmp_path / "plugin.py")
    assert first.keys() == {"plugin.py", "helper.py", "zoo/augment.py"}
    assert all(len(sha) == 12 for sha in first.values())
    file_hashes.cache_clear()
    write(tmp_path, helper="A = 2\n", plugin="import helper  # why\nfrom zoo import augment\n")
    second = file_hashes(tmp_path / "plugin.py")
    assert {name for name in first if first[name] != second[name]} == {"helper.py"}


def test_broken_code_is_a_syntax_error():
    with pytest.raises(SyntaxError):
        code_tokens("def f(:\n")

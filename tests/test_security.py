"""What could break: a limit of docs/security.md that is on paper only."""

import dataclasses
import json
import os
import resource
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from bench import base_sets, handback
from bench.config import load_profile
from bench.detections import MAX_TILES, contact_strip
from bench.launcher import Exit
from bench.records import RecordError, digest, digest_of_text, read, text_of, write
from bench.registry import Registry
from bench.sweeps import Sweep, remember
from bench.sweeps import read as read_sweep
from defenses import base_set, defense
from tests.bench.test_fuzzing import ENDED, META, RECIPE, RESULTS, SPEC, parquet, put
from tests.bench.test_records import make
from tests.conftest import TOY_PROFILE
from zoo.errors import UserError
from zoo.files import parse_json, read_json, read_plain, read_tail, slug
from zoo.models import ArchSpec, build_model, shapes_of
from zoo.sources import open_image, read_parquet
from zoo.store import Zoo
from zoo.tensors import MAX_HEADER, copy_tensors, read_tensors

HOSTILE = [
    "../../x",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "",
    "\x00",
    "con:aux",
    "x" * 5000,
    "é😀",
]


# -- files and names ------------------------------------------------------------------------------


def test_links_pipes_folders_and_giants_are_not_read(tmp_path):
    secret = put(tmp_path / "secret.json", b'{"a": 1}')
    (tmp_path / "link.json").symlink_to(secret)
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    with (tmp_path / "giant.json").open("wb") as stream:
        stream.truncate(10 * 2**40)
    assert read_json(secret) == {"a": 1}
    for name, message in {
        "link": "is a link",
        "pipe": "not a regular file",
        "folder": "not a regular file",
        "giant": "more than the",
        "missing": "No such file",
    }.items():
        with pytest.raises(OSError, match=message):
            read_json(tmp_path / f"{name}.json")
        if name != "giant":
            assert read_tail(tmp_path / f"{name}.json", 5) == ""
    assert read_tail(secret, 3) == " 1}"
    assert read_plain(secret, 8) == secret.read_bytes()
    with pytest.raises(OSError, match="more than the 7"):
        read_plain(secret, 7)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", "1e999", "[" * 100_000, "9" * 5000, "{"])
def test_json_is_strict(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_its_folder(tmp_path, name):
    assert (tmp_path / slug(name)).parent == tmp_path
    assert (tmp_path / slug(name)).resolve().parent == tmp_path.resolve()
    put(tmp_path / f"{slug(name)}.json", b"")  # a name that the file system takes
    for mark in (defense, base_set):
        with pytest.raises(ValueError, match="expected a name"):
            mark(name, paper="", needs="nothing")


def test_long_names_stay_different():
    assert slug("x" * 200) != slug("x" * 201)
    assert slug("ibau[lr=0.1]") == "ibau-lr-0.1"


@pytest.mark.parametrize("name", HOSTILE)
def test_records_are_written_below_the_root_or_not_at_all(tmp_path, name):
    root = tmp_path / "root"
    record = make(cell=dataclasses.replace(make().cell, defense=name))
    assert write(root, record).resolve().is_relative_to(root.resolve() / "records")
    for odd in (make(key=name), make(key=f"../{'a' * 61}"), make(key="AB" * 32)):
        with pytest.raises(RecordError, match="64 hexadecimal digits"):
            write(root, odd)
    remember(root, Sweep(defense=name, label=name, param=name, values=(1,), fixed={}))
    assert {path.name for path in tmp_path.iterdir()} == {"root"}


# -- records --------------------------------------------------------------------------------------


def stored(tmp_path, **changes):
    """A record with changes that its writer would not make, and the digest that fits."""
    payload = json.loads(text_of(make()))
    for place, value in changes.items():
        *outer, last = place.split("__")
        inner = payload
        for part in outer:
            inner = inner[part]
        inner[last] = value
    payload.pop("payload_sha256")
    try:
        payload["payload_sha256"] = digest(payload)
    except ValueError:  # not finite: a forger hashes the text
        payload["payload_sha256"] = "0" * 64
    return put(tmp_path / "x.json", json.dumps(payload, indent=1, sort_keys=True).encode())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "../../x"}, "64 hexadecimal digits"),
        ({"cell__defense": "a\x1b]0;x\x07"}, "control characters"),
        ({"cell__dataset": "x" * 1001}, "too long"),
        ({"cell__params": {"lr": 1e301}}, "out of range"),
        ({"inputs": {"a": [{"b": 10**400}]}}, "out of range"),
        ({"score": float("nan")}, "cannot read record"),
        ({"cell__params": {"lr": float("inf")}}, "cannot read record"),
        ({"curve": [{"loss": [1]}]}, "curve"),
        ({"curve": [{"x": 0.5} for _ in range(400_000)]}, "more than the 4,194,304"),
    ],
)
def test_records_that_nobody_writes_are_refused(tmp_path, changes, message):
    path = stored(tmp_path, **changes)
    with pytest.raises(RecordError, match=message):
        read(path)
    assert read(stored(tmp_path)) == dataclasses.replace(
        make(), payload_sha256=json.loads(text_of(make()))["payload_sha256"]
    )


def test_a_text_whose_numbers_are_not_finite_has_no_digest_that_helps(tmp_path):
    """The quick way hashes the text: 1e999 is text like any other, and infinity when parsed."""
    text = text_of(make()).replace('"rounds": 3', '"rounds": 1e999')
    sha = digest_of_text(text.encode())
    old = json.loads(text)["payload_sha256"]
    path = put(tmp_path / "x.json", text.replace(old, sha).encode())
    assert digest_of_text(path.read_bytes()) == sha
    with pytest.raises(RecordError, match="out of range"):
        read(path)


def test_a_sweep_that_is_none_is_refused(tmp_path):
    path = put(tmp_path / "x.json", b'{"defense": 1, "label": "", "param": "", "values": [[]]}')
    with pytest.raises(ValueError, match="cannot read sweep"):
        read_sweep(path)


# -- profiles -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[\n" * 5000, "nested too deeply"),
        ("a" + ".a" * 20_000 + " = 1", "more than 2,000 letters"),
        (TOY_PROFILE.replace("width = 0.125", "width = inf"), "finite"),
        (TOY_PROFILE.replace("epochs = 1", "epochs = 99999999999"), "epochs"),
        (TOY_PROFILE.replace("seeds = [0]", "seeds = [99999999999]"), "none above"),
        (TOY_PROFILE.replace('"20"', '"2000000000000"'), "expected a budget"),
        (TOY_PROFILE.replace("seeds = [0]", "seeds = [" + "'a',\n" * 100 + "]"), "80 more"),
        ("#" * 100 + "\n" + "# comment\n" * 200_000, "more than 1,048,576 bytes"),
    ],
)
def test_profiles_that_nobody_needs_are_refused(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        load_profile(str(put(tmp_path / "p.toml", text.encode())))
    assert len(str(caught.value)) < 20_000


# -- tensors --------------------------------------------------------------------------------------


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype="U8", shape=(2,), begin=0, end=2):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (struct.pack("<Q", 2**62) + b"{}", "Extra data|Expecting|invalid|header"),
        (safetensors(b" " * (MAX_HEADER + 1) + b"{}"), "more than 1,048,576 bytes"),
        (safetensors(b"[1]"), "not a JSON object"),
        (safetensors({"a": entry("C64", (1,), 0, 8)}, b"8" * 8), "expected one of F64"),
        (safetensors({"a": entry("F4", (2,), 0, 1)}, b"1"), "expected one of F64"),
        (safetensors({"a": entry(shape=(2**62, 0), end=0)}), "expected a shape"),
        (safetensors({"a": entry(shape=(-1,))}, b"ab"), "expected a shape"),
        # Left to safetensors itself, which must go on doing it:
        (safetensors({"a": entry(), "b": entry()}, b"ab"), "invalid offset"),
        (safetensors({"a": entry(), "b": entry(begin=1, end=3)}, b"abc"), "invalid offset"),
        (safetensors({"a": entry(begin=1, end=3)}, b"abc"), "invalid offset"),
        (safetensors({"a": entry()}, b"abc"), "not fully covered"),
        (safetensors({"a": entry(shape=(10,), end=10)}, b"ab"), "not fully covered"),
        (safetensors({"a": entry(shape=(3,))}, b"ab"), "."),
    ],
)
def test_safetensors_that_lie_are_refused(tmp_path, content, message):
    path = put(tmp_path / "x.safetensors", content)
    with pytest.raises(UserError, match=message):
        read_tensors(path)
    with pytest.raises((ValueError, OSError)):
        copy_tensors(path, {"a": torch.zeros(2, dtype=torch.uint8)})


def test_other_names_shapes_and_kinds_than_expected_are_refused(tmp_path):
    like = {"a": torch.zeros(2, 3), "n": torch.zeros(1, dtype=torch.int64)}
    path = tmp_path / "x.safetensors"
    for change, message in (
        ({"a": torch.zeros(3, 2)}, r"a: expected \(2, 3\), got \(3, 2\)"),
        ({"a": torch.zeros(2, 3, dtype=torch.int64)}, "a: expected torch.float32, got I64"),
        ({"n": torch.zeros(1)}, "n: expected torch.int64, got F32"),
        ({"b": torch.zeros(1)}, "b: expected nothing"),
    ):
        save_file({**like, **change}, path)
        for reader in (read_tensors, copy_tensors):
            with pytest.raises((UserError, ValueError), match=message):
                reader(path, like)
    save_file({**like, "a": like["a"].bfloat16()}, path)
    assert read_tensors(path, like)["a"].dtype == torch.bfloat16


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path):
    """One tensor of eight TB, in a file that has as many bytes, none of them on the disk."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors({"a": entry("F64", (2**40,), 0, 2**43)}))
    with path.open("ab") as stream:
        stream.truncate(path.stat().st_size + 2**43)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for like in (None, shapes_of(SPEC)):
        with pytest.raises(UserError, match="no more than 8,589,934,592 are read"):
            read_tensors(path, like)
    with pytest.raises(OSError, match="more than the"):
        copy_tensors(path, shapes_of(SPEC))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


# -- the zoo --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, "no classifier of ours"),
        ({"num_classes": 10**12}, "no classifier of ours"),
        ({"image_shape": [3, 2**20, 2**20]}, "no classifier of ours"),
        ({"name": "../x"}, "no classifier of ours"),
        ({"mean": "abc"}, "not a classifier's specification"),
        ({"std": [1.0]}, "no classifier of ours"),
    ],
)
def test_architectures_that_nobody_needs_are_refused(change, message):
    assert ArchSpec.from_dict(SPEC.to_dict()) == SPEC
    with pytest.raises(ValueError, match=message):
        ArchSpec.from_dict(SPEC.to_dict() | change)


def test_a_victim_must_be_what_its_recipe_says(tmp_path):
    zoo = Zoo(tmp_path)
    model = build_model(SPEC)
    found = zoo.save(RECIPE, model, None, META)
    assert zoo.find(RECIPE) is not None
    wide = dataclasses.replace(SPEC, width=8.0, name="vgg16").to_dict()
    recipe = found.meta["recipe"] | {"attack": {"name": "badnets", "params": {"size": 10**9}}}
    for change, message in (
        ({"recipe": recipe}, "its recipe is not the one"),
        ({"spec": wide}, "its spec is not that of its recipe"),
        ({"dataset": "../x"}, "dataset: expected 'signs'"),
        ({"seed": 1}, "seed: expected 0"),
        ({"target": 99}, "target: expected a class"),
        ({"weights_sha256": "../x"}, "weights_sha256"),
        ({"metrics": {"acc": "high", "images": 1, "strengths": {}}}, "metrics.acc"),
        ({"status": "great"}, "status"),
    ):
        zoo.write_meta(found.folder, {**found.meta, **change})
        with pytest.raises(UserError, match=message):
            zoo.find(RECIPE)
    zoo.write_meta(found.folder, found.meta)
    again = zoo.find(RECIPE)
    assert again is not None
    with torch.no_grad():
        model.head.bias += 1
    save_file(model.state_dict(), found.weights_path)
    with pytest.raises(UserError, match=r"is not what victim.json says"):
        again.model()
    save_file(
        dict(build_model(dataclasses.replace(SPEC, width=0.1)).state_dict()), found.weights_path
    )
    with pytest.raises(UserError, match=r"expected \("):
        again.model()


# -- images ---------------------------------------------------------------------------------------


def test_an_image_that_is_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    small = Image.new("L", (1, 1))
    small.save(tmp_path / "bomb.png")
    raw = bytearray((tmp_path / "bomb.png").read_bytes())
    raw[16:24] = struct.pack(">II", 8000, 8000)  # the header claims more than there is
    raw[29:33] = struct.pack(">I", zlib.crc32(raw[12:29]))
    (tmp_path / "bomb.png").write_bytes(raw)
    with pytest.raises(UserError, match="8000x8000 pixels are too many"):
        open_image(tmp_path / "bomb.png", "bomb.png")


@pytest.mark.parametrize("kind", ["EPS", "TIFF", "GIF", "PDF", "ICO"])
def test_formats_that_run_programs_or_are_rare_are_refused(tmp_path, kind):
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png", kind)
    with pytest.raises(UserError, match="not an image that can be decoded"):
        open_image(tmp_path / "x.png", "x.png")


def test_a_parquet_file_that_is_a_bomb_is_refused_before_it_fills_the_memory(tmp_path):
    """Four kilobytes that say: 2,000 rows, each the same image of 20 MB. Forty GB as a table."""
    kind = pa.dictionary(pa.int32(), pa.binary())
    column = pa.DictionaryArray.from_arrays(
        pa.array(np.zeros(2000, np.int32)), pa.array([bytes(20_000_000)], pa.binary())
    ).cast(kind)
    image = pa.StructArray.from_arrays([column, pa.array(["x"] * 2000)], ["bytes", "path"])
    table = pa.table({"image": image, "label": pa.array([0] * 2000)})
    path = tmp_path / "train.parquet"
    pq.write_table(table, path, compression="zstd")
    del table, image, column
    assert path.stat().st_size < 20_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="an image of more than 16,777,216 bytes"):
        read_parquet([path], tracks=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (pa.array([0, 1, 2**60]), "expected labels from 0 to 9999"),
        (pa.array([0, 1, -1]), "expected labels from 0"),
        (pa.array([0, None, 1]), "a label in every row"),
        (pa.array([0.0, 1.0, 0.5]), "a label in every row"),
        (pa.array(["a", "b", "c"]), "a label in every row"),
        (pa.array([0, 1, 2**64 - 1], pa.uint64()), "cannot read"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, message):
    path = put(tmp_path / "train.parquet", parquet("snappy"))
    assert len(read_parquet([path], tracks=True)) == 3
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", labels), path)
    with pytest.raises(UserError, match=message):
        read_parquet([path], tracks=True)


# -- what a child leaves --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "great"}, "status"),
        ({"cost": None}, "what the repair has cost"),
        ({"status": "timeout", "error": None}, "says timeout, and not why"),
        ({"finding": {"values": [1]}}, "finding"),
        ({"curve": [{"step": "x" * 100}]}, "curve"),
        ({"data_touched": {"budget_sha256": "0"}}, "data_touched"),  # the harness's to say
        ({"robust": {}}, "robust"),
        ({"error": {"type": "E", "message": "m", "traceback": "t", "extra": "x"}}, "error"),
    ],
)
def test_accounts_of_another_form_are_refused(tmp_path, change, message):
    good = json.loads(RESULTS[0])
    path = put(tmp_path / "result.json", json.dumps(good).encode())
    assert handback.read_result(path, ENDED, 1)["status"] == "ok"
    path.write_text(json.dumps(good | change))
    result = handback.read_result(path, ENDED, 1)
    assert result["status"] == "error"
    assert message in result["error"]["message"]


def test_how_a_child_ended_that_left_nothing(tmp_path):
    for ended, status in (
        (Exit(rc=3, timed_out=False), "error"),
        (Exit(rc=-9, timed_out=False), "killed"),
        (Exit(rc=-9, timed_out=True), "timeout"),
    ):
        assert handback.read_result(tmp_path / "none", ended, 1)["status"] == status


def test_models_of_another_kind_than_the_victim_are_refused():
    other = dataclasses.replace(SPEC, norm="group")
    told = {"specs": [SPEC.to_dict(), other.to_dict()]}
    assert handback.specs_of(told, SPEC, "poisoned-train") == [SPEC, other]
    for specs in (told["specs"], [], [SPEC.to_dict()] * 101, [{"name": "x"}]):
        with pytest.raises(handback.HandbackError, match="expected"):
            handback.specs_of({"specs": specs}, SPEC, "nothing")


def test_base_sets_and_pictures_of_odd_sizes_are_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for images, labels in (
        (image, torch.tensor([0, 3])),
        (image, torch.tensor([-1, 0])),
        (image, torch.tensor([0])),
        (image[:, :1], torch.tensor([0, 1])),
        (image.long(), torch.tensor([0, 1])),
        (image[:0], torch.zeros(0, dtype=torch.long)),
    ):
        save_file({"images": images.contiguous(), "labels": labels}, path)
        with pytest.raises(UserError, match="cannot be used"):
            base_sets.load(path, (3, 4, 4), 3)
    for shape in ((MAX_TILES + 1, 1, 1, 1), (1, 3, 2000, 2000), (1, 2, 4, 4), (4, 4)):
        save_file({"triggers": torch.zeros(shape, dtype=torch.uint8)}, path)
        assert contact_strip(path) == b""


def test_registered_names_are_file_names():
    registry = Registry()
    for name in (*registry.entries, *registry.bases):
        assert slug(name) == name

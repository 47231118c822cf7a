"""Damaged, half-written and foreign files: made again where that is cheap, else refused with advice that works."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gentta_utils import recipes
from gentta_utils.common import files
from gentta_utils.common.cache import in_parts
from gentta_utils.common.files import atomic_write, read_json
from gentta_utils.common.paths import MODELS, RESULTS, SCENES
from gentta_utils.course import doctor
from gentta_utils.evaluation import chosen, records, stale, tables
from gentta_utils.models import zoo
from gentta_utils.recipes import training
from gentta_utils.world import scenes

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
SAYS = {"empty": "it is empty", "pointer": "it is a pointer of Git LFS", "half": "", "other": ""}


def damage(path, kind: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "pointer": POINTER, "half": whole[: len(whole) // 2], "other": b"[1]"}[kind])


def refused(kind: str, path, fix: str):
    """The one sentence about a damaged file: which it is, how it is damaged, what to do."""
    return pytest.raises(ValueError, match=rf"^[^\n]*{path.name}[^\n]*{SAYS[kind]}[^\n]*: [^\n]*{fix}[^\n]*$")


@pytest.fixture
def run() -> records.Records:
    columns = [np.arange(3), np.arange(3), *np.zeros((2, 3, 4), np.float32), *np.zeros((1, 3, 0), np.float32)]
    return records.Records(*columns, np.zeros(3, np.float32), {}, {"protocol": {}, "label": "a"})


# --- tables ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SAYS)
def test_tables(run, tmp_path, kind):
    path = tmp_path / "mine.npz"
    records.save(path, [run])
    damage(path, kind)
    with refused(kind, path, "measure mine"):
        records.load(path)


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("where", ["cache", "table", "another table"])
def test_measuring_goes_on_past_a_damaged_file(run, tmp_path, capsys, kind, where):
    done = []
    jobs = [({"label": "a"}, lambda: done.append(1) or run)]
    measure = lambda folder: tables.table("t", jobs, folder, tmp_path / "cache")  # noqa: E731
    measure(tmp_path / "results")
    if where == "cache":
        (damaged,) = (tmp_path / "cache").iterdir()
    else:
        damaged = tmp_path / "results" / ("t.npz" if where == "table" else "other.npz")
        records.save(damaged, [run])
    damage(damaged, kind)
    (again,) = measure(tmp_path / "elsewhere" if where == "cache" else tmp_path / "results")
    assert len(done) == (2 if where == "cache" else 1)  # a run in the cache is taken from there
    assert again.about["label"] == "a"
    assert f"{damaged} is damaged" in capsys.readouterr().out
    if where != "another table":
        records.load(damaged)


@pytest.mark.parametrize("kind", SAYS)
def test_parts_are_made_again(tmp_path, kind):
    calls = []
    work = lambda rows: calls.append(rows) or {"x": rows * 2.0}  # noqa: E731
    ids = torch.arange(4)
    whole = in_parts(work, ids, tmp_path, 2, "parts")
    damage(tmp_path / "0001.safetensors", kind)
    again = in_parts(work, ids, tmp_path, 2, "parts")
    assert len(calls) == 3
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(whole, again, strict=True))
    save_file({"y": torch.zeros(1)}, tmp_path / "0001.safetensors")  # whole, and of something else
    in_parts(work, ids, tmp_path, 2, "parts")
    assert len(calls) == 4


def test_what_is_written_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: order.append("sync") or sync(handle))
    monkeypatch.setattr(files.os, "replace", lambda *paths: order.append("rename") or rename(*paths))
    atomic_write(tmp_path / "x", lambda path: path.write_text("a", encoding="utf-8"))
    assert order == ["sync", "rename"]


# --- settings, scenes ------------------------------------------------------------------------------------------------

CHOICES = {
    "diffusion_tta.json": (chosen.choice, "measure select`"),
    "rivals.json": (lambda: chosen.rival("tent", "classifier/resnet"), "measure select_rivals`"),
    "sda.json": (chosen.selection, "measure select_sda`"),
    "diffusion_tta_text.json": (chosen.text_choice, "measure select_text`"),
}


@pytest.mark.parametrize("kind", SAYS)
@pytest.mark.parametrize("file", CHOICES)
def test_chosen_settings(tmp_path, monkeypatch, file, kind):
    ask, fix = CHOICES[file]
    shutil.copy(RESULTS / file, tmp_path)
    for name in ("DIFFUSION_TTA", "RIVALS", "SDA", "DIFFUSION_TTA_TEXT"):
        monkeypatch.setattr(chosen, name, tmp_path / getattr(chosen, name).name)
    ask()
    damage(tmp_path / file, kind)
    with refused(kind, tmp_path / file, f"git checkout -- data/results`, or make it .*{fix}"):
        ask()
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"no settings at .*{fix}"):
        ask()


def test_settings_that_nobody_chose_list_the_choices():
    for ask in (lambda: chosen.tuned("classifier/none"), lambda: chosen.rival("tent", "classifier/none")):
        with pytest.raises(ValueError, match="'classifier/none': choose one of classifier/resnet, "):
            ask()
    with pytest.raises(ValueError, match="the row 'none': choose one of tent, "):
        chosen.rival("none", "classifier/resnet")
    with pytest.raises(ValueError, match="the view 'side': choose one of full, low"):
        chosen.tuned("classifier/resnet", "side")
    with pytest.raises(ValueError, match="the CLIP 'clip/none': choose one of clip/small"):
        chosen.tuned_text("clip/none")
    with pytest.raises(ValueError, match="the kind 'none': choose one of "):
        chosen.tuned_text("clip/small", kind="none")
    with pytest.raises(ValueError, match="the row 'none': choose one of tent"):
        chosen.text_rival("clip/small", "none")


@pytest.mark.parametrize("kind", [k for k in SAYS if k != "other"])
def test_the_list_of_what_is_stale(tmp_path, monkeypatch, kind):
    shutil.copy(RESULTS / "stale.json", tmp_path)
    monkeypatch.setattr(stale, "RESULTS", tmp_path)
    damage(tmp_path / "stale.json", kind)
    with refused(kind, tmp_path / "stale.json", "git checkout -- data/results"):
        stale.changes.__wrapped__()


@pytest.mark.parametrize("kind", SAYS)
def test_shipped_scenes(tmp_path, monkeypatch, kind):
    shutil.copy(scenes.SHIPPED, tmp_path)
    monkeypatch.setattr(scenes, "SHIPPED", tmp_path / "test.npz")
    damage(tmp_path / "test.npz", kind)
    with refused(kind, tmp_path / "test.npz", "git checkout -- data/scenes"):
        scenes.shipped()
    (tmp_path / "test.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*test.npz: run `git checkout -- data/scenes`"):
        scenes.shipped()


@pytest.mark.parametrize("file", ["labels.json", "test.npz"])
def test_the_doctor_reads_what_is_shipped(tmp_path, monkeypatch, file):
    for name in ("labels.json", "test.npz"):
        shutil.copy(SCENES / name, tmp_path)
    (tmp_path / "clean.npz").write_bytes((RESULTS / "clean.npz").read_bytes())
    for module, name, path in (
        (doctor, "SCENES", tmp_path),
        (doctor, "RESULTS", tmp_path / "results"),
        (scenes, "SHIPPED", tmp_path / "test.npz"),
    ):
        monkeypatch.setattr(module, name, path)
    assert doctor._data()[0]
    damage(tmp_path / file, "half")
    good, says, fix = doctor._data()
    assert not good
    assert str(tmp_path / file) in says
    assert fix == "git checkout -- data"


def test_the_doctor_reads_tables_too(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "RESULTS", tmp_path)
    (tmp_path / "x.npz").write_bytes(b"")
    assert "x.npz is damaged (it is empty)" in doctor._data()[1]


@pytest.mark.parametrize("kind", [k for k in SAYS if k != "other"])
def test_json(tmp_path, kind):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"a": [1, 2, 3]}), encoding="utf-8")
    assert read_json(path, "run it") == {"a": [1, 2, 3]}
    damage(path, kind)
    with refused(kind, path, "run it"):
        read_json(path, "run it")
    with pytest.raises(FileNotFoundError, match=r"no file .*b.json: run it"):
        read_json(tmp_path / "b.json", "run it")


# --- models ----------------------------------------------------------------------------------------------------------

NAME = "classifier/resnet"


@pytest.fixture
def shipped_alone(tmp_path, monkeypatch):
    """A copy of data/models that holds one model."""
    shutil.copytree(MODELS / NAME, tmp_path / NAME)
    shutil.copy(MODELS / "checksums.json", tmp_path)
    monkeypatch.setattr(zoo, "MODELS", tmp_path)
    monkeypatch.setattr(zoo, "CHECKSUMS", tmp_path / "checksums.json")
    return tmp_path


@pytest.mark.parametrize(
    "file", ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"]
)
def test_unlisted_files_beside_a_model_are_refused(shipped_alone, file):
    (shipped_alone / NAME / ".DS_Store").write_bytes(b"of a file manager")
    zoo.load(NAME, folder=shipped_alone)
    (shipped_alone / NAME / file).write_bytes(b"{}")
    with pytest.raises(ValueError, match=rf"{file} is not among the files of {NAME} that .* lists: delete it"):
        zoo.load(NAME, folder=shipped_alone)


def test_an_entry_that_is_missing_in_the_list_is_refused(shipped_alone):
    listed = zoo.checksums()
    without = {file: c for file, c in listed.items() if file != f"{NAME}/model.safetensors"}
    (shipped_alone / "checksums.json").write_text(json.dumps(without), encoding="utf-8")
    with pytest.raises(ValueError, match=r"model.safetensors is not among the files"):
        zoo.load(NAME, folder=shipped_alone)
    with pytest.raises(
        ValueError, match=f"lists no weights of {NAME}: run `git checkout -- data/models/checksums.json"
    ):
        zoo.fingerprint(NAME)


@pytest.mark.parametrize("kind", SAYS)
def test_lists_and_cards(shipped_alone, kind):
    damage(shipped_alone / NAME / "card.json", kind)
    if kind != "other":
        with refused(kind, shipped_alone / NAME / "card.json", "git checkout -- data/models"):
            zoo.card(NAME)
    damage(shipped_alone / "checksums.json", kind)
    with pytest.raises(ValueError, match=r"checksums.json is .*: run `git checkout -- data/models/checksums.json`"):
        zoo.load(NAME, folder=shipped_alone)


@pytest.mark.parametrize("kind", SAYS)
def test_weights(shipped_alone, kind):
    damage(shipped_alone / NAME / "model.safetensors", kind)
    with refused(kind, shipped_alone / NAME / "model.safetensors", "git checkout -- data/models"):
        zoo.load(NAME, folder=shipped_alone)


@pytest.mark.parametrize("kind", [*SAYS, "weights"])
def test_a_damaged_checkpoint_says_what_helps(tmp_path, kind):
    toy = lambda: torch.nn.Sequential(torch.nn.Linear(2, 1))  # noqa: E731
    loss = lambda model, generator, step: model(torch.ones(1, 2)).square().mean()  # noqa: E731
    schedule = training.Schedule(steps=2, batch=1, lr=0.1)
    whole = training.train(toy(), loss, schedule, tmp_path)
    path = tmp_path / "checkpoint.safetensors"
    if kind == "weights":
        save_file({"a": torch.zeros(1)}, path)
    else:
        damage(path, kind)
    for ask in (lambda: training.train(toy(), loss, schedule, tmp_path), lambda: training.Run.steps_of(tmp_path)):
        with pytest.raises(ValueError, match=r"checkpoint.safetensors is .*start from the beginning with --scratch"):
            ask()
    assert training.train(toy(), loss, schedule, tmp_path, scratch=True).step == whole.step  # the advice works


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("minutes", [-1.0, 0.0, float("nan"), float("inf"), 1e9])
def test_a_training_of_no_length_is_refused_at_once(minutes):
    with pytest.raises(ValueError, match=r"--minutes .*: choose a number above 0, up to 10,000"):
        recipes.train("classifier/resnet-300", minutes=minutes)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "", "cpu:x", "meta"])
def test_a_device_that_is_not_here_is_refused_at_once(device):
    with pytest.raises(ValueError, match=rf"device '{device}' is not here: choose one of cpu"):
        recipes.train("classifier/resnet-300", device=device)

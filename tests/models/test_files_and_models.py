"""Nothing is lost and nothing damaged is read: atomic writes, checksums, the zoo, records, recipes that resume."""

import errno
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from gentta_utils import recipes
from gentta_utils.common import cache
from gentta_utils.common.devices import precision_on
from gentta_utils.common.files import atomic_write, check_file, sha256, write_json
from gentta_utils.common.paths import MODELS
from gentta_utils.evaluation import evaluate, statistics, tables
from gentta_utils.evaluation import records as evaluation_records
from gentta_utils.methods import diffusion_tta
from gentta_utils.methods import source as methods_source
from gentta_utils.methods.purifier import what_changes
from gentta_utils.models import zoo
from gentta_utils.models.classifier import Classifier
from gentta_utils.models.clip import Clip
from gentta_utils.models.denoiser import Denoiser
from gentta_utils.models.dense import DenseModel
from gentta_utils.recipes import aligned, classifiers, training
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world import views
from gentta_utils.world.shifts import shifted

# --- files -----------------------------------------------------------------------------------------------------------


def full_disk(path):
    path.write_text("half of it", encoding="utf-8")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"a": 1})
    with pytest.raises(OSError, match="free some space") as error:
        atomic_write(path, full_disk)
    assert "\n" not in str(error.value)
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_full_disk_under_safetensors_is_the_same_sentence(tmp_path):
    """safetensors raises an exception of its own; a limit on the size of files stands for the full disk."""
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(10)}, path)
    code = f"""
import resource, signal, torch
from pathlib import Path
from gentta_utils.common.files import atomic_write
from safetensors.torch import save_file
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    atomic_write(Path({str(path)!r}), lambda p: save_file({{"a": torch.zeros(100_000)}}, p))
except OSError as error:
    assert "free some space" in str(error), error
else:
    raise SystemExit("nothing was raised")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert load_file(path)["a"].shape == (10,)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_writer_that_dies_leaves_nothing_half_written(tmp_path):
    def dies(path):
        path.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "x.npz", dies)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OSError, match="choose another folder"):
        write_json(tmp_path / "file" / "x.json", {})


def test_weights_are_checked(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(FileNotFoundError, match="no weights at"):
        check_file(path)
    save_file({"a": torch.rand(100)}, path)
    check_file(path, sha256(path))
    with pytest.raises(ValueError, match="does not have the checksum"):
        check_file(path, "0" * 64)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        check_file(path)


# --- the zoo ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", zoo.shipped())
def test_shipped_models_load_and_have_a_card(name):
    model = zoo.load(name)
    kinds = {"classifier": Classifier, "clip": Clip, "autoencoder": AutoencoderKL}
    kinds |= {"segmentor": DenseModel, "depth": DenseModel}
    assert isinstance(model, kinds.get(name.split("/")[0], Denoiser))
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.training
    card = zoo.card(name)
    trained = set() if name.endswith("-sda") else {"schedule", "steps"}  # there they are in recipe -> fine_tune
    assert {"world", "recipe", "minutes", "quality", "licence", "parameters"} | trained <= set(card)
    own = [p for n, p in model.named_parameters() if not n.startswith("vae.")]  # a text model holds a copy of another
    assert card["parameters"] == sum(p.numel() for p in own)
    for file in (f for f in zoo.files_of(name) if f.endswith(".safetensors")):
        assert all(v.dtype in (torch.float16, torch.int64) for v in load_file(MODELS / file).values())


@pytest.mark.parametrize("name", ["autoencoder/f4", "clip/small", "clip/small-32", "clip/large", "denoiser/text"])
def test_weights_of_the_text_half_have_eight_significant_bits(name):
    for file in (f for f in zoo.files_of(name) if f.endswith(".safetensors")):
        for v in load_file(MODELS / file).values():
            assert not v.is_floating_point() or torch.equal(v.bfloat16().half(), v)


def test_auto_precision_is_what_a_loaded_model_has():
    assert precision_on("cpu") == zoo.cached("denoiser/dit").precision
    assert precision_on("cpu", "fp32") == "fp32" == zoo.cached("denoiser/dit", "fp32").precision


@pytest.mark.parametrize("name", zoo.ON_DEMAND)
def test_models_on_demand_say_how_they_are_made(name):
    assert name in recipes.names()
    if name not in zoo.names():  # no table rests on it yet
        with pytest.raises(ValueError, match=f"{name} was not trained yet: run .* train {name} --promote"):
            zoo.load(name)
        return
    if any((MODELS / file).is_file() for file in zoo.files_of(name) if file.endswith(".safetensors")):
        pytest.skip(f"{name} was trained here")
    with pytest.raises(FileNotFoundError, match=f"train {name} --promote"):
        zoo.load(name)
    assert len(zoo.fingerprint(name)) == 12  # what the tables state


@pytest.mark.parametrize("name", aligned.ALIGNED)
def test_shipped_aligned_classifiers_are_those_of_the_selection(name):
    data, how = aligned.chosen(name)
    source = name.removesuffix("-sda")
    about = json.loads(json.dumps(aligned.describe(source, data, how)))
    assert zoo.card(name)["recipe"] == about
    assert zoo.load(name).alignment == what_changes(data.alignment)
    assert aligned.from_description(source, about) is zoo.cached(name)  # what `recheck` takes for SDA's records


def test_classifiers_are_honest():
    """Label-poor, 85 to 93% clean, at least 10 points worse over the validation corruptions, calibrated."""
    for name in ("classifier/resnet", "classifier/vit"):
        card = zoo.card(name)
        quality = card["quality"]
        validation = [v for k, v in quality.items() if k.endswith("_5")]
        assert len(validation) == 4
        assert 85 <= quality["clean"] <= 93
        assert quality["clean"] - np.mean(validation) >= 10
        assert quality["ece"] < 5
        assert card["recipe"]["labels"] <= 4000


def test_the_null_class_is_a_true_one():
    quality = zoo.card("denoiser/dit")["quality"]
    assert quality["loss_true_class"] < quality["loss_null_class"] < quality["loss_wrong_class"]


def test_unknown_names_and_profiles():
    with pytest.raises(ValueError, match="unknown model 'classifier/none'"):
        zoo.load("classifier/none")
    with pytest.raises(ValueError, match="unknown profile"):
        zoo.load("classifier/resnet", "cifar")


@pytest.mark.parametrize("damage", ["missing", "truncated", "other"])
def test_damaged_shipped_weights_are_refused(tmp_path, monkeypatch, damage):
    shutil.copytree(MODELS / "classifier" / "resnet", tmp_path / "classifier" / "resnet")
    shutil.copy(MODELS / "checksums.json", tmp_path)
    monkeypatch.setattr(zoo, "MODELS", tmp_path)
    monkeypatch.setattr(zoo, "CHECKSUMS", tmp_path / "checksums.json")
    path = tmp_path / "classifier" / "resnet" / "model.safetensors"
    says = {"missing": "no weights", "truncated": "not a whole", "other": "checksum"}[damage]
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        save_file({k: v + 1 for k, v in load_file(path).items()}, path)
    with pytest.raises((ValueError, FileNotFoundError), match=says):
        zoo.load("classifier/resnet", folder=tmp_path)


def test_shipped_dit_shares_one_embedder_and_keeps_its_outputs(shipped):
    network = shipped.denoiser.network
    assert len({id(b.norm1.emb) for b in network.transformer_blocks}) == 1
    x, t = torch.randn(2, *shipped.denoiser.shape), torch.tensor([100, 500])
    with torch.no_grad():
        ours = shipped.denoiser(x, t, torch.eye(10)[:2])
        from diffusers import DiTTransformer2DModel

        fresh = DiTTransformer2DModel.from_pretrained(
            MODELS / "denoiser/dit", subfolder="transformer", torch_dtype=torch.float32
        )
        theirs = fresh.eval()(x, timestep=t, class_labels=torch.tensor([0, 1])).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_encode_is_area_averaging_and_decode_its_way_back(shipped):
    images = torch.rand(2, 3, 64, 64)
    x0 = shipped.denoiser.encode(images)
    torch.testing.assert_close(x0, torch.nn.functional.avg_pool2d(images, 2) * 2 - 1)
    back = shipped.denoiser.decode(x0)
    assert back.shape == images.shape
    assert float(back.min()) >= 0
    assert float(back.max()) <= 1


# --- streams and records ---------------------------------------------------------------------------------------------


def test_streams_are_labelled_scenes_under_a_shift():
    clean, noisy = (stream(SceneSpec(6, name, s, "test", 70)) for name, s in (("clean", 0), ("fog", 5)))
    assert torch.equal(clean.labels, noisy.labels)
    assert torch.equal(clean.ids, noisy.ids)
    assert not torch.equal(clean.images, noisy.images)
    order = torch.tensor([4, 1])
    assert torch.equal(noisy.rows(order).images, noisy.images[order])
    with pytest.raises(ValueError, match="severity=3"):
        shifted(clean.images, "clean", 3, clean.ids)


@pytest.fixture
def records(tiny):
    s = stream(SceneSpec(7, "fog", 3, "test", 70))
    small = type(s)(torch.nn.functional.avg_pool2d(s.images, 4), s.labels % 4, s.ids, s.about)
    method = diffusion_tta.configure(tiny, diffusion_tta.Settings(lr=0.3, updates=2, pairs=3))
    return evaluate.run(method, small, batch=3, about={"method": "diffusion_tta", "settings": {"seed": 0}})


def test_records_hold_what_happened(records):
    assert len(records) == 7
    assert records.loss.shape == (7, 2)
    assert records.before.shape == records.after.shape == (7, 4)
    assert records.nfe == {"classifier fwd": 1, "classifier fwd+bwd": 2, "denoiser fwd+bwd": 6}
    summary = statistics.summary([records])
    assert summary["fixed"] - summary["broken"] == records.right_after.sum() - records.right_before.sum()
    line = statistics.protocol_line([records])
    for part in (
        "stream=iid",
        "reset=per_image",
        "predict=after",
        "batch=3",
        "n=7",
        "denoiser:fwd+bwd:6",
        "s/img, cpu",
    ):
        assert part in line


def test_halved_numbers_keep_every_prediction():
    near = np.array([[1.0, 1.0001, 0.5], [-2.0, -7.0, -1.9999], [-0.3, 4.0, 4.0]], np.float32)
    assert near.astype(np.float16)[0].argmax() == 0  # a tie, which the first would win
    half = evaluation_records.halved(near)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half.argmax(1), near.argmax(1))
    large = np.array([[1e5, 2e5]], np.float32)
    assert evaluation_records.halved(large) is large
    assert evaluation_records.halved(np.zeros((3, 0), np.float32)).shape == (3, 0)


def test_records_survive_the_disk_and_damage_is_named(records, tmp_path):
    path = tmp_path / "t.npz"
    evaluation_records.save(path, [records, records])
    again = evaluation_records.load(path)
    assert len(again) == 2
    for name in ("id", "label"):
        np.testing.assert_array_equal(getattr(again[1], name), getattr(records, name))
    for name in ("before", "after", "loss", "seconds"):  # floats are halved, predictions are not touched
        assert getattr(again[1], name).dtype == np.float32
        np.testing.assert_allclose(getattr(again[1], name), getattr(records, name), rtol=6e-4, atol=6e-8)
    assert again[0].about == records.about
    assert again[0].nfe == records.nfe
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="is damaged"):
        evaluation_records.load(path)
    with pytest.raises(FileNotFoundError, match="no records at"):
        evaluation_records.load(tmp_path / "none.npz")


def test_batch_size_does_not_change_records(tiny):
    s = stream(SceneSpec(7, "fog", 3, "test", 70))
    small = type(s)(torch.nn.functional.avg_pool2d(s.images, 4), s.labels % 4, s.ids, s.about)
    exact = diffusion_tta.Settings(lr=0.3, updates=2, pairs=3, images_at_once=4, fixed_chunk=True)
    runs = [evaluate.run(diffusion_tta.configure(tiny, exact), small, batch=b) for b in (1, 3, 7)]
    order = torch.randperm(7)
    mixed = evaluate.run(diffusion_tta.configure(tiny, exact), small.rows(order), batch=5)
    for name in ("before", "after", "loss"):
        for other in runs[1:]:
            np.testing.assert_array_equal(getattr(runs[0], name), getattr(other, name))
        np.testing.assert_array_equal(getattr(runs[0], name)[order.numpy()], getattr(mixed, name))


def test_reset_and_mode_must_agree(tiny):
    s = stream(SceneSpec(2, "fog", 3, "test", 70))
    episodic = diffusion_tta.configure(tiny, diffusion_tta.Settings(lr=0.3))
    with pytest.raises(ValueError, match="online=False"):
        evaluate.run(episodic, s, reset="per_shift")
    with pytest.raises(ValueError, match="choose one of per_image"):
        evaluate.run(episodic, s, reset="sometimes")


def test_tables_resume_and_do_only_what_is_missing(records, tmp_path):
    done = []

    def job(name, fails=False):
        def work():
            if fails:
                raise RuntimeError("interrupted")
            done.append(name)
            return records

        return {"name": name}, work

    with pytest.raises(RuntimeError):
        tables.table("t", [job("a"), job("b", fails=True), job("c")], tmp_path, tmp_path / "cache")
    assert done == ["a"]
    assert not (tmp_path / "t.npz").exists()
    tables.table("t", [job("a"), job("b"), job("c")], tmp_path, tmp_path / "cache")
    assert done == ["a", "b", "c"]
    tables.table("t", [job("c"), job("b"), job("a")], tmp_path, tmp_path / "cache")
    assert done == ["a", "b", "c"]
    assert len(evaluation_records.load(tmp_path / "t.npz")) == 3


def test_of_records_that_differ_in_precision_each_job_gets_its_own(records, tmp_path):
    of = {precision: records.about | {"precision": precision} for precision in ("bf16", "fp32")}
    evaluation_records.save(tmp_path / "t.npz", [replace(records, about=about) for about in of.values()])
    for order in (["bf16", "fp32"], ["fp32", "bf16"]):
        jobs = [({k: v for k, v in of[p].items() if k != "protocol"}, lambda: records) for p in order]
        found = tables.table("again", jobs, tmp_path, tmp_path / "cache")
        assert [r.about["precision"] for r in found] == order
        (tmp_path / "again.npz").unlink()


def test_a_job_that_stands_in_a_committed_table_is_not_done_again(records, tmp_path, monkeypatch):
    done = []

    def job(name):
        about = {**{key: value for key, value in records.about.items() if key != "protocol"}, "label": name}

        def work():
            done.append(name)
            return replace(records, about={**about, "protocol": records.about["protocol"]})

        return about, work

    tables.table("first", [job("a"), job("b")], tmp_path, tmp_path / "cache")
    tables.table("second", [job("b"), job("c")], tmp_path, tmp_path / "elsewhere")
    assert done == ["a", "b", "c"]
    assert [r.about["label"] for r in evaluation_records.load(tmp_path / "second.npz")] == ["b", "c"]
    of_a_laptop = [(about | {"precision": "another"}, work) for about, work in (job("a"), job("b"))]
    assert tables.missing_jobs(of_a_laptop, tmp_path, tmp_path / "nowhere") == []
    tables.table("third", of_a_laptop, tmp_path, tmp_path / "nowhere")
    assert done == ["a", "b", "c"]
    (tmp_path / "third.npz").unlink()
    (tmp_path / "first.npz").write_bytes(b"half a file")
    tables.table("second", [job("a"), job("b")], tmp_path, tmp_path / "nowhere")
    assert done == ["a", "b", "c", "a"]
    for module in (cache, tables, evaluation_records):  # the code changed: older tables do not count
        monkeypatch.setattr(module, "VERSION", 2)
    tables.table("third", [job("a")], tmp_path, tmp_path / "cache")
    assert done == ["a", "b", "c", "a", "a"]


def test_online_state_is_kept_within_a_shift_and_dropped_between(tiny):
    s = stream(SceneSpec(4, "fog", 3, "test", 70))
    small = type(s)(torch.nn.functional.avg_pool2d(s.images, 4), s.labels % 4, s.ids, s.about)
    online = diffusion_tta.configure(tiny, diffusion_tta.Settings(lr=0.3, updates=2, pairs=3, online=True))
    first = evaluate.run(online, small, reset="per_shift", batch=1)
    again = evaluate.run(online, small, reset="per_shift", batch=1)
    np.testing.assert_array_equal(first.after, again.after)
    carried = evaluate.run(online, small, reset="never", batch=1)
    assert not np.array_equal(first.after, carried.after)
    frozen = evaluate.run(methods_source.configure(tiny), small)
    np.testing.assert_allclose(first.before[0], frozen.before[0], rtol=1e-4, atol=1e-5)
    assert not np.allclose(first.before[3], frozen.before[3])


# --- recipes ---------------------------------------------------------------------------------------------------------

SCHEDULE = training.Schedule(steps=12, batch=4, lr=1e-2, warmup=2, flat=0.5, ema=0.9)


def toy():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 1))


def toy_loss(model, generator, step):
    x = torch.randn(4, 3, generator=generator)
    return (model(x)[:, 0] - x.sum(1)).square().mean()


def test_interrupted_training_ends_where_uninterrupted_does(tmp_path):
    whole = training.train(toy(), toy_loss, SCHEDULE, tmp_path / "whole")

    def interrupted(model, generator, step):
        if step == 7:
            raise KeyboardInterrupt
        return toy_loss(model, generator, step)

    with pytest.raises(KeyboardInterrupt):
        training.train(toy(), interrupted, SCHEDULE, tmp_path / "parts")
    resumed = training.train(toy(), toy_loss, SCHEDULE, tmp_path / "parts")
    assert resumed.step == 12
    ended, expected = resumed.tensors(), whole.tensors()
    assert set(ended) == set(expected)
    assert all(torch.equal(ended[name], expected[name]) for name in expected)
    assert training.Run.steps_of(tmp_path / "parts") == 12


def test_scratch_forgets_and_a_finished_run_stays(tmp_path):
    first = training.train(toy(), toy_loss, SCHEDULE, tmp_path)
    called = []
    training.train(toy(), lambda *a: called.append(1), SCHEDULE, tmp_path)
    assert not called
    again = training.train(toy(), toy_loss, SCHEDULE, tmp_path, scratch=True)
    assert torch.equal(first.tensors()["model.0.weight"], again.tensors()["model.0.weight"])


def test_bad_checkpoints_and_losses_are_named(tmp_path):
    training.train(toy(), toy_loss, SCHEDULE, tmp_path)
    with pytest.raises(ValueError, match="begun with another recipe or length"):
        training.train(toy(), toy_loss, SCHEDULE, tmp_path, identity="another")
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        training.train(toy(), toy_loss, SCHEDULE, tmp_path)
    nan = lambda model, generator, step: toy_loss(model, generator, step) * float("nan")  # noqa: E731
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        training.train(toy(), nan, SCHEDULE, tmp_path / "nan")


def test_schedule_rises_stays_and_falls():
    s = training.Schedule(steps=100, batch=1, lr=1.0, warmup=10, flat=0.5, final=0.1)
    assert s.lr_at(0) == pytest.approx(0.1)
    assert s.lr_at(20) == s.lr_at(49) == 1
    assert 0.1 < s.lr_at(75) < 1
    assert s.lr_at(99) == pytest.approx(0.1, abs=0.01)


def test_temperature_is_found_and_folded():
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (4000,), generator=g)
    honest = torch.randn(4000, 4, generator=g)
    labels = torch.multinomial(honest.softmax(1), 1, generator=g)[:, 0]
    assert classifiers.fit_temperature(honest * 2.5, labels) == pytest.approx(2.5, rel=0.1)
    head = torch.nn.Linear(6, 4)
    model = torch.nn.Sequential(head)
    model.get_classifier = lambda: head
    x = torch.randn(3, 6)
    before = model(x)
    classifiers.fold_temperature(model, 2.0)
    torch.testing.assert_close(model(x), before / 2)


def test_augmentation_is_flip_and_shift_only():
    x = torch.rand(64, 3, 64, 64)
    y = views.augment(x, torch.Generator().manual_seed(0))
    for a, b in zip(x, y, strict=True):
        inner = b[:, 4:-4, 4:-4]
        found = any(
            torch.equal(source_[:, i : i + 56, j : j + 56], inner)
            for source_ in (a, a.flip(-1))
            for i in range(9)
            for j in range(9)
        )
        assert found


def test_promotion_ships_registers_and_names_stale_tables(tmp_path, monkeypatch):
    for module in (zoo, recipes):
        monkeypatch.setattr(module, "MODELS", tmp_path)
    monkeypatch.setattr(zoo, "CHECKSUMS", tmp_path / "checksums.json")
    monkeypatch.setattr(recipes, "CANDIDATES_FOLDER", tmp_path / "candidates")
    monkeypatch.setattr(recipes, "RESULTS", tmp_path / "results")
    candidate = tmp_path / "candidates" / "classifier" / "resnet"
    with pytest.raises(FileNotFoundError, match="no finished candidate"):
        recipes.promote("classifier/resnet")
    candidate.mkdir(parents=True)
    save_file({"a": torch.zeros(3)}, candidate / "model.safetensors")
    save_file({"a": torch.zeros(3)}, candidate / "checkpoint.safetensors")
    (candidate / "card.json").write_text("{}", encoding="utf-8")
    assert recipes.promote("classifier/resnet") == []
    assert zoo.names() == ["classifier/resnet"]
    assert not (tmp_path / "classifier" / "resnet" / "checkpoint.safetensors").exists()
    assert not (tmp_path / "candidates" / "classifier" / ".resnet-new").exists()
    old = zoo.fingerprint("classifier/resnet")
    one = evaluation_records.Records(
        *(np.zeros((1, 2)) for _ in range(6)), nfe={}, about={"models": {"classifier": old}, "stream": {}}
    )
    evaluation_records.save(tmp_path / "results" / "test.npz", [one])
    save_file({"a": torch.ones(3)}, candidate / "model.safetensors")
    with monkeypatch.context() as patch:  # interrupted while copying: the shipped model stays whole
        patch.setattr(recipes.shutil, "copytree", lambda *a, **k: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            recipes.promote("classifier/resnet")
    assert zoo.fingerprint("classifier/resnet") == old
    assert torch.equal(load_file(tmp_path / "classifier/resnet/model.safetensors")["a"], torch.zeros(3))
    assert recipes.promote("classifier/resnet") == ["test"]
    assert zoo.fingerprint("classifier/resnet") != old


def test_unknown_recipe():
    with pytest.raises(ValueError, match="choose one of denoiser/dit"):
        recipes.train("denoiser/none")

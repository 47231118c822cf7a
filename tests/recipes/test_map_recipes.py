"""Recipes of notebook 04: the diffusion models that see a map, and the task networks that answer with one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from resuming import assert_resumes_to_the_bit
from tiny_maps import CONFIGS, DENSENET, MIT, RESNET, K, map_unet, task

from gentta_utils import recipes
from gentta_utils.common.resize import resized
from gentta_utils.models import zoo
from gentta_utils.models.map_unet import MapUNet, at_map
from gentta_utils.recipes import data, dense, map_quality
from gentta_utils.recipes import maps as recipe
from gentta_utils.recipes.dense import DenseRecipe
from gentta_utils.recipes.training import Schedule
from gentta_utils.world import maps, scenes
from gentta_utils.world.maps import MAP_CLASSES

N = 6
SHORT = Schedule(4, batch=4, lr=1e-3, warmup=1)
MAP_RECIPES = {
    name: replace(r, schedule=replace(r.schedule, steps=3, batch=4))
    for name, r in recipe.RECIPES.items()
    if "-" not in name
}
HF = dict(MIT) | dict(patch_sizes=[3] * 4)
TINY = {
    "segformer": DenseRecipe(
        "classes",
        "segformer",
        N,
        SHORT,
        HF | dict(strides=[2] * 4, num_labels=len(MAP_CLASSES), classifier_dropout_prob=0.0),
        warm=2,
    ),
    "pyramid": DenseRecipe("classes", "pyramid", N, SHORT, RESNET),
    "glpn": DenseRecipe("depth", "glpn", N, SHORT, HF | dict(strides=[4, 2, 2, 2])),
    "densedepth": DenseRecipe("depth", "densedepth", N, SHORT, DENSENET),
}


@pytest.fixture(scope="module")
def made():
    return maps.make(scenes.scene_ids(N, "train"))


@pytest.fixture(autouse=True)
def _few_scenes(made, monkeypatch):
    """What recipes load: a few scenes, rendered once."""
    images = (made.image * 255).round().byte()
    truth = {"classes": made.classes, "depth": made.depth.half()}
    monkeypatch.setattr(recipe, "dense_set", lambda n, target: (images, truth[target]))
    monkeypatch.setattr(dense, "dense_set", lambda n, target: (images, truth[target]))
    monkeypatch.setattr(dense, "training_set", lambda n: (images, torch.arange(N)))
    monkeypatch.setattr(dense, "NAMED", N)


def test_scenes_are_kept_in_files_and_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CACHE", tmp_path)
    monkeypatch.setattr(data, "SHARD", 3)
    images, classes = data.dense_set(5, "classes", size=16)
    assert len(list((tmp_path / "train").iterdir())) == 2
    made = maps.make(scenes.scene_ids(5, "train"), 16)
    assert torch.equal(images, (made.image * 255).round().byte())
    assert torch.equal(classes, made.classes)
    monkeypatch.setattr(maps, "make", None)  # nothing is rendered again
    again, depth = data.dense_set(4, "depth", size=16)
    assert torch.equal(again, images[:4])
    torch.testing.assert_close(depth.float(), made.depth[:4], rtol=1e-3, atol=0)


# --- diffusion models that see a map ---------------------------------------------------------------------------------


def test_every_model_has_a_recipe():
    names = {"maps/classes", "maps/depth", "segmentor/resnet", "segmentor/segformer", "depth/glpn", "depth/densenet"}
    assert names <= set(recipes.names())
    assert all(recipe.RECIPES[f"maps/{target}"].scenes == 60_000 for target in ("classes", "depth"))
    assert recipe.RECIPES["maps/classes"].channels == len(MAP_CLASSES) == 12
    assert recipe.RECIPES["maps/depth"].channels == 1


@torch.no_grad()
@pytest.mark.parametrize("name", MAP_RECIPES)
def test_step_0_is_the_unconditional_model_and_saving_folds_the_rate(name, tmp_path, made):
    spec = MAP_RECIPES[name]
    network, start = spec.build(), zoo.load(recipe.START, precision="fp32")
    x, t = torch.randn(2, 3, 64, 64), torch.tensor([100, 600])
    truth = at_map(spec.target, getattr(made, spec.target)[:2], spec.channels)
    spec.save(network, tmp_path / name)
    model = zoo.load(name, precision="fp32", folder=tmp_path)
    assert isinstance(model, MapUNet)
    assert model.target == spec.target
    torch.testing.assert_close(model(x, t, truth), start(x, t), rtol=0.03, atol=0.03)  # weights of 8 bits
    torch.nn.init.normal_(network.conv_in.weight[:, 12:])  # as after training
    spec.save(network, tmp_path / name)
    model = zoo.load(name, precision="fp32", folder=tmp_path)
    seen = torch.cat([F.pixel_unshuffle(x, 2), recipe.MAP_RATE * model.resample(truth)], 1)
    trained = F.pixel_shuffle(network(seen, t).sample, 2)
    torch.testing.assert_close(model(x, t, truth), trained, rtol=0.05, atol=0.05)
    assert not torch.allclose(model(x, t, truth), start(x, t), atol=0.1)


SPACES = {space: replace(recipe.RECIPES[f"maps/classes-{space}"], schedule=SHORT) for space in list(recipe.SPACES)[1:]}


@torch.no_grad()
@pytest.mark.parametrize("space", SPACES)
def test_other_ways_to_show_a_map_are_saved_as_they_were_trained(space, tmp_path, made):
    """What is denoised is what the loaded model encodes; its prediction is that of the network of the recipe."""
    spec, name = SPACES[space], f"maps/classes-{space}"
    network = spec.build()
    for name_of, value in network.named_parameters():  # so that the map counts
        if value.requires_grad and (not value.any() or "cond_embedding" in name_of):
            torch.nn.init.normal_(value, std=0.3)
    spec.save(network, tmp_path / name)
    model = zoo.load(name, precision="fp32", folder=tmp_path)
    channels, side, fold = recipe.SPACES[space]
    assert (model.target, model.classes) == ("classes", 12)
    x0, t, truth = spec.denoised(made.image * 2 - 1), torch.tensor([100, 600]), at_map("classes", made.classes[:2], 12)
    torch.testing.assert_close(model.encode(made.image), x0, rtol=0.02, atol=0.02)
    assert x0.shape[1] == channels
    seen = F.pixel_unshuffle(resized(truth, side), fold)
    expected = network(torch.cat([x0[:2], seen], 1), t, return_dict=False)[0]
    found, unseen = model(x0[:2], t, truth), model(x0[:2], t)
    assert (found - expected).norm() < 0.03 * expected.norm()  # weights of 8 bits
    assert (unseen - expected).norm() > 0.1 * expected.norm()
    assert spec.describe()["space"] == space


def test_a_fresh_control_net_changes_nothing_and_the_text_model_stays(made):
    spec, text = SPACES["control"], zoo.load("denoiser/text", precision="fp32")
    network, (x0, t) = spec.build(), (torch.randn(2, 8, 8, 8), torch.tensor([100, 600]))
    with torch.no_grad():
        seen = F.pixel_unshuffle(resized(at_map("classes", made.classes[:2], 12), 32), 4)
        torch.testing.assert_close(network(torch.cat([x0, seen], 1), t)[0], text(x0, t), rtol=1e-4, atol=1e-4)
    spec.make_loss()(network, torch.Generator().manual_seed(0), 0).backward()
    assert all(v.grad is None for v in network.unet.parameters())
    assert network.controlnet.controlnet_mid_block.weight.grad.abs().max() > 0


@pytest.mark.parametrize("space", ["latents", "control"])
def test_an_interrupted_training_in_another_space_ends_at_the_same_weights(space, tmp_path):
    assert_resumes_to_the_bit(SPACES[space], tmp_path)


@pytest.mark.parametrize("name", MAP_RECIPES)
def test_an_interrupted_training_ends_at_the_same_weights(name, tmp_path):
    assert_resumes_to_the_bit(MAP_RECIPES[name], tmp_path)


def test_the_loss_is_that_of_the_wrapped_model(made, monkeypatch):
    """On exact maps: MAP_RATE times the map into the bare network is the map into the model that is saved."""
    spec = replace(MAP_RECIPES["maps/classes"], soften=False)
    monkeypatch.setattr(recipe, "DROPPED", 0.0)
    network = spec.build()
    torch.nn.init.normal_(network.conv_in.weight[:, 12:], std=0.05)
    seen = []
    handle = network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    loss = spec.make_loss()(network, torch.Generator().manual_seed(0), 0)
    handle.remove()
    assert loss.isfinite()
    told = seen[0][:, 12:] / recipe.MAP_RATE
    torch.testing.assert_close(told.sum(1), torch.ones_like(told[:, 0]))
    candidates = resized(at_map("classes", torch.cat([made.classes, made.classes.flip(-1)]), 12), 32)
    apart = (told[:, None] - candidates[None]).abs().flatten(2).amax(2)  # (batch, 2N)
    assert (apart.amin(1) < 1e-6).all()  # each is the map of a scene, mirrored or not


@pytest.mark.parametrize("target", ["classes", "depth"])
def test_softened_maps_stay_maps_and_a_tenth_is_dropped(target, made):
    truth = getattr(made, target).repeat(200, 1, 1)
    g = torch.Generator().manual_seed(0)
    seen = recipe.conditions(truth, target, 32, g)
    exact = recipe.conditions(truth, target, 32, torch.Generator().manual_seed(1), soft=False)
    dropped = seen.flatten(1).abs().sum(1) == 0
    assert 0.07 < dropped.float().mean() < 0.13
    kept = seen[~dropped]
    if target == "classes":
        assert (kept >= 0).all()
        torch.testing.assert_close(kept.sum(1), torch.ones_like(kept[:, 0]))
        assert kept.amax(1).flatten(1).amin(1).min() > 1 / 12  # never uniform
    else:
        assert (kept >= -1).all()
        assert (kept <= 1).all()
    first = resized(at_map(target, made.classes[:1] if target == "classes" else made.depth[:1], 12), 32)
    first = recipe.scaled_depth(first) if target == "depth" else first
    unchanged = (seen[::N] - first).flatten(1).abs().amax(1) < 1e-5
    assert 0.1 < unchanged.float().mean() < 0.4  # .9 * .75 * .5 * .5 of the maps are exact
    assert ((exact[::N] - first).flatten(1).abs().amax(1) < 1e-5).float().mean() > 0.8


def test_edges_are_moved_by_two_pixels_at_most(made):
    moved = recipe.moved(made.classes.repeat(20, 1, 1), torch.Generator().manual_seed(0))
    truth = made.classes.repeat(20, 1, 1)
    changed = (moved != truth).flatten(1).any(1)
    assert 0.1 < changed.float().mean() < 0.4
    for y, z in zip(truth[changed], moved[changed], strict=True):
        shifts = [(a, b) for a in range(-2, 3) for b in range(-2, 3)]
        inner = z[4:-4, 4:-4]
        assert any(torch.equal(inner, y[4 + a : 60 + a, 4 + b : 60 + b]) for a, b in shifts)


# --- task networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TINY)
def test_a_task_network_is_trained_resumed_and_stored(kind, tmp_path):
    spec = TINY[kind]
    assert_resumes_to_the_bit(spec, tmp_path, at=3)
    network = spec.build().eval()
    name = f"{'depth' if spec.target == 'depth' else 'segmentor'}/tiny"
    spec.save(network, tmp_path / name)
    model = zoo.load(name, folder=tmp_path)
    assert model.target == spec.target
    assert model.classes == (1 if spec.target == "depth" else 12)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(model.normalise(x)))


def test_the_encoder_of_a_shipped_classifier_is_where_a_segmentor_starts():
    network = dense.RECIPES["segmentor/resnet"].build()
    shipped = zoo.load("classifier/resnet").network
    assert torch.equal(network.encoder.layer4[0].conv1.weight, shipped.layer4[0].conv1.weight)
    assert torch.equal(network.encoder.bn1.running_mean, shipped.bn1.running_mean)
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 12, 32, 32)


def test_published_kinds_answer_at_the_stated_size():
    for name, side in (("segmentor/segformer", 32), ("depth/glpn", 64), ("depth/densenet", 32)):
        network = dense.RECIPES[name].network().eval()
        with torch.no_grad():
            assert network(torch.zeros(1, 3, 64, 64)).shape[-1] == side, name


def test_the_first_steps_learn_class_labels_and_the_map_head_waits():
    spec = TINY["segformer"]
    network, loss_of = spec.build(), spec.make_loss()
    loss_of(network, torch.Generator().manual_seed(0), 0).backward()
    assert network.label.weight.grad.abs().sum() > 0
    assert all(v.grad is None for v in network.network.model.decode_head.parameters())
    network.zero_grad()
    loss_of(network, torch.Generator().manual_seed(0), 2).backward()
    assert network.label.weight.grad is None
    assert network.network.model.decode_head.classifier.weight.grad.abs().sum() > 0
    assert "encoder" not in dict(network.named_children())  # its weights are not kept twice


class Says(torch.nn.Module):
    """A network that has its answer ready."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer

    def reciprocal(self, x):
        return 10 / self.answer


def test_losses_are_least_at_the_truth(made):
    y = made.depth[:2]
    seen = torch.zeros(2, 3, 64, 64)
    silog = [float(dense.silog_loss(Says(v[:, None]), seen, y)) for v in (y, 1.1 * y, y.flip(-1))]
    assert silog[0] < 1e-3
    assert silog[0] < silog[1] < silog[2]
    half = F.interpolate(y[:, None], (32, 32), mode="area")
    losses = [float(dense.reciprocal_loss(Says(v), seen, y)) for v in (half, 1.1 * half, half.flip(-1))]
    assert losses[0] < 1e-5
    assert losses[0] < losses[1] < losses[2]
    truth = made.classes[:2]
    sure = [Says(10 * at_map("classes", v, 12)) for v in (truth, truth.flip(-1))]
    right, wrong = (float(dense.classes_loss(model, seen, truth)) for model in sure)
    assert right < 0.1 < wrong


def test_images_and_maps_are_cut_alike(made):
    flip, corner = torch.tensor([True, False, True, False, False, True]), [0, 9]
    both = torch.cat([made.image, made.depth[:, None]], 1)
    whole = dense.cut(both, flip, corner)
    assert torch.equal(whole[:, :3], dense.cut(made.image, flip, corner))
    assert torch.equal(whole[:, 3:], dense.cut(made.depth[:, None], flip, corner))
    assert torch.equal(whole[1, :, 5:, :60], both[1, :, :59, 4:])
    assert torch.equal(dense.cut(both, flip, [5, 5])[0], both[0].flip(-1))


# --- cards -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pyramid", "glpn"])
def test_cards_of_task_networks_hold_every_validation_corruption(kind):
    scores = dense.of_dense_model(task(kind, 12), n=4)
    assert set(scores) == {"clean", "speckle_noise", "gaussian_blur", "spatter", "saturate"}
    expected = {"mean_class_accuracy", "mean_iou"} if kind == "pyramid" else {"ssim", "absrel", "rmse", "delta", "dee"}
    assert all(set(row) == expected for row in scores.values())


@pytest.mark.parametrize("target", ["classes", "depth"])
def test_cards_of_map_models_say_how_they_read(target, monkeypatch):
    network = task("densedepth" if target == "depth" else "pyramid", 12)
    monkeypatch.setattr(zoo, "load", lambda name, folder: network)
    with pytest.raises(FileNotFoundError, match=r"train (depth|segmentor)/nothing"):
        map_quality.of_map_model(
            map_unet(1 if target == "depth" else 12),
            judged="depth/nothing" if target == "depth" else "segmentor/nothing",
        )
    monkeypatch.setattr(map_quality, "MODELS", recipe.MODELS.parent)
    monkeypatch.setitem(map_quality.JUDGED, target, "models")  # a folder that is there
    card = map_quality.of_map_model(map_unet(1 if target == "depth" else 12), 2, 2, windows=((100, 300), (300, 500)))
    wrong = {"source", "rescaled", "moved"} if target == "depth" else {"source", "swapped", "dilated"}
    assert set(card["clean"]) == set(card["spatter"]) == wrong
    assert all(len(row["read"]) == len(row["gap"]) == 2 for row in card["clean"].values())
    assert all(0 <= share <= 100 for row in card["clean"].values() for share in row["read"])


def test_wrong_maps_are_maps(made):
    images = made.image
    classes = map_quality.wrong_maps(made, "classes", task("pyramid", 12).requires_grad_(False), images)
    for p in classes.values():
        torch.testing.assert_close(p.sum(1), torch.ones(N, 64, 64))
    depth = map_quality.wrong_maps(made, "depth", task("densedepth").requires_grad_(False), images)
    assert all(v.shape == (N, 1, 64, 64) and (v > 0).all() for v in depth.values())
    assert CONFIGS["segformer"].num_labels == K


# --- who knows more --------------------------------------------------------------------------------------------------


def test_equal_information_is_as_many_maps():
    for name, other in (("segmentor/resnet", "maps/classes"), ("depth/densenet", "maps/depth")):
        informed, usual = dense.RECIPES[f"{name}-60000"], dense.RECIPES[name]
        assert informed.labels == recipe.RECIPES[other].scenes > usual.labels
        assert replace(informed, labels=usual.labels, schedule=usual.schedule) == usual
    assert recipe.RECIPES["maps/classes-1500"].scenes == dense.RECIPES["segmentor/resnet"].labels


def test_candidates_differ_in_what_is_compared():
    short, usual = recipe.RECIPES["maps/classes-short"], recipe.RECIPES["maps/classes"]
    assert short == replace(usual, schedule=replace(usual.schedule, steps=short.schedule.steps), scenes=short.scenes)
    assert recipe.RECIPES["maps/classes-exact"] == replace(short, soften=False)
    assert recipe.RECIPES["maps/classes-1500"] == replace(short, scenes=1500)
    for space, schedule in recipe.FRESH.items():
        assert recipe.RECIPES[f"maps/classes-{space}"] == replace(short, schedule=schedule, space=space)
        assert replace(schedule, steps=800, lr=short.schedule.lr, warmup=short.schedule.warmup) == short.schedule
    assert set(recipe.FRESH) == set(recipe.SPACES) - {"unshuffled"}
    long, averaged = recipe.RECIPES["maps/classes-long"], recipe.RECIPES["maps/classes-averaged"]
    assert long == replace(averaged, schedule=replace(averaged.schedule, steps=12_000), scenes=usual.scenes)
    assert recipe.RECIPES["maps/classes-long-exact"] == replace(long, soften=False)


def test_a_ceiling_learns_from_corrupted_images(monkeypatch):
    """Half of its batch: the loss is another one where the corrupted images are."""
    spec = replace(TINY["densedepth"], seen_as="corruptions")
    network, losses = spec.build(), []
    for other in (lambda x, seen_as: x[None], lambda x, seen_as: (255 - x)[None]):
        monkeypatch.setattr(dense, "other_views", other)
        losses.append(spec.make_loss()(network, torch.Generator().manual_seed(0), 0).item())
    assert losses[0] != losses[1]
    plain = TINY["densedepth"].make_loss()(network, torch.Generator().manual_seed(0), 0)
    assert torch.isfinite(plain)


def test_data_lies_where_batches_are_drawn(made):
    with torch.device("meta"):
        assert all(v.is_meta for v in data.at_default(made.image, made.classes))
    assert data.at_default(made.image)[0] is made.image

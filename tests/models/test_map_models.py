"""Models of maps: the U-Net that is told one, and the task networks that answer with one."""

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from safetensors.torch import save_file
from tiny_maps import CONFIGS, DENSENET, RESNET, TASKS, K, map_unet, small, task

from gentta_utils.common.validate import check_map
from gentta_utils.diffusion.process import alphas_cumprod_of, linear_betas
from gentta_utils.models import dense, zoo
from gentta_utils.models.copies import Copies, parameter_names
from gentta_utils.models.map_unet import MapUNet, one_hot_map, scaled_depth
from gentta_utils.recipes.training import halved
from gentta_utils.world.maps import FAR, NEAR

ABAR = alphas_cumprod_of(linear_betas())


def draws(n: int = 3):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 16, 16, generator=g), torch.randint(1000, (n,), generator=g)


# --- the map-conditioned U-Net ---------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_map_is_concatenated_to_the_unshuffled_image():
    network, (x, t) = small(K), draws()
    model = MapUNet(network, ABAR, 32, unshuffle=True)
    assert (model.classes, model.target, model.shape) == (K, "classes", (3, 16, 16))
    p = torch.rand(3, K, 8, 8).softmax(1)
    direct = network(torch.cat([F.pixel_unshuffle(x, 2), p], 1), t).sample
    assert torch.equal(model(x, t, p), F.pixel_shuffle(direct, 2))
    large = p.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(model(x, t, large), model(x, t, p))  # areas are averaged
    assert model.count == {"fwd": 9, "fwd+bwd": 0}


@torch.no_grad()
def test_no_map_is_a_map_of_zeros():
    network, (x, t) = small(K), draws()
    model = MapUNet(network, ABAR, 32, unshuffle=True)
    direct = network(torch.cat([F.pixel_unshuffle(x, 2), torch.zeros(3, K, 8, 8)], 1), t).sample
    assert torch.equal(model(x, t), F.pixel_shuffle(direct, 2))


def test_depth_is_scaled_by_bounds_that_are_the_same_for_all():
    model, (x, t) = map_unet(1), draws()
    assert model.target == "depth"
    depth = torch.full((3, 1, 8, 8), 5.0)
    assert not torch.allclose(model(x, t, depth), model(x, t, 1.2 * depth))  # an error of scale is seen
    torch.testing.assert_close(scaled_depth(torch.tensor([0.0, NEAR, FAR, 20.0])), torch.tensor([-1.0, -1, 1, 1]))


@pytest.mark.parametrize("maps", [1, K])
def test_gradients_reach_the_map(maps):
    model, (x, t) = map_unet(maps), draws()
    cond = torch.rand(3, maps, 32, 32).add(1).requires_grad_()
    p = cond if maps == 1 else cond.softmax(1)
    model(x, t, p).square().sum().backward()
    assert (cond.grad.flatten(1).abs().sum(1) > 0).all()


def test_bad_maps_are_refused():
    x, t = draws()
    good = torch.rand(3, K, 8, 8).softmax(1)
    for wrong in (good[:2], good[:, :3], good.mean((2, 3)), one_hot_map(good.argmax(1).byte(), K).byte()):
        with pytest.raises(ValueError, match="the map must be float"):
            check_map(wrong, 3, K)
    for maps, wrong, message in (
        (K, 2 * good, "sum to 1 at each pixel"),
        (K, good[:, :3], "the map must be float"),
        (1, torch.zeros(3, 1, 8, 8), "finite and above 0"),
        (1, torch.full((3, 1, 8, 8), float("nan")), "finite and above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            map_unet(maps)(x, t, wrong)
    with pytest.raises(ValueError, match="no room for a map"):
        MapUNet(small(0), ABAR)


def test_it_is_stored_and_loaded_as_the_zoo_does(tmp_path):
    network, (x, t) = small(12), draws()
    halved(network).save_pretrained(tmp_path / "maps/classes/unet", safe_serialization=True)
    DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear").save_pretrained(tmp_path / "maps/classes/scheduler")
    model = zoo.load("maps/classes", precision="fp32", folder=tmp_path)
    assert isinstance(model, MapUNet)
    assert (model.classes, model.image_size, model.shape) == (12, 64, (3, 16, 16))
    assert not any(v.requires_grad for v in model.parameters())
    expected = MapUNet(network.float(), ABAR, unshuffle=True)
    p = torch.rand(3, 12, 8, 8).softmax(1)
    torch.testing.assert_close(model(x, t, p), expected(x, t, p).detach())


# --- task networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TASKS)
def test_answers_are_maps_of_the_stated_shape(kind):
    model = task(kind)
    answer = model(torch.rand(2, 3, 32, 32))
    assert tuple(answer.shape[1:]) == model.answer
    assert model.target == TASKS[kind]
    assert model.classes == (1 if model.target == "depth" else K)
    assert answer.shape[-1] == (32 if kind == "glpn" else 16)
    if model.target == "depth":
        assert (answer >= NEAR).all()
        assert (answer <= FAR).all()
    with pytest.raises(ValueError, match="no subset of classes"):
        model.restrict((0, 1))


@pytest.mark.parametrize("kind", TASKS)
def test_copies_answer_as_the_network_and_each_has_its_own_gradient(kind):
    model, x = task(kind).requires_grad_(False), torch.rand(3, 3, 32, 32)
    for param_set in ("all", "head", "tower", "norm"):
        copies = Copies(model, param_set, 3)
        answer = copies(x)
        torch.testing.assert_close(answer.detach(), model(x), rtol=1e-4, atol=1e-5)
        answer[0].square().mean().backward()
        grads = [v.grad for v in copies.tensors() if v.grad is not None]
        assert sum(float(g[0].abs().sum()) for g in grads) > 0
        assert all((g[1:] == 0).all() for g in grads)  # images do not share a step
    head, tower = (set(parameter_names(model, name)) for name in ("head", "tower"))
    assert head | tower == {n for n, _ in model.named_parameters()}
    assert not head & tower
    assert not any("encoder" in n for n in head)


@pytest.mark.parametrize("kind", TASKS)
def test_a_free_map_is_what_logits_means_here(kind):
    model, x = task(kind), torch.rand(2, 3, 32, 32)
    copies = Copies(model, "logits", 2)
    (values,) = copies.tensors()
    assert values.shape == (2, *model.answer)
    assert torch.equal(copies(x).detach(), model(x).detach())
    copies(x).sum().backward()
    assert (values.grad == 1).all()


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_network_is_stored_and_loaded_as_the_zoo_does(kind, tmp_path):
    model = task(kind)
    network = halved(model.network)
    name = f"{'depth' if model.target == 'depth' else 'segmentor'}/tiny"
    folder = tmp_path / name
    if kind in CONFIGS:
        network.model.save_pretrained(folder, safe_serialization=True)
    else:
        folder.mkdir(parents=True)
        save_file(network.state_dict(), folder / dense.WEIGHTS)
        config = (DENSENET if kind == "densedepth" else RESNET | {"classes": K}) | {"head": kind, "width": 8}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded = zoo.load(name, folder=tmp_path)
    assert (loaded.target, loaded.classes, loaded.image_size, loaded.name) == (model.target, model.classes, 64, name)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model.network.float()(model.normalise(x)))

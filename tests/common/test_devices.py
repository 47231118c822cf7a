"""One function says what to compute in; every method runs on a device without float64."""

import copy

import pytest
import torch
from conftest import make_classifier, make_mae
from strict_device import HERE, Strict, StrictDevice, move
from tiny_maps import task

from gentta_utils.common import devices
from gentta_utils.common.devices import precision_on
from gentta_utils.course import doctor, gradcam
from gentta_utils.methods import METHODS
from gentta_utils.methods.base import Models
from gentta_utils.models import zoo
from gentta_utils.models.prompts import make_prompt

CPU = {"avx512_bf16": False, "amx_bf16": False}
SMALL = {  # settings that make each method do all that it can on few images of four classes
    "diffusion_tta": dict(lr=0.1, updates=2, pairs=4),
    "dusa": dict(top=1, extra=1),
    "diffusion_classifier": dict(pairs=4),
    "adapted_reader": dict(lr=0.1, updates=2, pairs=4),
}


# --- what to compute in ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "device, fast, shipped, published",
    [
        ("cpu", True, "bf16", "fp32"),
        ("cpu", False, "fp32", "fp32"),
        ("cuda", True, "bf16", "bf16"),
        ("cuda:1", False, "fp32", "fp16"),
        ("mps", False, "fp32", "fp32"),
        ("mps", True, "fp32", "fp32"),
        ("meta", True, "fp32", "fp32"),
    ],
)
def test_precision_follows_the_device(monkeypatch, device, fast, shipped, published):
    """Without such a device: what torch says of the processor and of the GPU is given."""
    monkeypatch.delenv("GENTTA_PRECISION", raising=False)
    for flag in CPU:
        monkeypatch.setattr("torch.cpu.get_capabilities", lambda flag=flag: CPU | {flag: fast})
        monkeypatch.setattr(
            "torch.cuda.is_bf16_supported", lambda including_emulation: fast and not including_emulation
        )
        assert precision_on(device) == shipped
        assert precision_on(device, published=True) == published
        if device in ("cpu", "mps"):  # without CUDA, torch warns of its autocast
            with devices.autocast(device):
                assert torch.is_autocast_enabled(device) == (shipped == "bf16")
    assert precision_on(device, "fp16") == "fp16"
    monkeypatch.setenv("GENTTA_PRECISION", "fp32")
    assert {precision_on(device), precision_on(device, published=True)} == {"fp32"}


def test_a_wrong_variable_is_one_sentence(monkeypatch):
    monkeypatch.setenv("GENTTA_PRECISION", "bf16")
    with pytest.raises(ValueError, match="GENTTA_PRECISION=bf16: set it to fp32"):
        precision_on("cpu")


def test_doctor_names_the_devices(monkeypatch):
    answers = {}
    for cuda in (False, True):
        for mps in (False, True):
            monkeypatch.setattr("torch.cuda.is_available", lambda cuda=cuda: cuda)
            monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
            monkeypatch.setattr("torch.backends.mps.is_available", lambda mps=mps: mps)
            answers[cuda, mps] = (*devices.available(), doctor._device()[1])
    assert answers[False, False] == ("cpu", "cpu (all that the scenes profile needs)")
    assert answers[True, False] == ("cpu", "cuda", "cpu and a card")
    assert answers[False, True] == ("cpu", "mps", "cpu and mps (Apple's graphics)")
    assert answers[True, True][:3] == ("cpu", "cuda", "mps")


# --- a device without float64 ----------------------------------------------------------------------------------------


def moved(models: Models) -> Models:
    return Models(*(None if net is None else move(net) for net in vars(copy.deepcopy(models)).values()))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_a_device_without_float64(tiny, images, name):
    """And says what it says on the CPU."""
    models = make_mae() if name == "ttt_mae" else Models(tiny.classifier, tiny.denoiser, make_classifier())
    module = METHODS[name]
    if module.NEEDS.maps:
        models, images = Models(task("pyramid")), torch.rand(2, 3, 32, 32)
    if module.NEEDS.clip:
        pytest.skip("a tokenizer of text: see the test below")
    how = (module.Settings(**SMALL[name]),) if name in SMALL else ()
    expected = module.configure(models, *how).adapt(images[:2], torch.arange(2))
    with StrictDevice():
        there = moved(models)
        assert there.classifier.mean.device.type == HERE
        out = module.configure(there, *how).adapt(images[:2], torch.arange(2))
        for found, wanted in ((out.logits, expected.logits), (out.before, expected.before), (out.loss, expected.loss)):
            assert type(found) is torch.Tensor  # records are on the CPU
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert out.nfe == expected.nfe


@pytest.mark.parametrize("name", [name for name, module in METHODS.items() if module.NEEDS.clip])
def test_methods_of_a_clip_run_on_a_device_without_float64(name):
    module, images, names = METHODS[name], torch.rand(2, 3, 64, 64), ["cube", "torus", "arch"]
    few = {} if name == "coop" else dict(views=3, rho_h=0.7) | ({"generated": 0} if name == "difftpt" else {})

    def output(clip):
        models = Models(clip.zero_shot(names, ["a photo of a {}."]), prompt=make_prompt(clip, names))
        return module.configure(models, module.Settings(**few)).adapt(images, torch.arange(2))

    expected = output(zoo.load("clip/small"))
    with StrictDevice():
        out = output(move(zoo.load("clip/small")))
        for found, wanted in ((out.logits, expected.logits), (out.before, expected.before), (out.loss, expected.loss)):
            assert type(found) is torch.Tensor
            torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_maps_are_compared_on_a_device_without_float64():
    a, b = torch.rand(2, 3, 8, 8)
    with StrictDevice():
        for compare in (gradcam.correlation, gradcam.overlap):
            torch.testing.assert_close(compare(Strict(a), Strict(b)), compare(a, b))


def test_the_strict_device_refuses():
    with StrictDevice():
        x = torch.rand(3).to(HERE)
        assert type(x) is type(x + 1) is type(torch.zeros(3, device=HERE)) is Strict
        assert type(x.cpu()) is torch.Tensor
        for attempt in (x.double, lambda: torch.zeros(3, dtype=torch.float64, device=HERE)):
            with pytest.raises(TypeError, match="has no float64"):
                attempt()
        with pytest.raises(RuntimeError, match="found one on the CPU"):
            x + torch.rand(3)
        assert x.cpu().double().dtype == torch.float64

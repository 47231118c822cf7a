"""The converter from OpenAI's ADM: a network of the original layout, written here, and what becomes of it agree."""

import math
import shutil

import fake_hub
import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from huggingface_hub import constants
from torch import nn

from gentta_utils.diffusion.process import alphas_cumprod_of, linear_betas
from gentta_utils.models import adm, hub, zoo
from gentta_utils.models.unet import PixelUNet


class Residual(nn.Module):
    """norm, SiLU, resize, conv; scale and shift by the embedding; norm, SiLU, conv; plus the resized input."""

    def __init__(self, inside: int, outside: int, embedding: int, resize: str = "", scales: bool = True):
        super().__init__()
        self.resize, self.scales = resize, scales
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * outside if scales else outside))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, outside), nn.SiLU(), nn.Dropout(0), nn.Conv2d(outside, outside, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def resized(self, x):
        if self.resize == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.resize == "up" else x

    def forward(self, x, embedding):
        h = self.in_layers[2](self.resized(self.in_layers[1](self.in_layers[0](x))))
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.out_layers[0](h) * (1 + scale) + shift
        for layer in self.out_layers[1:]:
            h = layer(h)
        return self.skip_connection(self.resized(x)) + h


class Attention(nn.Module):
    """Self-attention over all pixels; the channels of `qkv` are q, k, v of head 0, then of head 1 ..."""

    def __init__(self, channels: int, head: int):
        super().__init__()
        self.head = head
        self.norm, self.qkv = nn.GroupNorm(32, channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x, embedding):
        flat = x.flatten(2)
        out = []
        for q, k, v in (part.split(self.head, dim=1) for part in self.qkv(self.norm(flat)).split(3 * self.head, dim=1)):
            weights = (torch.einsum("bcq,bck->bqk", q, k) / math.sqrt(self.head)).softmax(-1)
            out.append(torch.einsum("bqk,bck->bcq", weights, v))
        return x + self.proj_out(torch.cat(out, dim=1)).view_as(x)


class Original(nn.Module):
    """The U-Net of ADM, with its names: a level halves the side, `attends` says at which levels there is attention."""

    def __init__(self, width=32, mult=(1, 2, 2), attends=(False, True, True), n=2, head=16, out=6, scales=True):
        super().__init__()
        self.width, levels, emb = width, range(len(mult)), 4 * width
        self.time_embed = nn.Sequential(nn.Linear(width, emb), nn.SiLU(), nn.Linear(emb, emb))
        residual = lambda i, o, resize="": Residual(i, o, emb, resize, scales)  # noqa: E731
        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(3, width, 3, padding=1)])])
        widths, now = [width], width
        for level in levels:
            for _ in range(n):
                block, now = [residual(now, width * mult[level])], width * mult[level]
                self.input_blocks.append(nn.ModuleList(block + [Attention(now, head)] * attends[level]))
                widths.append(now)
            if level < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([residual(now, now, "down")]))
                widths.append(now)
        self.middle_block = nn.ModuleList([residual(now, now), Attention(now, head), residual(now, now)])
        self.output_blocks = nn.ModuleList()
        for level in reversed(levels):
            for i in range(n + 1):
                block, now = [residual(now + widths.pop(), width * mult[level])], width * mult[level]
                block += [Attention(now, head)] * attends[level]
                block += [residual(now, now, "up")] if i == n and level else []
                self.output_blocks.append(nn.ModuleList(block))
        self.out = nn.Sequential(nn.GroupNorm(32, now), nn.SiLU(), nn.Conv2d(now, out, 3, padding=1))

    def forward(self, x, t):
        half = self.width // 2
        angles = t[:, None] * torch.exp(-math.log(10_000) * torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=1))
        kept = []
        for block in self.input_blocks:
            for layer in block:
                x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, embedding)
            kept.append(x)
        for layer in self.middle_block:
            x = layer(x, embedding)
        for block in self.output_blocks:
            x = torch.cat([x, kept.pop()], dim=1)
            for layer in block:
                x = layer(x, embedding)
        return self.out(x)


def original(**options) -> Original:
    torch.manual_seed(8)
    network = Original(**options).eval()
    for name, p in network.named_parameters():  # norms that are not the identity, and biases that are not 0
        if p.ndim == 1:
            nn.init.normal_(p, 1.0 if name.endswith("weight") else 0.0, 0.3)
    return network


SMALL = dict(image_size=16, head_channels=16)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mult": (1, 1, 2, 3), "attends": (False, False, True, True)},
        {"n": 1, "attends": (False, False, False)},
        {"head": 32, "out": 3, "mult": (1, 2), "attends": (False, True)},
    ],
)
@torch.no_grad()
def test_same_outputs(options):
    network = original(**options)
    n, head = options.get("n", 2), options.get("head", 16)
    config, state = adm.convert(network.state_dict(), 16, n, head)
    converted = UNet2DModel(**config).eval()
    converted.load_state_dict(state)
    x, t = torch.randn(3, 3, 16, 16), torch.tensor([0, 321, 999])
    expected = network(x, t)
    assert expected.std() > 0.1
    torch.testing.assert_close(converted(x, t).sample, expected, atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in converted.parameters()) == sum(p.numel() for p in network.parameters())


@torch.no_grad()
def test_the_outputs_depend_on_what_could_be_mistaken():
    """Heads of another width are another function: the comparison above would see it."""
    network = original(head=32)
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([321])
    for head, close in ((32, True), (16, False)):
        config, state = adm.convert(network.state_dict(), 16, head_channels=head)
        converted = UNet2DModel(**config).eval()
        converted.load_state_dict(state)
        assert torch.allclose(converted(x, t).sample, network(x, t), atol=1e-5) is close


def test_other_layouts_are_refused_in_one_sentence():
    state = original().state_dict()
    for change, names in (
        ({"label_emb.weight": torch.zeros(10, 128)}, "label_emb.weight"),
        ({"input_blocks.3.0.op.weight": torch.zeros(32, 32, 3, 3)}, "input_blocks.3.0.op.weight"),
    ):
        with pytest.raises(ValueError, match=f"'{names}' has no place") as error:
            adm.convert(state | change, **SMALL)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no ADM with 3 residual blocks per level"):
        adm.convert(state, layers_per_block=3)
    with pytest.raises(ValueError, match=r"no ADM with 2 .*input_blocks\.0\.0\.weight"):
        adm.convert({"conv.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="shift and no scale"):
        adm.convert(original(scales=False).state_dict(), **SMALL)
    with pytest.raises(ValueError, match="the first level has 64 channels"):
        adm.convert(original(mult=(2, 2)).state_dict(), **SMALL)
    with pytest.raises(ValueError, match="are not heads of 24"):
        adm.convert(state, head_channels=24)


PUBLISHED = dict(width=256, mult=(1, 1, 2, 2, 4, 4), attends=(False,) * 3 + (True,) * 3, head=64)


def test_the_published_size():
    """About 552 to 554 M parameters, as stated of the unconditional model for 256 px; names and shapes fit."""
    with torch.device("meta"):
        network = Original(**PUBLISHED)
        config, state = adm.convert(network.state_dict())
        converted = UNet2DModel(**config)
    converted.load_state_dict(state, assign=True)
    assert config["block_out_channels"] == (256, 256, 512, 512, 1024, 1024)
    assert config["out_channels"] == 6
    assert config["down_block_types"] == ("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3
    assert sum(p.numel() for p in converted.parameters()) == pytest.approx(553e6, abs=1.5e6)
    wrapped = PixelUNet(converted, alphas_cumprod_of(linear_betas()), 224)
    assert wrapped.shape == (3, 256, 256)
    assert wrapped.learned_variance
    x = torch.empty(1, 3, 256, 256, device="meta")
    eps_hat, v = wrapped.to("meta").with_variance(x, torch.zeros(1, dtype=torch.int64, device="meta"))
    assert eps_hat.shape == v.shape == x.shape


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A cache of the hub in which lies a checkpoint of the original layout that is small."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    adm.home().mkdir()
    torch.save(original().state_dict(), adm.home() / adm.CHECKPOINT)
    convert = adm.convert
    monkeypatch.setattr(adm, "convert", lambda state: convert(state, **SMALL))
    return adm.home()


@torch.no_grad()
def test_the_imagenet_profile_loads_it(folder):
    assert zoo.fingerprint("unconditional/unet", "imagenet") == "missing"
    model = zoo.load("unconditional/unet", "imagenet")
    assert isinstance(model, PixelUNet)
    assert model.image_size == 224
    assert not any(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model.alphas_cumprod.double(), alphas_cumprod_of(linear_betas()), atol=1e-6, rtol=1e-4)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([5, 600])
    torch.testing.assert_close(model(x, t), original()(x, t)[:, :3], atol=1e-5, rtol=1e-5)
    first = zoo.fingerprint("unconditional/unet", "imagenet")
    assert len(first) == 12
    (folder / adm.CHECKPOINT).unlink()  # safetensors alone are read from now on
    zoo.load("unconditional/unet", "imagenet")
    assert zoo.fingerprint("unconditional/unet", "imagenet") == first
    assert "ADM" in zoo.card("unconditional/unet", "imagenet")["recipe"]["architecture"]


def test_a_missing_or_damaged_checkpoint_is_one_sentence(folder):
    whole = (folder / adm.CHECKPOINT).read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    for left, says in ((whole[: len(whole) // 2], ""), (b"", "it is empty"), (pointer, "it is a pointer of Git LFS")):
        (folder / adm.CHECKPOINT).write_bytes(left)
        with pytest.raises(ValueError, match=rf"not a whole file of weights \([^\n]*{says}[^\n]*\): fetch it again$"):
            hub.load("unconditional/unet")
    torch.save([1], folder / adm.CHECKPOINT)
    with pytest.raises(ValueError, match=r"not a whole file of weights \(it holds a list\)"):
        hub.load("unconditional/unet")
    converted = adm.converted_folder() / "unet" / adm.WEIGHTS
    converted.parent.mkdir(parents=True)
    converted.write_bytes(pointer)
    with pytest.raises(ValueError, match=r"it is a pointer of Git LFS.*: delete .*, and it is made again"):
        hub.load("unconditional/unet")
    shutil.rmtree(adm.converted_folder())
    (folder / adm.CHECKPOINT).unlink()
    with pytest.raises(FileNotFoundError, match=f"put {adm.CHECKPOINT}, .* into {folder}") as error:
        hub.load("unconditional/unet")
    assert "\n" not in str(error.value)


@torch.no_grad()
def test_the_fake_hub_has_one(tmp_path, monkeypatch):
    fake_hub._adm(tmp_path / "openai" / "256x256_diffusion_uncond")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model = zoo.load("unconditional/unet", "imagenet", precision="fp32")
    x0 = model.encode(torch.rand(1, 3, 224, 224))
    assert x0.shape == (1, *model.shape) == (1, 3, 64, 64)
    assert model(x0, torch.tensor([9])).shape == x0.shape
    assert model.decode(x0).shape == (1, 3, 224, 224)


def test_computing_blocks_again_changes_no_gradient():
    config, state = adm.convert(original().state_dict(), **SMALL)
    grads = []
    for again in (False, True):
        network = UNet2DModel(**config)
        network.load_state_dict(state)
        if again:
            network.enable_gradient_checkpointing()
        model = PixelUNet(network, alphas_cumprod_of(linear_betas()), 16).requires_grad_(False)
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
        model(x, torch.tensor([300])).square().sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[1], grads[0])

"""Every loader of published weights against the network that the weights come from, written here from the papers.

The networks are random and small, in the original's layout; where the libraries' names differ, weights are carried over
as the hub's conversion does. `test_adm` does the same for ADM. What is not held against its original: the ViTs run as
timm runs them, with the erf form of GELU, where the JAX code that they were trained in has the tanh form.
"""

import json
import math

import fake_hub
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiTTransformer2DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import nn

from gentta_utils.models import dense, hub, zoo

CLOSE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture
def home(hub_home):
    return hub_home


@pytest.fixture
def at_hub(home, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    return home


@torch.no_grad()
def shaken(network: nn.Module, size: float = 0.1) -> dict:
    """Its state after every parameter and statistic was moved: norms that are the identity would hide mistakes."""
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not name.endswith(("mean_token", "attn_mask", "pos_embed.pos_embed")):
            noise = torch.randn(value.shape) * size
            value.copy_(value + (noise.abs() if name.endswith("running_var") else noise))
    return network.state_dict()


def part(state: dict, prefix: str) -> dict:
    return {name.removeprefix(f"{prefix}."): v for name, v in state.items() if name.startswith(f"{prefix}.")}


def count(state: dict, prefix: str) -> range:
    return range(len({name.removeprefix(f"{prefix}.").split(".")[0] for name in state if name.startswith(prefix)}))


def linear(s: dict, name: str, x):
    return F.linear(x, s[f"{name}.weight"], s.get(f"{name}.bias"))


def conv(s: dict, name: str, x, **how):
    return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), **how)


def layer_norm(s: dict, name: str, x, eps: float):
    return F.layer_norm(x, x.shape[-1:], s[f"{name}.weight"], s[f"{name}.bias"], eps)


def group_norm(s: dict, name: str, x, groups: int, eps: float):
    return F.group_norm(x, groups, s[f"{name}.weight"], s[f"{name}.bias"], eps)


def attend(q, k, v, heads: int, bias=0.0):
    """(B, L, C) each -> (B, L, C), head after head."""
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def quick_gelu(x):
    return x * (1.702 * x).sigmoid()


def sinusoids(t, width: int):
    """Cosines, then sines, of t at width / 2 frequencies 10,000^(-i / (width / 2)) (Vaswani et al., 2017, as ADM)."""
    angles = t[:, None].float() * torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


# --- DiT (Peebles and Xie, 2023) -------------------------------------------------------------------------------------


class DiTBlock(nn.Module):
    """Attention and MLP, each between shift and scale before and a gate after, from the condition (adaLN-zero)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x, c):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale1) + shift1
        x = x + gate1 * self.attn["proj"](attend(*self.attn["qkv"](h).chunk(3, dim=-1), self.heads))
        h = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale2) + shift2
        return x + gate2 * self.mlp["fc2"](F.gelu(self.mlp["fc1"](h), approximate="tanh"))


class DiT(nn.Module):
    """The original layout: one timestep MLP, one label table whose last row is the null class, one list of blocks."""

    def __init__(self, width=16, heads=2, depth=3, patch=8, channels=4, side=32, classes=1000):
        super().__init__()
        self.patch, self.grid = patch, side // patch
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        out = nn.Linear(width, patch**2 * 2 * channels)
        modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_layer = nn.ModuleDict({"linear": out, "adaLN_modulation": modulation})

    def positions(self, width: int):
        """(L, width): a quarter sines, a quarter cosines of the column, then the same of the row."""
        omega = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
        row, column = torch.meshgrid(*[torch.arange(self.grid, dtype=torch.float64)] * 2, indexing="ij")
        angles = [at.flatten()[:, None] * omega for at in (column, row)]
        return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()

    def forward(self, x, t, y):
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2)
        x = x + self.positions(x.shape[-1])
        c = self.t_embedder["mlp"](sinusoids(t, 256).to(x.dtype)) + self.y_embedder["embedding_table"](y)
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.final_layer["adaLN_modulation"](c)[:, None].chunk(2, dim=-1)
        x = self.final_layer["linear"](F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)
        x = x.unflatten(1, (self.grid, self.grid)).unflatten(-1, (self.patch, self.patch, -1))  # (B, h, w, p, q, C)
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def dit_in_the_librarys_names(state: dict) -> dict:
    """As the hub's conversion: each block gets a copy of the embedders, queries, keys and values are three layers."""
    out = {}
    for kind in ("weight", "bias"):
        out[f"pos_embed.proj.{kind}"] = state[f"x_embedder.proj.{kind}"]
        out[f"proj_out_1.{kind}"] = state[f"final_layer.adaLN_modulation.1.{kind}"]
        out[f"proj_out_2.{kind}"] = state[f"final_layer.linear.{kind}"]
        for i in count(state, "blocks"):
            old, new = f"blocks.{i}", f"transformer_blocks.{i}"
            emb = f"{new}.norm1.emb"
            for q, value in zip("qkv", state[f"{old}.attn.qkv.{kind}"].chunk(3), strict=True):
                out[f"{new}.attn1.to_{q}.{kind}"] = value
            for a, b in (
                (f"{new}.attn1.to_out.0", f"{old}.attn.proj"),
                (f"{new}.ff.net.0.proj", f"{old}.mlp.fc1"),
                (f"{new}.ff.net.2", f"{old}.mlp.fc2"),
                (f"{new}.norm1.linear", f"{old}.adaLN_modulation.1"),
                (f"{emb}.timestep_embedder.linear_1", "t_embedder.mlp.0"),
                (f"{emb}.timestep_embedder.linear_2", "t_embedder.mlp.2"),
            ):
                out[f"{a}.{kind}"] = state[f"{b}.{kind}"]
            out[f"{emb}.class_embedder.embedding_table.weight"] = state["y_embedder.embedding_table.weight"]
    return out


def random_dit() -> tuple[DiT, DiTTransformer2DModel]:
    """The original layout and the library's class with the same weights."""
    original, network = DiT().eval(), DiTTransformer2DModel(**fake_hub.DIT | dict(num_layers=3)).eval()
    missing, unexpected = network.load_state_dict(dit_in_the_librarys_names(shaken(original, 0.2)), strict=False)
    assert not unexpected
    assert set(missing) <= {"pos_embed.pos_embed"}  # fixed, not learnt
    return original, network


X, T, Y = (
    torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(2)),
    *torch.tensor([[0, 30, 500, 999], [3, 999, 0, 7]]),
)


@torch.no_grad()
def test_dit_is_the_original(tmp_path, monkeypatch):
    original, network = random_dit()

    def save(folder):
        network.save_pretrained(folder / "transformer")
        DDPMScheduler(beta_schedule="linear").save_pretrained(folder / "scheduler")

    dit, vae = hub.REPOSITORIES["denoiser/dit"]
    fake_hub.store(tmp_path, dit, save)
    fake_hub.store(tmp_path, vae, fake_hub._vae)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    expected, null = original(X, T, Y), original(X, T, torch.full_like(Y, 1000))
    assert expected.std() > 0.1
    for low_memory in (False, True):
        denoiser = zoo.load("denoiser/dit", "imagenet", low_memory=low_memory)
        torch.testing.assert_close(denoiser(X, T, F.one_hot(Y, 1000).float()), expected[:, :4], **CLOSE)
        torch.testing.assert_close(denoiser(X, T), null[:, :4], **CLOSE)


@torch.no_grad()
def test_neither_difference_of_the_librarys_dit_may_stay():
    """In float64, since epsilon alone moves outputs that are of size 1 by 1e-5."""
    original, network = (module.double() for module in random_dit())
    expected = original(X.double(), T, Y)
    error = lambda: (network(X.double(), T, Y).sample - expected).abs().max().item()  # noqa: E731
    assert error() > 0.1
    assert hub.as_published(network) is network
    right = error()
    assert right < 1e-6
    for block in network.transformer_blocks:
        block.norm3.eps = 1e-5
    assert error() > 10 * right
    hub.as_published(network)
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    assert error() > 0.1


def test_models_trained_here_keep_what_they_were_trained_with():
    for block in zoo.load("denoiser/dit", precision="fp32").network.transformer_blocks:
        assert block.norm1.emb.time_proj.downscale_freq_shift == 1
        assert block.norm3.eps == 1e-5


# --- the VAE of Stable Diffusion (Rombach et al., 2022) --------------------------------------------------------------


def vae_residual(s: dict, x, groups: int):
    h = conv(s, "conv1", F.silu(group_norm(s, "norm1", x, groups, 1e-6)), padding=1)
    h = conv(s, "conv2", F.silu(group_norm(s, "norm2", h, groups, 1e-6)), padding=1)
    return h + (conv(s, "conv_shortcut", x) if "conv_shortcut.weight" in s else x)


def vae_middle(s: dict, x, groups: int):
    """Residual block, attention of one head over all pixels, residual block."""
    x = vae_residual(part(s, "resnets.0"), x, groups)
    a = part(s, "attentions.0")
    flat = group_norm(a, "group_norm", x, groups, 1e-6).flatten(2).transpose(1, 2)
    out = linear(a, "to_out.0", attend(*(linear(a, f"to_{q}", flat) for q in "qkv"), 1))
    return vae_residual(part(s, "resnets.1"), x + out.transpose(1, 2).view_as(x), groups)


def vae_moments(state: dict, x, groups: int):
    """Mean and log variance (B, 2 C, h, w): levels that end in a convolution of stride 2, padded right and below."""
    s = part(state, "encoder")
    x = conv(s, "conv_in", x, padding=1)
    for i in count(s, "down_blocks"):
        block = part(s, f"down_blocks.{i}")
        for j in count(block, "resnets"):
            x = vae_residual(part(block, f"resnets.{j}"), x, groups)
        if "downsamplers.0.conv.weight" in block:
            x = conv(block, "downsamplers.0.conv", F.pad(x, (0, 1, 0, 1)), stride=2)
    x = F.silu(group_norm(s, "conv_norm_out", vae_middle(part(s, "mid_block"), x, groups), groups, 1e-6))
    return conv(state, "quant_conv", conv(s, "conv_out", x, padding=1))


def vae_decode(state: dict, z, groups: int):
    s = part(state, "decoder")
    x = conv(s, "conv_in", conv(state, "post_quant_conv", z), padding=1)
    x = vae_middle(part(s, "mid_block"), x, groups)
    for i in count(s, "up_blocks"):
        block = part(s, f"up_blocks.{i}")
        for j in count(block, "resnets"):
            x = vae_residual(part(block, f"resnets.{j}"), x, groups)
        if "upsamplers.0.conv.weight" in block:
            x = conv(block, "upsamplers.0.conv", F.interpolate(x, scale_factor=2, mode="nearest"), padding=1)
    return conv(s, "conv_out", F.silu(group_norm(s, "conv_norm_out", x, groups, 1e-6)), padding=1)


@torch.no_grad()
def test_the_vae_is_the_original(at_hub):
    denoiser = zoo.load("denoiser/dit", "imagenet")
    groups, state = fake_hub.VAE["norm_num_groups"], shaken(denoiser.vae)
    pixels = torch.rand(2, 3, 64, 64) * 2 - 1
    moments = vae_moments(state, pixels, groups)
    found = denoiser.vae.encode(pixels).latent_dist
    torch.testing.assert_close(torch.cat([found.mean, found.logvar], 1), moments.clamp(-30, 20), **CLOSE)
    assert moments.std() > 0.1
    z = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(denoiser.vae.decode(z).sample, vae_decode(state, z, groups), **CLOSE)


# --- Stable Diffusion's U-Net and text encoder -----------------------------------------------------------------------


def unet_residual(s: dict, x, emb, groups: int):
    h = conv(s, "conv1", F.silu(group_norm(s, "norm1", x, groups, 1e-5)), padding=1)
    h = h + linear(s, "time_emb_proj", F.silu(emb))[:, :, None, None]
    h = conv(s, "conv2", F.silu(group_norm(s, "norm2", h, groups, 1e-5)), padding=1)
    return h + (conv(s, "conv_shortcut", x) if "conv_shortcut.weight" in s else x)


def spatial_transformer(s: dict, x, states, heads: int, groups: int):
    """Self-attention, attention to the text's states and a gated MLP on the pixels, between two 1 x 1 convolutions."""
    B, _, H, W = x.shape
    h = conv(s, "proj_in", group_norm(s, "norm", x, groups, 1e-6)).flatten(2).transpose(1, 2)
    b = part(s, "transformer_blocks.0")
    for norm, name, other in (("norm1", "attn1", None), ("norm2", "attn2", states)):
        seen = layer_norm(b, norm, h, 1e-5)
        told = seen if other is None else other
        q, k, v = (linear(b, f"{name}.to_{q}", at) for q, at in zip("qkv", (seen, told, told), strict=True))
        h = h + linear(b, f"{name}.to_out.0", attend(q, k, v, heads))
    value, gate = linear(b, "ff.net.0.proj", layer_norm(b, "norm3", h, 1e-5)).chunk(2, dim=-1)
    h = h + linear(b, "ff.net.2", value * F.gelu(gate))
    return x + conv(s, "proj_out", h.transpose(1, 2).reshape(B, -1, H, W))


def sd_unet(state: dict, x, t, states, heads: int, groups: int):
    emb = linear(state, "time_embedding.linear_1", sinusoids(t, state["conv_in.weight"].shape[0]))
    emb = linear(state, "time_embedding.linear_2", F.silu(emb))

    def layers(s: dict, x, j: int):
        x = unet_residual(part(s, f"resnets.{j}"), x, emb, groups)
        a = part(s, f"attentions.{j}")
        return spatial_transformer(a, x, states, heads, groups) if a else x

    x = conv(state, "conv_in", x, padding=1)
    kept = [x]
    for i in count(state, "down_blocks"):
        s = part(state, f"down_blocks.{i}")
        for j in count(s, "resnets"):
            kept.append(x := layers(s, x, j))
        if "downsamplers.0.conv.weight" in s:
            kept.append(x := conv(s, "downsamplers.0.conv", x, stride=2, padding=1))
    middle = part(state, "mid_block")
    x = unet_residual(part(middle, "resnets.1"), layers(middle, x, 0), emb, groups)
    for i in count(state, "up_blocks"):
        s = part(state, f"up_blocks.{i}")
        for j in count(s, "resnets"):
            x = layers(s, torch.cat([x, kept.pop()], 1), j)
        if "upsamplers.0.conv.weight" in s:
            x = conv(s, "upsamplers.0.conv", F.interpolate(x, scale_factor=2, mode="nearest"), padding=1)
    return conv(state, "conv_out", F.silu(group_norm(state, "conv_norm_out", x, groups, 1e-5)), padding=1)


def clip_block(x, heads: int, norms: tuple, attention, mlp: tuple):
    """Pre-norm attention and MLP with the activation x sigmoid(1.702 x); `attention` gives q, k, v and the way out."""
    qkv, out = attention
    L = x.shape[1]
    mask = torch.full((L, L), -torch.inf).triu(1) if mlp[2] else torch.zeros(L, L)
    x = x + out(attend(*qkv(norms[0](x)), heads, mask))
    return x + mlp[1](quick_gelu(mlp[0](norms[1](x))))


def clip_text_states(s: dict, tokens, heads: int):
    """The last states (B, L, D) of CLIP's text tower, in the names of transformers: causal, norms of epsilon 1e-5."""
    x = s["embeddings.token_embedding.weight"][tokens] + s["embeddings.position_embedding.weight"][: tokens.shape[1]]
    for i in count(s, "encoder.layers"):
        b = part(s, f"encoder.layers.{i}")
        norms = tuple(lambda h, n=n, b=b: layer_norm(b, n, h, 1e-5) for n in ("layer_norm1", "layer_norm2"))
        qkv = lambda h, b=b: [linear(b, f"self_attn.{q}_proj", h) for q in "qkv"]  # noqa: E731
        out = lambda h, b=b: linear(b, "self_attn.out_proj", h)  # noqa: E731
        up, down = (lambda h, n=n, b=b: linear(b, f"mlp.{n}", h) for n in ("fc1", "fc2"))
        x = clip_block(x, heads, norms, (qkv, out), (up, down, True))
    return layer_norm(s, "final_layer_norm", x, 1e-5)


@torch.no_grad()
def test_a_stable_diffusion_is_the_original():
    """The shipped one, a pipeline of the published layout, read by the loader for any such pipeline."""
    model = zoo.load("denoiser/text", precision="fp32")
    unet, vae, text = model.network, model.vae, model.text_encoder
    x, t = torch.randn(3, *model.shape), torch.tensor([0, 321, 999])
    tokens = torch.randint(0, 600, (3, 24), generator=torch.Generator().manual_seed(1))
    states = clip_text_states(part(text.state_dict(), "text_model") or text.state_dict(), tokens, 4)
    torch.testing.assert_close(text(tokens)[0], states, **CLOSE)
    heads, groups = unet.config.attention_head_dim, unet.config.norm_num_groups
    expected = sd_unet(unet.state_dict(), x, t, states, heads, groups)
    torch.testing.assert_close(unet(x, t, states).sample, expected, **CLOSE)
    assert expected.std() > 0.1
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    moments = vae_moments(vae.state_dict(), pixels, vae.config.norm_num_groups)
    found = vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(found, moments.chunk(2, 1)[0], **CLOSE)
    torch.testing.assert_close(
        vae.decode(found).sample, vae_decode(vae.state_dict(), found, vae.config.norm_num_groups), **CLOSE
    )


@torch.no_grad()
def test_the_published_stable_diffusion_is_the_original(at_hub):
    """By the loader of the imagenet profile: the noise of a prompt, whose condition is the text tower's last states."""
    model = zoo.load("denoiser/text", "imagenet")
    for network in (model.network, model.text_encoder):
        shaken(network)
    prompts = ["a photo of a torus.", "", "fog on a red cube, far away"]
    model = model.for_prompts(prompts)
    tokens = model.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    text = model.text_encoder.state_dict()
    states = clip_text_states(part(text, "text_model") or text, tokens, fake_hub.TEXT["num_attention_heads"])
    torch.testing.assert_close(model.states, states, **CLOSE)
    x, t = torch.randn(3, *model.shape), torch.tensor([0, 321, 999])
    heads, groups = fake_hub.UNET["attention_head_dim"], fake_hub.UNET["norm_num_groups"]
    expected = sd_unet(model.network.state_dict(), x, t, states, heads, groups)
    torch.testing.assert_close(model(x, t, torch.eye(3)), expected, **CLOSE)
    assert expected.std() > 0.1
    null = sd_unet(model.network.state_dict(), x, t, states[1:2].expand(3, -1, -1), heads, groups)
    torch.testing.assert_close(model(x, t), null, **CLOSE)


# --- CLIP (Radford et al., 2021) -------------------------------------------------------------------------------------

CLIP = dict(
    embed_dim=8,
    quick_gelu=True,  # the activation of OpenAI's weights
    vision_cfg=dict(image_size=64, patch_size=16, layers=2, width=32, head_width=16),
    text_cfg=dict(context_length=77, vocab_size=49408, width=16, heads=2, layers=2),
)


def openai_block(s: dict, heads: int, causal: bool):
    """One residual block by the names of the original, whose attention has q, k and v in one matrix."""
    norms = tuple(lambda h, n=n: layer_norm(s, n, h, 1e-5) for n in ("ln_1", "ln_2"))
    qkv = lambda h: F.linear(h, s["attn.in_proj_weight"], s["attn.in_proj_bias"]).chunk(3, -1)  # noqa: E731
    out = lambda h: linear(s, "attn.out_proj", h)  # noqa: E731
    up, down = (lambda h, n=n: linear(s, f"mlp.{n}", h) for n in ("c_fc", "c_proj"))
    return lambda x: clip_block(x, heads, norms, (qkv, out), (up, down, causal))


def openai_image(state: dict, x, heads: int):
    s = part(state, "visual")
    x = conv(s, "conv1", x, stride=s["conv1.weight"].shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([s["class_embedding"].expand(len(x), 1, -1), x], 1) + s["positional_embedding"]
    x = layer_norm(s, "ln_pre", x, 1e-5)
    for i in count(s, "transformer.resblocks"):
        x = openai_block(part(s, f"transformer.resblocks.{i}"), heads, False)(x)
    return F.normalize(layer_norm(s, "ln_post", x[:, 0], 1e-5) @ s["proj"], dim=-1)


def openai_text(state: dict, tokens, heads: int):
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    for i in count(state, "transformer.resblocks"):
        x = openai_block(part(state, f"transformer.resblocks.{i}"), heads, True)(x)
    x = layer_norm(state, "ln_final", x, 1e-5)[torch.arange(len(x)), tokens.argmax(-1)]  # at the end of the text
    return F.normalize(x @ state["text_projection"], dim=-1)


@torch.no_grad()
@pytest.mark.parametrize("quick", [True, False])
def test_a_clip_of_openais_layout_is_the_original(tmp_path, quick):
    """The configuration says which activation the weights were trained with; with the other one it is no CLIP."""
    import open_clip
    from safetensors.torch import save_file

    network = open_clip.CLIP(**CLIP)
    state = shaken(network)
    preprocess = dict(size=[64, 64], mean=[0.48, 0.46, 0.41], std=[0.27, 0.26, 0.28], interpolation="bicubic")
    config = dict(model_cfg=CLIP | dict(quick_gelu=quick), preprocess_cfg=preprocess)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(
        {k: v.contiguous() for k, v in state.items() if k != "attn_mask"}, tmp_path / "open_clip_model.safetensors"
    )
    clip = zoo._load_clip("clip/vit", tmp_path)
    images, texts = torch.rand(3, 3, 64, 64), ["a photo of a torus.", "a drawing", "fog"]
    x = (images - clip.mean) / clip.std
    found = clip.encode_images(images), clip.encode_texts(texts)
    expected = openai_image(state, x, 2), openai_text(state, clip.tokenizer(texts), 2)
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-5) is quick


@torch.no_grad()
@pytest.mark.parametrize("said", [True, False])
def test_a_published_clip_is_the_original_whatever_its_configuration_says(tmp_path, monkeypatch, said):
    """The loader of the imagenet profile knows which activation OpenAI's weights have."""
    monkeypatch.setattr(fake_hub, "CLIP", fake_hub.CLIP | dict(quick_gelu=said))
    fake_hub.store(tmp_path, hub.REPOSITORIES["clip/small"][0], fake_hub._clip)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    clip = zoo.load("clip/small", "imagenet")
    state = shaken(clip.network)
    images, texts = torch.rand(3, 3, 224, 224), ["a photo of a torus.", "a drawing", "fog"]
    x = (images - clip.mean) / clip.std
    torch.testing.assert_close(clip.encode_images(images), openai_image(state, x, 2), **CLOSE)
    torch.testing.assert_close(clip.encode_texts(texts), openai_text(state, clip.tokenizer(texts), 2), **CLOSE)


# --- classifiers -----------------------------------------------------------------------------------------------------


def resnet(s: dict, x, norm):
    """He et al. (2016) with the stride in the 3 x 3 convolution; `norm(s, name, x)`. Basic blocks have no third one."""
    x = F.max_pool2d(F.relu(norm(s, "bn1", conv(s, "conv1", x, stride=2, padding=3))), 3, stride=2, padding=1)
    for stage in range(1, 5):
        for i in count(s, f"layer{stage}"):
            b, stride = part(s, f"layer{stage}.{i}"), 2 if stage > 1 and i == 0 else 1
            if "conv3.weight" in b:
                h = F.relu(norm(b, "bn1", conv(b, "conv1", x)))
                h = F.relu(norm(b, "bn2", conv(b, "conv2", h, stride=stride, padding=1)))
                h = norm(b, "bn3", conv(b, "conv3", h))
            else:
                h = F.relu(norm(b, "bn1", conv(b, "conv1", x, stride=stride, padding=1)))
                h = norm(b, "bn2", conv(b, "conv2", h, padding=1))
            if "downsample.0.weight" in b:
                x = norm(b, "downsample.1", conv(b, "downsample.0", x, stride=stride))
            x = F.relu(x + h)
    return linear(s, "fc", x.mean((2, 3)))


def batch_norm(s: dict, name: str, x):
    n = part(s, name)
    return F.batch_norm(x, n["running_mean"], n["running_var"], n["weight"], n["bias"], eps=1e-5)


def vit(s: dict, x, heads: int = 2):
    """Dosovitskiy et al. (2021): class token, learnt positions, pre-norm blocks, norms of epsilon 1e-6."""
    x = conv(s, "patch_embed.proj", x, stride=s["patch_embed.proj.weight"].shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([s["cls_token"].expand(len(x), -1, -1), x], 1) + s["pos_embed"]
    for i in count(s, "blocks"):
        b = part(s, f"blocks.{i}")
        q, k, v = linear(b, "attn.qkv", layer_norm(b, "norm1", x, 1e-6)).chunk(3, -1)
        x = x + linear(b, "attn.proj", attend(q, k, v, heads))
        x = x + linear(b, "mlp.fc2", F.gelu(linear(b, "mlp.fc1", layer_norm(b, "norm2", x, 1e-6))))
    return linear(s, "head", layer_norm(s, "norm", x, 1e-6)[:, 0])


def convnext(s: dict, x):
    """Liu et al. (2022): norms over channels of epsilon 1e-6, a scale of each channel before the sum."""
    across = lambda s, name, x: layer_norm(s, name, x.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)  # noqa: E731
    x = across(s, "stem.1", conv(s, "stem.0", x, stride=4))
    for stage in range(4):
        level = part(s, f"stages.{stage}")
        if stage:
            x = conv(level, "downsample.1", across(level, "downsample.0", x), stride=2)
        for i in count(level, "blocks"):
            b = part(level, f"blocks.{i}")
            h = conv(b, "conv_dw", x, padding=3, groups=x.shape[1]).permute(0, 2, 3, 1)
            h = linear(b, "mlp.fc2", F.gelu(linear(b, "mlp.fc1", layer_norm(b, "norm", h, 1e-6))))
            x = x + (b["gamma"] * h).permute(0, 3, 1, 2)
    return linear(s, "head.fc", layer_norm(s, "head.norm", x.mean((2, 3)), 1e-6))


def swin(s: dict, x, heads: int = 1, window: int = 7):
    """Liu et al. (2021): attention in windows with a bias by relative position; every other block shifts them."""
    x = conv(s, "patch_embed.proj", x, stride=4).permute(0, 2, 3, 1)  # (B, H, W, C)
    x = layer_norm(s, "patch_embed.norm", x, 1e-5)
    at = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
    apart = (at[:, :, None] - at[:, None] + window - 1).unbind()  # each (49, 49), from 0 to 12
    for stage in range(4):
        level = part(s, f"layers.{stage}")
        if stage:  # neighbours in the order (0, 0), (1, 0), (0, 1), (1, 1) of (row, column)
            near = [x[:, r::2, c::2] for c in (0, 1) for r in (0, 1)]
            x = linear(level, "downsample.reduction", layer_norm(level, "downsample.norm", torch.cat(near, -1), 1e-5))
        H = x.shape[1]
        for i in count(level, "blocks"):
            b = part(level, f"blocks.{i}")
            shift = window // 2 if i % 2 and window < H else 0
            table = b["attn.relative_position_bias_table"]
            bias = table[apart[0] * (2 * window - 1) + apart[1]].permute(2, 0, 1)  # (heads, 49, 49)
            cut = lambda v: v.unflatten(1, (-1, window)).unflatten(3, (-1, window)).transpose(2, 3)  # noqa: E731
            h = cut(layer_norm(b, "norm1", x, 1e-5).roll((-shift, -shift), (1, 2)))  # (B, h, w, 7, 7, C)
            q, k, v = linear(b, "attn.qkv", h.flatten(3, 4).flatten(0, 2)).chunk(3, -1)
            # after a shift the last windows hold pixels from both ends of the image: those must not see each other
            end = (torch.arange(H) >= H - shift).long() + (torch.arange(H) >= H - window).long() if shift else None
            mask = 0.0
            if shift:
                region = cut((3 * end[:, None] + end)[None, ..., None])[..., 0].flatten(3, 4).flatten(0, 2)  # (n, 49)
                mask = torch.where(region[:, None] == region[:, :, None], 0.0, -100.0)[:, None].repeat(len(x), 1, 1, 1)
            h = linear(b, "attn.proj", attend(q, k, v, heads, bias + mask))
            h = h.view(len(x), H // window, H // window, window, window, -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
            x = x + h.roll((shift, shift), (1, 2))
            x = x + linear(b, "mlp.fc2", F.gelu(linear(b, "mlp.fc1", layer_norm(b, "norm2", x, 1e-5))))
    return linear(s, "head.fc", layer_norm(s, "norm", x, 1e-5).mean((1, 2)))


ORIGINALS = {
    "classifier/resnet": lambda s, x: resnet(s, x, batch_norm),
    "classifier/resnet18": lambda s, x: resnet(s, x, batch_norm),
    "classifier/resnet-gn": lambda s, x: resnet(s, x, lambda s, n, x: group_norm(s, n, x, 32, 1e-5)),
    "classifier/vit": vit,
    "classifier/vit-b16": vit,
    "classifier/convnext": convnext,
    "classifier/convnext-base": convnext,
    "classifier/convnext-large": convnext,
    "classifier/swin": swin,
    "classifier/swin-base": swin,
}


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in hub.REPOSITORIES if name.startswith("classifier/")])
def test_a_classifier_is_the_original(at_hub, name):
    classifier = zoo.load(name, "imagenet")
    state, images = shaken(classifier.network), torch.rand(2, 3, 224, 224)
    expected = ORIGINALS[name](state, (images - classifier.mean) / classifier.std)
    found = classifier(images)
    assert expected.std() > 0.05
    assert not torch.allclose(found[0], found[1], atol=1e-3)
    torch.testing.assert_close(found, expected, **CLOSE)


# --- SegFormer (Xie et al., 2021) and GLPN (Kim et al., 2022) --------------------------------------------------------


def mix_transformer(s: dict, x, heads: list[int], strides: list[int], ratios: list[int]):
    """Four stages of patches that overlap, attention over keys and values of fewer places, and an MLP with a depthwise
    convolution within; norms of blocks and stages have epsilon 1e-6, all others 1e-5."""
    features = []
    for i, stride in enumerate(strides):
        kernel = s[f"patch_embeddings.{i}.proj.weight"].shape[-1]
        x = conv(s, f"patch_embeddings.{i}.proj", x, stride=stride, padding=kernel // 2)
        side = x.shape[-1]
        y = layer_norm(s, f"patch_embeddings.{i}.layer_norm", x.flatten(2).transpose(1, 2), 1e-5)  # (B, L, C)
        image = lambda v, side=side: v.transpose(1, 2).unflatten(2, (side, side))  # noqa: E731
        for j in count(s, f"block.{i}"):
            block = f"block.{i}.{j}"
            z = layer_norm(s, f"{block}.layer_norm_1", y, 1e-6)
            few = z
            if ratios[i] > 1:
                few = conv(s, f"{block}.attention.self.sr", image(z), stride=ratios[i]).flatten(2).transpose(1, 2)
                few = layer_norm(s, f"{block}.attention.self.layer_norm", few, 1e-5)
            q = linear(s, f"{block}.attention.self.query", z)
            k, v = (linear(s, f"{block}.attention.self.{name}", few) for name in ("key", "value"))
            y = y + linear(s, f"{block}.attention.output.dense", attend(q, k, v, heads[i]))
            z = linear(s, f"{block}.mlp.dense1", layer_norm(s, f"{block}.layer_norm_2", y, 1e-6))
            z = conv(s, f"{block}.mlp.dwconv.dwconv", image(z), padding=1, groups=z.shape[-1])
            y = y + linear(s, f"{block}.mlp.dense2", F.gelu(z.flatten(2).transpose(1, 2)))
        x = image(layer_norm(s, f"layer_norm.{i}", y, 1e-6))
        features.append(x)
    return features


def larger(x, side: int):
    return F.interpolate(x, (side, side), mode="bilinear", align_corners=False)


def segformer(s: dict, x, **encoder):
    """Each stage to one width and the first one's size, the last stage first in the sum of channels."""
    features = mix_transformer(part(s, "segformer.encoder"), x, **encoder)
    same = []
    for i, f in enumerate(features):
        tokens = linear(s, f"decode_head.linear_c.{i}.proj", f.flatten(2).transpose(1, 2))
        same.append(larger(tokens.transpose(1, 2).unflatten(2, f.shape[2:]), features[0].shape[-1]))
    fused = F.relu(
        batch_norm(s, "decode_head.batch_norm", conv(s, "decode_head.linear_fuse", torch.cat(same[::-1], 1)))
    )
    return conv(s, "decode_head.classifier", fused)


def glpn(s: dict, x, **encoder):
    """From the last stage up: a map of weights for each of the two, the stage's own features and those from below."""
    *skips, y = mix_transformer(part(s, "glpn.encoder"), x, **encoder)
    y = conv(s, "decoder.stages.0.convolution", y)
    y = larger(y, 2 * y.shape[-1])
    for i, skip in enumerate(reversed(skips), start=1):
        stage = f"decoder.stages.{i}"
        skip = conv(s, f"{stage}.convolution", skip) if f"{stage}.convolution.weight" in s else skip
        z = torch.cat([skip, y], 1)
        for layer in (1, 2):
            name = f"{stage}.fusion.convolutional_layer{layer}"
            z = F.relu(batch_norm(s, f"{name}.1", conv(s, f"{name}.0", z, padding=1)))
        weights = conv(s, f"{stage}.fusion.convolutional_layer3", z, padding=1).sigmoid()
        y = skip * weights[:, :1] + y * weights[:, 1:]
        y = larger(y, 2 * y.shape[-1])
    y = larger(y, 2 * y.shape[-1])
    y = conv(s, "head.head.2", F.relu(conv(s, "head.head.0", y, padding=1)), padding=1)
    return 10 * y.sigmoid()


@torch.no_grad()
@pytest.mark.parametrize("name, original", [("segmentor/segformer", segformer), ("depth/glpn", glpn)])
def test_a_task_network_of_maps_is_the_original(tmp_path, monkeypatch, name, original):
    """Weights under the names that they have on the hub. The features are small, so that an epsilon is seen."""
    (repository,) = hub.repositories(name)

    def save(folder):
        fake_hub._dense(folder, name)
        file = folder / "model.safetensors"
        state = load_file(file)
        for key, value in state.items():
            if value.is_floating_point():
                noise = 0.1 * torch.randn(value.shape)
                state[key] = value + (noise.abs() if key.endswith("running_var") else noise)
            if "patch_embeddings" in key and "layer_norm" in key:
                state[key] = state[key] * 0.02
        save_file(state, file, metadata={"format": "pt"})

    torch.manual_seed(3)
    fake_hub.store(tmp_path, repository, save)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / fake_hub.COMMIT
    state, model = load_file(folder / "model.safetensors"), zoo.load(name, "imagenet")
    images = torch.rand(1, 3, model.image_size, model.image_size)
    how = dict(heads=fake_hub.MIT["num_attention_heads"], strides=[4, 2, 2, 2], ratios=fake_hub.MIT["sr_ratios"])
    expected = original(state, model.normalise(images), **how)
    assert expected.std() > 0.01
    torch.testing.assert_close(model(images), expected, **CLOSE)
    monkeypatch.setattr(dense, "as_published", lambda network: network)  # as the library has it
    assert not torch.allclose(zoo.load(name, "imagenet")(images), expected, **CLOSE)

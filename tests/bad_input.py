"""Generated cases of bad input, each tried in this process: `python tests/bad_input.py` prints what went wrong as JSON.

Every public function gets arguments that are right, then each of them, one after the other, replaced by values of
another type, shape, range, by NaN, by nothing, by float ids. Right is one sentence of ours: an exception of a kind that
our docstrings name, raised by a line of this package. NaN and infinity may also come out as such. The process is
one without the type checker of the tests, which no user has.
"""

import inspect
import json
import math
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

import gentta_utils  # first: it makes torchvision importable
from gentta_utils.common.paths import ROOT
from gentta_utils.common.randomness import generator, numpy_generator
from gentta_utils.common.text import as_table
from gentta_utils.course.display import headline
from gentta_utils.course.profiles import profile
from gentta_utils.course.trials import Wording
from gentta_utils.course.trials import models as shipped
from gentta_utils.diffusion import (
    entropy,
    error_table,
    feedback,
    guidance,
    pairs,
    process,
    reverse,
    sampling,
    synthesis,
)
from gentta_utils.diffusion.mixture import GaussianMixture
from gentta_utils.evaluation import evaluate, statistics
from gentta_utils.evaluation.records import Records
from gentta_utils.methods import METHODS
from gentta_utils.methods.base import Models
from gentta_utils.models import zoo
from gentta_utils.models.classifier import Classifier
from gentta_utils.streams import stream as streams
from gentta_utils.streams.folders import FolderSpec
from gentta_utils.streams.maps import MapSpec
from gentta_utils.streams.open_vocabulary import PhotoSpec
from gentta_utils.streams.photo_maps import PhotoMapSpec
from gentta_utils.streams.photos import CropSpec
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Stream
from gentta_utils.world import corruptions, renditions, scenes, shifts, views
from gentta_utils.world.watermark import watermark

OURS = (ValueError, FileNotFoundError, FloatingPointError, NotImplementedError)
S, K, B = 16, 4, 2

torch.manual_seed(0)
abar = process.alphas_cumprod_of(process.linear_betas())
toy = GaussianMixture(torch.rand(K, 3, S, S))
network = nn.Sequential(
    nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, K)
)
models = Models(Classifier(network.eval(), (0.5,) * 3, (0.5,) * 3, S, K, "toy"), toy)
images, ids, labels = torch.rand(B, 3, S, S), torch.tensor([3, 7]), torch.tensor([0, 1])
x, t = torch.rand(B, 3, S, S), torch.tensor([10, 500])
logits, p = torch.randn(B, K), torch.full((B, K), 1 / K)
small = Stream(images, labels, ids, {"shift": "fog", "severity": 5, "split": "test"})
record = Records(
    id=ids.numpy(),
    label=labels.numpy(),
    before=logits.numpy(),
    after=logits.numpy(),
    loss=np.zeros((B, 0), np.float32),
    seconds=np.zeros(B, np.float32),
    nfe={},
    about={"method": "source", "label": "a", "stream": small.about, "select": "none"}
    | {"protocol": {"order": "iid", "reset": "per_image", "predict": "after", "batch": 2, "device": "cpu"}},
)
how = reverse.Settings(start=100, steps=2)

# function -> arguments that are right; those that are left out are not tried
RIGHT = {
    generator: dict(seed=0, image_id=3, purpose="a", step=0),
    numpy_generator: dict(seed=0, image_id=3, purpose="a", step=0),
    as_table: dict(rows=[{"a": 1}]),
    headline: dict(a=1.0),
    entropy.entropy: dict(logits=logits),
    entropy.marginal_entropy: dict(logits=logits),
    error_table.plausible: dict(logits=logits, k=2),
    error_table.evenly: dict(n=2, N=4),
    error_table.error_table: dict(
        denoiser=toy,
        images=images,
        ids=ids,
        pairs=2,
        window=(100, 500),
        timesteps="even",
        noise="fresh",
        seed=0,
        chunk=2,
        loss="l2",
    ),
    feedback.probabilities: dict(logits=logits, temperature=2.0),
    feedback.condition_gradient: dict(
        denoiser=toy, x0=x, p=p, t=t[:, None], eps=x[:, None], mixing="embedding", micro_batch=4
    ),
    guidance.bicubic_low_pass: dict(images=images, factor=2, pad="edge"),
    pairs.draw_pairs: dict(
        ids=ids, n=2, shape=(3, 4, 4), window=(100, 500), timesteps="iid", noise="fresh", seed=0, step=0
    ),
    process.linear_betas: dict(T=10, start=1e-4, end=0.02),
    process.add_noise: dict(x0=x, t=t, eps=x, alphas_cumprod=abar),
    process.eps_to_x0: dict(eps=x, x_t=x, t=t, alphas_cumprod=abar),
    process.to_eps: dict(output=x, x_t=x, t=t, alphas_cumprod=abar, prediction_type="sample"),
    process.eps_error: dict(eps_hat=x, eps=x),
    process.diffusion_loss: dict(denoiser=toy, x0=x, t=t, eps=x, cond=p, alphas_cumprod=abar),
    reverse.noise_for: dict(ids=ids, shape=(3, 4, 4), s=how, purpose="a", t=3),
    sampling.respaced: dict(n=3, T=10),
    sampling.previous: dict(timesteps=t, t=500),
    sampling.predicted_x0: dict(x_t=x, eps_hat=x, abar=abar[5], clip=True),
    sampling.ddim_step: dict(x_t=x, eps_hat=x, t=10, t_prev=-1, alphas_cumprod=abar, eta=0.0, clip=True),
    sampling.ddpm_step: dict(x_t=x, eps_hat=x, t=10, t_prev=-1, alphas_cumprod=abar, noise=x, clip=True),
    sampling.sample: dict(
        denoiser=toy, x_t=x, timesteps=t, cond=p, alphas_cumprod=abar, eta=0.5, clip=True, ids=ids, seed=0
    ),
    synthesis.synthesize: dict(denoiser=toy, labels=labels, ids=ids, settings=synthesis.Synthesis(steps=2)),
    views.low_pass: dict(images=images, factor=2),
    views.jitter: dict(images=images, ids=ids, view=0, seed=0),
    views.view_of: dict(images=images, view="low"),
    watermark: dict(images=torch.rand(B, 3, 64, 64)),
    corruptions.corrupt: dict(images=torch.rand(B, 3, 64, 64), name="brightness", severity=3, ids=ids, seed=0),
    shifts.shifted: dict(images=torch.rand(B, 3, 64, 64), shift="brightness", severity=3, ids=ids, seed=0),
    scenes.make: dict(n=1, split="test", start=0, size=16, n_objects=1, dense=False),
    renditions.make: dict(n=1, shift="sketch", split="test", start=0, size=16, dense=False),
    SceneSpec: dict(n=1, shift="fog", severity=3, split="test", start=0, seed=0, labels="category"),
    FolderSpec: dict(
        dataset="imagenet", root="none", n=1, per_class=1, shift="fog", severity=3, size=224, resize=256, seed=0
    ),
    MapSpec: dict(n=1, shift="fog", severity=3, split="test", start=0, seed=0, target="depth"),
    CropSpec: dict(crops=1, shift="fog", severity=3, seed=0),
    PhotoMapSpec: dict(dataset="nyu", root="none", n=1, shift="fog", severity=3, seed=0),
    PhotoSpec: dict(dataset="pets", root="none", n=1, shift="fog", severity=3, seed=0),
    Stream: dict(images=images, labels=labels, ids=ids),
    streams.stream: dict(spec=SceneSpec(1)),
    streams.iid: dict(stream=small, seed=0),
    streams.correlated: dict(stream=small),
    streams.mixed: dict(streams=[small, small]),
    streams.gradual: dict(streams=[small]),
    statistics.paired_interval: dict(after=np.ones(3), before=np.zeros(3), scene=np.arange(3), draws=10, seed=0),
    statistics.gain: dict(runs=[record]),
    statistics.accuracy_interval: dict(runs=[record]),
    statistics.summary: dict(runs=[record]),
    statistics.protocol_line: dict(runs=[record]),
    GaussianMixture: dict(means=torch.rand(K, 3, S, S), std=0.3),
    zoo.load: dict(name="classifier/resnet", profile="scenes", device="cpu", precision="auto"),
    zoo.card: dict(name="classifier/resnet", profile="scenes"),
    zoo.fingerprint: dict(name="classifier/resnet", profile="scenes"),
    profile: dict(name="scenes", data_root="data", device="cpu", seed=0),
    evaluate.run: dict(method=METHODS["source"].configure(models), stream=small, reset="per_image", batch=2),
}
# what is right although it looks wrong: any text; negative seeds; None; and of a function alone ...
OPEN = {"purpose", "root", "data_root"}
MET: list[str] = []  # methods whose cases were tried, with the models
NEGATIVE = {"seed", "step", "view", "image_id", "t"}
NONE = {"ids", "cond", "n", "per_class", "settings", "s"}
SINGLE = {"shape", "double", "number"}  # one tensor, of which every size is right
FILTER = {"double", "number", "channels", "range", "empty"}  # linear, so whatever the range of the images
ALSO_RIGHT = {
    ("headline", "a"): {"text", "range", "nan", "bool"},
    ("entropy", "logits"): SINGLE,
    ("marginal_entropy", "logits"): SINGLE,
    ("plausible", "logits"): {"number", "nan"},
    ("probabilities", "logits"): {"number"},
    ("bicubic_low_pass", "images"): FILTER,
    ("low_pass", "images"): FILTER,
    ("view_of", "images"): FILTER,
    ("error_table", "images"): {"range", "double", "nan"},  # latents are no pixels
    ("jitter", "images"): {"double", "range", "nan"},  # a guess of a denoiser may leave [0, 1]
    ("watermark", "images"): {"number"},
    ("draw_pairs", "ids"): {"number"},
    ("noise_for", "ids"): {"number"},
    ("draw_pairs", "shape"): {"other tuple"},
    ("noise_for", "shape"): {"other tuple"},
    ("previous", "timesteps"): {"number", "range"},
    ("sample", "timesteps"): {"number"},
    ("ddpm_step", "noise"): {"nan"},  # on the way to the clean image none is added
    ("predicted_x0", "abar"): {"shape", "nan"},
    ("sample", "x_t"): {"shape"},  # the toy denoiser takes whatever broadcasts
    ("GaussianMixture", "means"): {"number", "nan"},
    ("Stream", "images"): {"nan", "channels", "range", "double", "dtype of files"},  # `adapt` looks at the pixels
    ("Stream", "labels"): {"range"},  # `run` knows the classes
}
ALSO_RIGHT |= {(name, "alphas_cumprod"): {"number"} for name in ("add_noise", "eps_to_x0", "to_eps", "diffusion_loss")}
ALSO_RIGHT |= {(name, "alphas_cumprod"): {"number"} for name in ("ddim_step", "ddpm_step", "sample")}


def wrong_values(name: str, value) -> list[tuple[str, object]]:
    """Values of other types, shapes and ranges than this one, each with its kind."""
    strange = [("type", v) for v in (object(), {"a": 1}, [object()], b"x", 1j)]
    if isinstance(value, torch.Tensor):
        found = [("type", v) for v in (value.numpy(), value.tolist(), "x", 3)]
        found += [("dtype", value.bool() if value.is_floating_point() else value.float())]
        if value.ndim:
            found += [("shape", value[..., None]), ("number", torch.cat([value, value])), ("number", value[:1])]
            found += [("shape", value[0])]
        if value.is_floating_point():
            found += [("nan", value * math.nan)]
        if name in ("t", "timesteps", "labels"):
            found += [("range", value - 10_000), ("range", value + 10_000)]
        if name == "images":
            found += [("empty", value[:0]), ("double", value.double()), ("range", value + 3), ("nan", value * math.inf)]
            found += [("channels", value[:, :1]), ("dtype of files", (value * 255).byte())]
        return found + strange
    if isinstance(value, bool):
        return [("type", "True"), ("type", 2), ("none", None), *strange]
    if isinstance(value, int):
        found = [("type", v) for v in (2.5, float(value), "3", math.nan, np.float64(2), torch.tensor(2.0))]
        return [*found, ("type", True), ("negative", -(10**9)), *strange]
    if isinstance(value, float):
        found = [("text", "0.5"), ("nan", math.nan), ("nan", math.inf), ("range", -5.0), ("bool", True)]
        return [*found, ("type", torch.tensor([0.5, 0.5])), *strange]
    if isinstance(value, str):
        return [("range", "none of them"), ("empty", ""), ("type", 3), ("none", None), ("type", ("a",)), *strange]
    if isinstance(value, tuple):
        found = [("other tuple", v) for v in ((), (1,), (500, 100))]
        return [*found, ("range", (-5, 5)), ("type", (0.5, 7.5)), ("type", "ab"), ("type", 3), *strange]
    if isinstance(value, np.ndarray):
        found = [("shape", value[:0]), ("shape", value[:, None]), ("shape", value[:2]), ("nan", np.full(3, math.nan))]
        return [*found, ("type", "x"), ("type", 3), *strange]
    if isinstance(value, list):
        return [("empty", []), ("type", ["x"]), ("type", [3]), ("type", "x"), ("type", 3), *strange]
    return [("type", "x"), ("type", 3), *strange]


def is_broken(result) -> bool:
    """Whether NaN or infinity stands in it, so that nobody takes it for a number."""
    if isinstance(result, tuple):
        return all(map(is_broken, result))
    return isinstance(result, torch.Tensor) and result.is_floating_point() and not bool(result.isfinite().all())


def fault(call, value) -> str | None:
    """What is wrong with how a wrong value was met; None if it was refused as it should be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = call()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if not isinstance(error, OURS) or not Path(where).is_relative_to(ROOT / "gentta_utils"):
            return f"raw {type(error).__name__}: {str(error)[:100]!r} from {Path(where).name}"
        return "more than a sentence" if "\n" in str(error).strip() or not str(error) else None
    return None if is_broken(value) and is_broken(result) else "accepted"


def shown(value) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    return repr(value)[:40]


def is_right(function, name: str, kind: str) -> bool:
    """Whether a value of this kind is right here after all."""
    if name in OPEN or (kind == "negative" and name in NEGATIVE) or (kind == "none" and name in NONE):
        return True
    return kind in ALSO_RIGHT.get((function.__qualname__, name), ())


def worlds() -> list[tuple[str, Models, torch.Tensor]]:
    """Models to configure methods with, each with a name and images of their size: a toy, a CLIP, a masked autoencoder.

    The last two are asked beside a toy denoiser: what is wrong is refused before it would be needed."""
    large, toys = torch.rand(B, 3, 64, 64), GaussianMixture(torch.rand(10, 3, 64, 64))
    clip = replace(shipped("clip/small", None, wording=Wording()), denoiser=toys)
    return [("toy", models, images), ("clip", clip, large), ("mae", Models(zoo.load("classifier/mae"), toys), large)]


def of_methods(world: str, of: Models, photos: torch.Tensor) -> tuple[list, int]:
    """What went wrong with every method that these models are enough for, and how many cases were tried."""
    tried, wrong, right = 0, [], dict(images=photos, ids=ids)
    for method, module in METHODS.items():
        more = [lambda images, ids: images[:, None].expand(-1, 2, -1, -1, -1)] if method == "difftpt" else []
        try:
            settings = module.Settings(**({"lr": 0.1} if method == "diffusion_tta" else {}))
            configured = module.configure(of, settings, *more)
        except (ValueError, TypeError):  # it needs other models
            continue
        for name, value in right.items():
            for _, other in wrong_values(name, value):
                tried += 1
                if found := fault(lambda: configured.adapt(**right | {name: other}), other):
                    wrong.append([f"{method}.adapt ({world})", name, shown(other), found])
        for other in ("x", 3, object(), {"a": 1}):
            for arguments in ((other, settings, *more), (of, other, *more)):
                tried += 1
                if found := fault(lambda: module.configure(*arguments), other):
                    wrong.append([f"{method}.configure ({world})", "", shown(other), found])
        MET.append(f"{method} {world}")
    return wrong, tried


def main() -> None:
    tried, wrong = 0, []
    for function, right in RIGHT.items():
        call = function
        if function is Stream:
            call = lambda **k: Stream(**k, about={})  # noqa: E731
        try:
            call(**right)
        except Exception as error:
            wrong.append([function.__qualname__, "right arguments", "", f"{type(error).__name__}: {error}"])
            continue
        for name, value in right.items():
            for kind, other in wrong_values(name, value):
                if is_right(function, name, kind):
                    continue
                tried += 1
                if found := fault(lambda: call(**right | {name: other}), other):
                    wrong.append([function.__qualname__, name, shown(other), found])
    for name, of, photos in worlds():
        some, all_tried = of_methods(name, of, photos)
        wrong, tried = wrong + some, tried + all_tried
    public = {getattr(gentta_utils, name) for name in gentta_utils.__all__ if callable(getattr(gentta_utils, name))}
    left = sorted(f.__qualname__ for f in public - set(RIGHT) if inspect.isroutine(f))
    print("\n" + json.dumps({"tried": tried, "wrong": wrong, "left": left, "met": MET}))


if __name__ == "__main__":
    main()

"""Where feedback on maps comes from and where it ends: wrong pixels whose gradient points to the truth, what is
repaired near edges and inside, objects whose class is changed as a whole.

Kept with each run's scores, in the place of the loss, as counts per image, so that any set of them can be pooled.
"""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...diffusion.feedback import condition_gradient, probabilities
from ...diffusion.pairs import draw_pairs
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.tables import Job
from ...methods import diffusion_tta
from ...methods.base import Models, Output
from ...methods.feedback import told
from ...models.dense import enlarged
from ...models.map_unet import at_map
from ...streams.maps import MapSpec
from ...streams.stream import Stream, stream
from ...world.maps import FAR, NEAR, STUFF
from ..trials import models
from .rows import MAP_MODEL, map_job

NEAR_EDGE = 2  # pixels of the image
OFF = 0.1  # relative error of depth from which a pixel counts as wrong
LEAST = 20  # pixels that an object has at least, to be counted
SMALL = 150  # pixels: an object below that is a small one
QUANTITIES = (
    "wrong", "pointing to the truth",  # wrong pixels of the answer, before anything is adapted
    "energy in ten thousandths near edges",  # of the gradient with respect to the answer; edges of the truth
    "edge in ten thousandths",  # how much of the image that is
    "wrong near edges", "wrong inside", "repaired near edges", "repaired inside",
    "right near edges", "right inside", "broken near edges", "broken inside",
    "objects wrong", "objects relabelled", "objects right", "objects broken",
    "small", "small right before", "small right after",
)  # fmt: skip


def where_job(network: str, spec: MapSpec, settings: diffusion_tta.Settings, label: str, at_once: int = 12) -> Job:
    """One run of Diffusion-TTA, whose records hold `QUANTITIES` in the place of the loss."""
    about, _ = map_job("diffusion_tta", settings, network, spec, label, batch=at_once)
    about |= {"looked": "where"}

    def work() -> Records:
        used, s, seen = models(network, MAP_MODEL[spec.target]), stream(spec), []
        r = run(diffusion_tta.configure(used, settings), s, about=about, batch=at_once, seen=seen)
        rows = torch.arange(len(s)).split(at_once)
        found = [quantities(used, settings, s.rows(i), out) for i, out in zip(rows, seen, strict=True)]
        return replace(r, loss=torch.cat(found).float().numpy())

    return about, work


def quantities(used: Models, settings: diffusion_tta.Settings, part: Stream, out: Output) -> Tensor:
    """`QUANTITIES` (B, Q) of images that were adapted."""
    truth, depth = part.labels, used.classifier.target == "depth"
    edges = near_edges(truth)
    before, after = (answered(v, truth) for v in (out.before, out.logits))
    wrong, still = (is_wrong(v, truth) for v in (before, after))
    found = [*towards_truth(used, settings, part, out.before, edges)]
    inside, count = ~edges, lambda v: v.flatten(1).sum(1)
    found += [count(wrong & at) for at in (edges, inside)] + [count(wrong & ~still & at) for at in (edges, inside)]
    found += [count(~wrong & at) for at in (edges, inside)] + [count(~wrong & still & at) for at in (edges, inside)]
    objects = torch.zeros(len(truth), 7) if depth else of_objects(before, after, truth)
    return torch.cat([torch.stack([v.float() for v in found], 1), objects], 1)


def answered(answer: Tensor, truth: Tensor) -> Tensor:
    """The answer at the truth's size: labels, or metres (B, S, S)."""
    y = enlarged(answer, truth.shape[-1])
    return y[:, 0].clamp(NEAR, FAR) if truth.is_floating_point() else y.argmax(1)


def is_wrong(y: Tensor, truth: Tensor) -> Tensor:
    """Pixels of another class, or whose depth is off by more than `OFF`."""
    return (y - truth).abs() > OFF * truth if truth.is_floating_point() else y != truth


def near_edges(truth: Tensor) -> Tensor:
    """Pixels (B, S, S) within `NEAR_EDGE` of one whose neighbour has another class, or a depth 10% apart."""
    v = truth.log() if truth.is_floating_point() else truth.float()
    least = 0.1 if truth.is_floating_point() else 0.5
    edge = torch.zeros_like(v)
    edge[:, 1:] += (v.diff(dim=1).abs() > least).float()
    edge[:, :, 1:] += (v.diff(dim=2).abs() > least).float()
    return F.max_pool2d(edge[:, None], 2 * NEAR_EDGE + 1, 1, NEAR_EDGE)[:, 0] > 0


def towards_truth(used: Models, settings, part: Stream, answer: Tensor, edges: Tensor) -> list[Tensor]:
    """The first four of `QUANTITIES`, from the gradient on the pairs of the first update.

    A wrong pixel's gradient points to the truth where the loss falls more steeply, or rises less, with the probability
    of the true class than with that of the predicted one; of depth, where a step down the loss goes towards it."""
    s, denoiser, depth = settings, used.denoiser, used.classifier.target == "depth"
    how = (s.pairs, denoiser.shape, s.window, s.timesteps, s.noise, s.seed, "diffusion_tta", 0)
    with torch.no_grad():
        x0 = denoiser.encode(part.images)
    p = told(used.classifier, answer, s.temperature)
    G, _ = condition_gradient(denoiser, x0, p, *draw_pairs(part.ids, *how), micro_batch=s.micro_batch)
    true = F.interpolate(at_map(used.classifier.target, part.labels, answer.shape[1]), answer.shape[-2:], mode="area")
    if depth:
        wrong, slope = is_wrong(answer[:, 0], true[:, 0]), G[:, 0]
        points = -slope.sign() == (true - answer)[:, 0].sign()
    else:
        said, right = answer.argmax(1, keepdim=True), true.argmax(1, keepdim=True)
        wrong = (said != right)[:, 0]
        points = (G.gather(1, right) < G.gather(1, said))[:, 0]
        p = probabilities(answer, s.temperature)
        slope = p * (G - (p * G).sum(1, keepdim=True))  # dL/dz up to 1/T
    energy = slope.square().sum(1) if not depth else slope.square()
    at = F.interpolate(edges[:, None].float(), answer.shape[-2:], mode="area")[:, 0]
    sums = [v.flatten(1).sum(1) for v in (wrong, wrong & points, energy * at, energy)]
    return [
        *sums[:2],
        (1e4 * sums[2] / sums[3].clamp_min(1e-30)).round(),
        (1e4 * edges.flatten(1).float().mean(1)).round(),
    ]


def of_objects(before: Tensor, after: Tensor, truth: Tensor) -> Tensor:
    """The last seven of `QUANTITIES` (B, 7): an object is what has one category, and is called what most of its pixels
    are called."""
    found = torch.zeros(len(truth), 7)
    for i, (was, now, y) in enumerate(zip(before, after, truth.long(), strict=True)):
        for k in y.unique().tolist():
            region = y == k
            if k < len(STUFF) or (n := int(region.sum())) < LEAST:
                continue
            first, last = (int(v[region].mode().values) == k for v in (was, now))
            found[i, :4] += torch.tensor([not first, last and not first, first, first and not last])
            if n < SMALL:
                found[i, 4:] += torch.tensor([n, (was[region] == k).sum(), (now[region] == k).sum()])
    return found

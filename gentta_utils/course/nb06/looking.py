"""Runs of notebook 06 that look closer: what is true of the views that count, and what a prompt could do if it knew."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...diffusion.entropy import log_mean
from ...evaluation.chosen import prompted
from ...evaluation.evaluate import run
from ...evaluation.records import Records
from ...evaluation.spread import diversity, fidelity
from ...evaluation.tables import Job
from ...methods import difftpt, tpt, zero
from ...methods.base import Output
from ...methods.many_views import Logits, select
from ...models.clip import text_head
from ...streams.scenes import SceneSpec
from ...streams.stream import stream
from ...world.words import label_set
from ..drawn import Drawn
from ..trials import Wording, models
from .choose import prompt_job
from .rows import COUNTED, QUANTITIES, READ_PURIFIED, TUNED_PURIFIED, VIEWS


def looked_job(settings: zero.Settings, clip: str, spec: SceneSpec, name: str, drawn: Drawn | None = None) -> Job:
    """The mean of the confident views, with `QUANTITIES` of the views of each image in the place of a loss."""
    job_ = prompt_job("zero", settings, clip, spec, VIEWS + name, drawn)
    return _looking(job_, QUANTITIES, quantities, settings, clip, spec, drawn)


def counted_job(settings: difftpt.Settings, clip: str, spec: SceneSpec, name: str, drawn: Drawn) -> Job:
    """The untuned mean of the views that count in DiffTPT, with `COUNTED` of these in the place of a loss."""
    same = {
        k: getattr(settings, k) for k in ("views", "kind", "lowest", "generated", "filter", "rho_c", "rho_h", "seed")
    }
    s = zero.Settings(temperature=1.0, **same)
    job_ = prompt_job("zero", s, clip, spec, VIEWS + name, drawn)
    look = lambda _, logits, chosen, labels: counted(logits, chosen, labels, s.views)  # noqa: E731
    return _looking(job_, COUNTED, look, s, clip, spec, drawn)


def _looking(job_: Job, names: tuple[str, ...], look, settings, clip: str, spec: SceneSpec, drawn: Drawn | None) -> Job:
    """The job with what `look` finds in features, logits, the views that count and labels in the place of its loss."""
    about, work = job_[0] | {"loss": list(names)}, job_[1]

    def looked() -> Records:
        used, s = models(clip, None, wording=Wording(spec.labels)), stream(spec)
        views = drawn and drawn.views(used, label_set(spec.labels).prompts(), settings.generated)
        r = work()
        features, logits = zero.configure(used, settings, views).encode(s.images, s.ids)
        found = look(features, logits, select(features, logits, settings), s.labels)
        return replace(r, loss=found.numpy(), about=about | {"protocol": r.about["protocol"]})

    return about, looked


def counted(logits: Logits, chosen: Tensor, labels: Tensor, made: int) -> Tensor:
    """`COUNTED` (B, 4) of views with logits (B, V, K), of which the first `made` are the image and its crops and
    `chosen` (B, n) count; the last two are numbers of views."""
    right = logits.argmax(2).gather(1, chosen) == labels[:, None]  # (B, n)
    drawn = chosen >= made
    found = [torch.ones_like(drawn), drawn, right & ~drawn, right & drawn]
    return torch.stack([v.sum(1) for v in found], 1).float()


def quantities(features: Tensor, logits: Logits, chosen: Tensor, labels: Tensor) -> Tensor:
    """`QUANTITIES` (B, 6) of views with unit features (B, V, D), the first of which is the image, and logits (B, V, K);
    `chosen` (B, n) are those that count. The image is left out of the views; where no other counts it stands for them,
    at a cosine of 1, and a single view has no spread: 0."""
    B, V = logits.shape[:2]
    kept = torch.zeros(B, V, dtype=torch.bool).scatter(1, chosen, True)
    others = kept.clone()
    others[:, 0] = False
    others[:, 0] = ~others.any(1)
    every = torch.ones(B, V, dtype=torch.bool)
    every[:, 0] = V == 1
    near, right = fidelity(features, features[:, 0]), logits.argmax(2) == labels[:, None]
    mean = lambda values, which: (values * which).sum(1) / which.sum(1)  # noqa: E731
    found = []
    for values in (lambda which: mean(near, which), lambda which: diversity(features, which).nan_to_num()):
        found += [values(every), values(others)]
    return torch.stack([*found, mean(right.float(), every), mean(right.float(), kept)], 1)


@dataclass
class Told(tpt.TPT):
    """TPT that is told the truth: the ceiling of what a prompt can do for an image.

    Attributes:
        labels: of each image, by id.
    """

    labels: dict[int, int] = field(default_factory=dict)

    def tune(self, features: Tensor, ids: Tensor, loss_of=None) -> tuple[Tensor, Tensor]:
        """As TPT's, with the cross entropy of the true class."""
        truth = torch.tensor([[self.labels[i]] for i in ids.tolist()])
        return super().tune(features, ids, lambda logits: -log_mean(logits).gather(1, truth)[:, 0])


def truth_job(settings: tpt.Settings, clip: str, spec: SceneSpec, label: str) -> Job:
    """The prompt tuned on the image's own label, as many steps at the same rate, by the image alone."""
    settings = replace(settings, views=1)
    about, _ = prompt_job("tpt", settings, clip, spec, label)
    about |= {"told": "the true label"}

    def work() -> Records:
        used, s = models(clip, None, wording=Wording(spec.labels)), stream(spec)
        told = Told(used, settings, labels=dict(zip(s.ids.tolist(), s.labels.tolist(), strict=True)))
        return run(tpt.with_prompt(told), s, about=about, **about["how"])

    return about, work


class ReadOnViews(difftpt.DiffTPT):
    """DiffTPT whose tuned words read the views that count, not the image."""

    def episode(self, images: Tensor, ids: Tensor) -> Output:
        """The log mean prediction (B, K) of the views that count, under the tuned words."""
        features, logits = self.encode(images, ids)
        context, losses = self.tune(features, ids)
        with torch.no_grad():
            counting, _ = self.counting(features, logits)  # (B, n, D)
            scale = text_head(self.models.classifier)[0].norm()
            out = log_mean(scale * counting @ self.models.prompt(context).mT)
        return Output(out.cpu(), None, losses)


def purified_jobs(clip: str, spec: SceneSpec, drawn: Drawn, n: int) -> list[Job]:
    """The words tuned on the image and n drawn views, nothing filtered; read on the image, and on these views."""
    settings = prompted("difftpt", clip, spec.labels, views=1, generated=n, filter="none")
    usual = prompt_job("difftpt", settings, clip, spec, TUNED_PURIFIED, drawn)
    about = prompt_job("difftpt", settings, clip, spec, READ_PURIFIED, drawn)[0] | {"read": "the views"}

    def work() -> Records:
        used, s = models(clip, None, wording=Wording(spec.labels)), stream(spec)
        prompts = label_set(spec.labels).prompts()
        method = tpt.with_prompt(ReadOnViews(used, settings, drawn.views(used, prompts, n)))
        made = drawn.make(s.images, s.ids, n, used, prompts)
        return drawn.counted(run(method, s, about=about, **about["how"]), made)

    return [usual, (about, work)]

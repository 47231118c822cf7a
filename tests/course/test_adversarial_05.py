"""The attack of notebook 05: it stays within its bounds, works, has its own draws, and is a stream like any other."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import make_classifier, make_dit
from test_report_05 import record, rights

from gentta_utils.common.cache import fingerprint
from gentta_utils.course import recheck
from gentta_utils.course.nb05 import adversarial, report
from gentta_utils.course.nb05.adversarial import EPS, Attacked, pgd
from gentta_utils.methods import diffpure
from gentta_utils.models import zoo
from gentta_utils.recipes.aligned import ALIGNER
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import Stream

SCENES = SceneSpec(4)
IDS, LABELS = torch.arange(4) + 9, torch.tensor([0, 1, 2, 3])


@pytest.fixture
def few(monkeypatch):
    """Tiny networks and four random images under the names of the shipped ones."""
    named = {adversarial.NETWORKS[0]: make_classifier(), ALIGNER: make_dit()}
    images = Stream(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), LABELS, IDS, {})
    monkeypatch.setattr(zoo, "cached", lambda name, precision="auto": named[name])
    monkeypatch.setattr(adversarial, "stream", lambda spec: images)
    return named, images


def loss_of(classifier, images: torch.Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(classifier(images), LABELS))


def test_an_attack_stays_within_its_bounds_and_raises_the_loss(few):
    named, s = few
    moved = Attacked(SCENES).load()
    assert (moved.images - s.images).abs().max() <= EPS + 1e-6
    assert (moved.images >= 0).all()
    assert (moved.images <= 1).all()
    assert torch.equal(moved.labels, s.labels)
    classifier = named[adversarial.NETWORKS[0]]
    noise = (s.images + EPS * (2 * torch.rand_like(s.images) - 1)).clamp(0, 1)
    assert loss_of(classifier, moved.images) > max(loss_of(classifier, s.images), loss_of(classifier, noise)) + 1e-3


def test_its_draws_belong_to_seed_and_image(few):
    _, s = few
    zero, again, one = (Attacked(SCENES, seed=k).load().images for k in (0, 0, 1))
    assert torch.equal(zero, again)
    assert not torch.equal(zero, one)
    classifier = few[0][adversarial.NETWORKS[0]]
    alone = pgd(lambda x, *_: classifier(x), s.images[2:3], LABELS[2:3], IDS[2:3])
    torch.testing.assert_close(alone, zero[2:3], atol=EPS / 4 + 1e-6, rtol=0)  # a sign may tip where a gradient is 0


def test_an_attack_through_a_purifier_meets_other_noise_at_every_step(few, monkeypatch):
    seeds = []
    purify = diffpure.purify
    monkeypatch.setattr(diffpure, "purify", lambda d, x, i, s: seeds.append(s.seed) or purify(d, x, i, s))
    how = diffpure.Settings(start=99, steps=2)
    moved = Attacked(SCENES, through=how, draws=3).load()
    assert len(seeds) == len(set(seeds)) == adversarial.STEPS * 3
    assert how.seed not in seeds  # the defender's
    assert (moved.images - few[1].images).abs().max() <= EPS + 1e-6
    assert not torch.equal(moved.images, Attacked(SCENES).load().images)


def test_the_gradient_passes_straight_through_the_purifier(few, monkeypatch):
    """Of a purifier that returns the image as it is, the attack is the one that knows of none."""
    monkeypatch.setattr(diffpure, "purify", lambda d, x, i, s: x)
    through = Attacked(SCENES, through=diffpure.Settings(start=99, steps=2)).load().images
    torch.testing.assert_close(through, Attacked(SCENES).load().images, atol=1e-6, rtol=0)


def test_what_it_depends_on_is_described():
    kinds = [
        Attacked(SCENES),
        Attacked(SCENES, seed=1),
        Attacked(replace(SCENES, n=5)),
        Attacked(SCENES, "classifier/vit"),
    ]
    kinds += [Attacked(SCENES, through=adversarial.THROUGH, draws=n) for n in adversarial.DRAWS]
    assert len({fingerprint(kind.describe()) for kind in kinds}) == len(kinds)


def test_seeds_of_an_attack_are_one_row_and_its_scenes_are_resampled_once():
    runs = []
    for shift, right in {"clean": 90, "pgd, seed 0": 10, "pgd, seed 1": 20}.items():
        for label, more in {"source/full": 0, "source/low": 5, "diffpure, t 149": 40}.items():
            r = record(label, rights(min(100, right + more)), shift)
            runs.append(replace(r, id=r.id % 1000))
    rows = adversarial.rows_of(runs)
    (row,) = (r for r in rows if (r["attack"], r["row"]) == ("pgd", "diffpure, t 149"))
    assert (row["seeds"], row["accuracy"].mean, row["minus source"].mean) == (2, pytest.approx(55), pytest.approx(40))
    assert row["minus low view"].mean == pytest.approx(35)
    assert row["accuracy"].high - row["accuracy"].low > 18  # of 100 scenes, not of 200
    assert report.percent(row["accuracy"]) in adversarial.report(runs)
    assert "pgd" in adversarial.report(runs)
    assert "| 55 [" in adversarial.brief(runs)


def test_attacked_scenes_are_not_made_again_by_a_recheck():
    r = record("diffpure, t 149", rights(3, 5))
    r.about["models"] = {}
    assert recheck.obstacle(r) is None
    r.about["stream"]["attack"] = {"eps": EPS}
    assert recheck.obstacle(r)[0] == "diffpure, t 149"

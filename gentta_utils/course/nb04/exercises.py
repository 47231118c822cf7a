"""Checks of notebook 04's exercises; how a check works is said in `course.exercises`."""

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ...evaluation.dense import mean_class_accuracy, mean_iou
from ..exercises import compare


def check_grow(answer: Callable) -> None:
    """Change (2,) of mean class accuracy and of mean IoU, in points, when an object of an image grows.

    Of the confusion matrix (2, 2), background first, `won` pixels of the object that were taken for background and
    `lost` pixels of background that were right are now taken for the object."""
    right, hit = random.randint(2000, 3000), random.randint(200, 400)
    counts = torch.tensor([[right, random.randint(20, 60)], [random.randint(80, 150), hit]])
    won, lost = random.randint(20, 60), random.randint(70, 200)
    moved = torch.tensor([[-lost, lost], [-won, won]])
    scores = lambda c: torch.stack([mean_class_accuracy(c), mean_iou(c)])  # noqa: E731
    pixels = lambda c: 100 * c.diagonal().sum() / c.sum()  # noqa: E731
    gap = scores(counts + moved) - scores(counts)
    by_column = lambda c: 100 * (c.diagonal() / c.sum(0)).mean()  # noqa: E731
    precise = torch.stack([by_column(counts + moved) - by_column(counts), gap[1]])
    compare(
        answer(counts, won, lost),
        gap,
        {
            "points are wanted: 100 times the shares": gap / 100,
            "the other way round: mean class accuracy first": gap.flip(0),
            "that is pixel accuracy: average over the classes first": torch.stack(
                [pixels(counts + moved) - pixels(counts), gap[1]]
            ),
            "rows are true classes: you divided by what was predicted": precise,
            "a union holds what was wrongly taken for the class too": gap[:1].expand(2),
            "the lost pixels are background that is now taken for the object": (
                scores(counts + torch.tensor([[0, 0], [-won, won]])) - scores(counts)
            ),
        },
        tolerance=1e-3,
    )


def check_handed_back(answer: Callable) -> None:
    """The gradient (B, K, f h, f w) that a map gets whose averages over f x f pixels have the gradient (B, K, h, w)."""
    B, K, h, w, f = (random.randint(2, 4) for _ in range(5))
    G, fine = torch.randn(B, K, h, w).double(), torch.zeros(B, K, f * h, f * w).double().requires_grad_()
    (wanted,) = torch.autograd.grad((F.avg_pool2d(fine, f) * G).sum(), fine)
    many = G.repeat_interleave(f, 2).repeat_interleave(f, 3)
    side = torch.zeros_like(many)
    side[:, :, ::f, ::f] = G
    smooth = F.interpolate(G, scale_factor=f, mode="bilinear", align_corners=False)
    compare(
        answer(G, f),
        wanted,
        {
            "each pixel is one of f * f in the average: it gets that share": many,
            "two sides: the share is 1 / (f * f)": many / f,
            "a mean has the same derivative with respect to each of its pixels, not to one alone": side,
            "all of it goes to one pixel here, and as a share": side / f**2,
            "no interpolation: neighbouring averages share no pixel": smooth / f**2,
            "no interpolation, and each pixel gets a share of 1 / (f * f)": smooth,
        },
    )


def check_pixel_gradient(answer: Callable) -> None:
    """dL/dz (B, K, h, w) of mixed answers: p = softmax(z) per pixel, each (B, K, C, h, w), noise eps (B, C, h, w)."""
    B, K, C, h, w = (random.randint(2, 4) for _ in range(5))
    z = torch.randn(B, K, h, w).double().requires_grad_()
    each, eps = torch.randn(B, K, C, h, w).double(), torch.randn(B, C, h, w).double()
    mixed = (z.softmax(1)[:, :, None] * each).sum(1)
    (wanted,) = torch.autograd.grad((mixed - eps).square().mean((1, 2, 3)).sum(), z)
    p, error = z.detach().softmax(1), (mixed - eps).detach()
    for_p = 2 * (error[:, None] * each).sum(2) / (C * h * w)  # (B, K, h, w)
    compare(
        answer(p, each, eps),
        wanted,
        {
            "the derivative of a square has a factor 2": wanted / 2,
            "L is a mean over channels and pixels: divide by C * h * w": C * h * w * wanted,
            "L is a mean over the pixels too, not over the channels alone": h * w * wanted,
            "that is dL/dp: go back through the softmax of each pixel": for_p,
            "the factor p_k is missing": for_p - (p * for_p).sum(1, keepdim=True),
            "back through the softmax: take away the mean of dL/dp under p, not nothing": p * for_p,
            "take away the mean under p, not the plain mean": p * (for_p - for_p.mean(1, keepdim=True)),
            "the sign is turned: that is the push": -wanted,
        },
    )


def check_flat_ssim(answer: Callable) -> None:
    """SSIM, a number, of two flat maps of depths x and y for the range L."""
    x, L = (torch.tensor(v).double() for v in (0.5 + random.random(), 5 + 10 * random.random()))
    y = x * random.choice([0.5, 0.7, 1.3, 1.8])
    of = lambda c: (2 * x * y + c) / (x.square() + y.square() + c)  # noqa: E731
    compare(
        answer(x, y, L),
        of((0.01 * L) ** 2),
        {
            "C1 is the square of .01 L": of(0.01 * L),
            "C1 is missing": of(0.0),
            "C1 grows with the range: .01 times L, squared": of(torch.tensor(0.01).double() ** 2),
            "that is the constant of the variances, .03": of((0.03 * L) ** 2),
            "a share of 1, not percent": 100 * of((0.01 * L) ** 2),
        },
        tolerance=1e-8,
    )


def check_best_scale(answer: Callable) -> None:
    """The factor s, a number, for which s y has the lowest AbsRel to the depth d, both (N,)."""
    cases = []
    for _ in range(8):
        d = 1 + 5 * torch.rand(random.randint(15, 40)).double()
        cases.append((d * (0.4 * torch.randn(len(d)).double()).exp() * (0.5 + random.random()), d))
    answers = [answer(y, d) for y, d in cases]
    got = None if answers[0] is None else torch.stack([torch.as_tensor(a) for a in answers])
    of = lambda f: torch.stack([f(y, d, d / y) for y, d in cases])  # noqa: E731
    best = of(lambda y, d, r: r[((r[:, None] * y - d).abs() / d).mean(1).argmin()])  # it is one of the ratios
    compare(
        got,
        best,
        {
            "least squares in metres: AbsRel is a mean of absolute values": of(
                lambda y, d, r: (y * d).sum() / y.square().sum()
            ),
            "least squares of relative errors: AbsRel has no square": of(
                lambda y, d, r: (1 / r).sum() / (1 / r).square().sum()
            ),
            "the mean of the ratios: a sum of absolute values is lowest at a median": of(lambda y, d, r: r.mean()),
            "the ratio of the means: a sum of absolute values is lowest at a median": of(
                lambda y, d, r: d.mean() / y.mean()
            ),
            "the plain median of the ratios: pixel i weighs y_i / d_i": of(lambda y, d, r: r.median()),
            "upside down: s y is to be d": 1 / best,
        },
        tolerance=1e-6,
    )

"""Checks of notebook 05's exercises; how a check works is said in `checks`."""

import random
from collections.abc import Callable

import torch

from ...diffusion.guidance import bicubic_low_pass, structure_energy
from ...methods.dda import combine
from ..exercises import ABAR, compare, whole_numbers


def _images(B: int | None = None) -> torch.Tensor:
    shape = (B or random.randint(2, 5), random.randint(1, 3), 8 * random.randint(1, 2), 8 * random.randint(1, 2))
    return torch.rand(shape).double() * 2 - 1


def check_least_start(answer: Callable) -> None:
    """answer(share, std, abar (T,)) -> the first t from which purification keeps at most `share` of a distance."""
    drawn = [(random.uniform(0.05, 0.6), random.uniform(0.15, 0.8)) for _ in range(18)]

    def levels(kept: Callable) -> torch.Tensor:
        return torch.stack([(kept(std) > share).sum() for share, std in drawn])

    def rho(std: float) -> torch.Tensor:
        return ABAR * std**2 / (ABAR * std**2 + 1 - ABAR)

    got = whole_numbers([answer(share, std, ABAR) for share, std in drawn])
    wanted = levels(rho)
    known = {
        "that is the last level at which more is kept: one too early": wanted - 1,
        "that is where the share is lost, not kept": levels(lambda std: 1 - rho(std)),
        "the variance within a class is std squared": levels(lambda std: ABAR * std / (ABAR * std + 1 - ABAR)),
        "that counts what x_t keeps: the way back knows the mode as well, use rho": levels(lambda std: ABAR.sqrt()),
        "that counts abar: the way back knows the mode as well, use rho": levels(lambda std: ABAR),
    }
    compare(got, wanted, known)


def check_replace_low(answer: Callable) -> None:
    """answer(x_prev, y, factor) -> x_prev with the low frequencies of y, all (B, C, H, W)."""
    x, factor = _images(), random.choice((2, 4))
    y = torch.randn_like(x)
    low_x, low_y = bicubic_low_pass(x, factor), bicubic_low_pass(y, factor)
    known = {
        "the low frequencies of the sample are still in it: subtract them": x + low_y,
        "that is the reference with the sample's low frequencies: swap the two": y + low_x - low_y,
        "nothing but low frequencies is left: the sample's detail belongs to it": low_y,
        "the sign is wrong: the sample's low frequencies go, those of the reference come": x + low_x - low_y,
        "that is the mean of both: ILVR replaces": x + (low_y - low_x) / 2,
    }
    compare(answer(x, y, factor), x + low_y - low_x, known, 1e-6)


def check_push(answer: Callable) -> None:
    """answer(predict, x_t, reference, factor, scale) -> gradient (B, C, H, W) of each image's guidance by x_t."""
    reference, factor, scale = _images(), random.choice((2, 4)), random.uniform(0.3, 3.0)
    gain = random.uniform(0.5, 2.0)
    x = torch.randn_like(reference)

    def predict(x_t: torch.Tensor) -> torch.Tensor:
        return gain * x_t + 0.1 * x_t.roll(1, -1)

    def grad(energy: Callable, through: bool = True) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        x0_hat = predict(leaf)
        (value,) = torch.autograd.grad(energy(x0_hat), leaf if through else x0_hat)
        return value

    def squared(x0_hat: torch.Tensor) -> torch.Tensor:
        return scale * bicubic_low_pass(reference - x0_hat, factor).square().sum()

    def plain(x0_hat: torch.Tensor) -> torch.Tensor:
        return scale * (reference - x0_hat).flatten(1).norm(dim=1).sum()

    energy = {n: structure_energy(reference, scale, factor, norm=n) for n in ("image", "batch")}
    right = grad(lambda v: energy["image"](v, 0).sum())
    known = {
        "that is one norm over the whole batch: neighbours would change an image's step": grad(
            lambda v: energy["batch"](v, 0).sum()
        ),
        "the sign is wrong: give the gradient, the sampler subtracts it": -right,
        "that is the gradient of the squared distance: its length shrinks with the distance": grad(squared),
        "differentiate with respect to x_t, through predict: not with respect to x0_hat": grad(
            lambda v: energy["image"](v, 0).sum(), through=False
        ),
        "the low-pass is missing: the noise of the reference would be held as well": grad(plain),
        "the scale is missing": right / scale,
    }
    compare(answer(predict, x.clone(), reference, factor, scale), right, known, 1e-6)


def check_vote(answer: Callable) -> None:
    """answer(source, purified, temperature) -> probabilities (B, K) of the mean, the source at a temperature."""
    B, K, T = random.randint(2, 6), random.randint(3, 9), random.uniform(1.5, 6.0)
    source, purified = 4 * torch.randn(B, K).double(), 2 * torch.randn(B, K).double()
    p, q = (source / T).softmax(1), purified.softmax(1)
    known = {
        "these are logits added, which multiplies the two: add probabilities": (source / T + purified).softmax(1),
        "that is the softmax of the mean of logits: average probabilities": ((source / T + purified) / 2).softmax(1),
        "softmax was taken twice: the mean of probabilities is one already": ((p + q) / 2).softmax(1),
        "the temperature cools the source alone": (p + (purified / T).softmax(1)) / 2,
        "divide the logits by the temperature, do not multiply": ((source * T).softmax(1) + q) / 2,
        "the temperature is not used": (source.softmax(1) + q) / 2,
        "the rows sum to 2: halve the sum": p + q,
    }
    wanted = combine(source, purified, "calibrated", T).exp()
    compare(answer(source, purified, T), wanted, known, 1e-6)


def check_scale_of(answer: Callable) -> None:
    """answer(w, batch, side) -> scale of one image at this side that does what w does over a batch at 256 px."""
    w, side = random.uniform(2, 9), random.choice((32, 64, 128, 512))
    batch = random.choice((3, 5, 6, 7, 10, 12))  # no power of 2, at which one error would look like another
    wanted = w / batch**0.5 * side / 256
    known = {
        "one norm over B equal images is sqrt(B) times one image's: divide by the root": w / batch * side / 256,
        "a batch norm shortens each step: divide, do not multiply": w * batch**0.5 * side / 256,
        "the length of an image of the same pixels grows with its side: the step has to as well": w / batch**0.5,
        "the side enters once: a norm is the root of a sum over side^2 pixels": w / batch**0.5 * (side / 256) ** 2,
        "the number of images is not used": w * side / 256,
        "upside down: smaller images take smaller steps": w / batch**0.5 * 256 / side,
    }
    got = answer(w, batch, side)
    known = {says: torch.tensor(v, dtype=torch.float64) for says, v in known.items()}
    compare(got, torch.tensor(wanted, dtype=torch.float64), known, 1e-6)

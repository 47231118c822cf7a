"""The checks of notebook 01's exercises."""

import random
from collections.abc import Callable

import torch
from torch import Tensor

from ...diffusion.process import add_noise, eps_to_v, eps_to_x0, to_eps
from ...methods.diffusion_classifier import log_posterior
from ..exercises import ABAR, compare, random_batch, whole_numbers


def check_x0_error(answer: Callable) -> None:
    """answer(eps_error (B,), t (B,), abar (T,)) -> error (B,) of the clean image that belongs to an error of noise."""
    x0, eps, t = random_batch()
    eps_hat = eps + 0.1 * torch.randn_like(eps)
    x_t = add_noise(x0, t, eps, ABAR)
    error, a = (eps_hat - eps).square().flatten(1).mean(1), ABAR[t]
    wanted = (eps_to_x0(eps_hat, x_t, t, ABAR) - x0).square().flatten(1).mean(1)
    known = {
        "upside down: a small abar must make the image's error large": error * a / (1 - a),
        "these are squared errors: the factor must be squared too": error * ((1 - a) / a).sqrt(),
    }
    compare(answer(error, t, ABAR), wanted, known, 1e-6)


def check_noise_of_v(answer: Callable) -> None:
    """answer(v, x_t, t, abar) -> eps: the noise that a network's v stands for."""
    x0, eps, t = random_batch()
    x_t, v = add_noise(x0, t, eps, ABAR), eps_to_v(eps, x0, t, ABAR)
    root, other = (r[t].view(-1, 1, 1, 1) for r in (ABAR.sqrt(), (1 - ABAR).sqrt()))
    known = {
        "that is x0: swap the two roots and mind the sign": root * x_t - other * v,
        "a sign is wrong: both terms are added": root * v - other * x_t,
        "the roots are swapped": other * v + root * x_t,
        "abar and 1 - abar enter by their roots": root**2 * v + other**2 * x_t,
    }
    compare(answer(v, x_t, t, ABAR), to_eps(v, x_t, t, ABAR, "v_prediction"), known)


def check_posterior(answer: Callable) -> None:
    """answer(error (B, K), dims, tau) -> p (B, K)."""
    B, K, dims, tau = random.randint(2, 6), random.randint(7, 9), random.randint(10, 99), random.uniform(0.5, 5)
    error = torch.rand(B, K) * 0.1
    known = {
        "a large error must make a class unlikely: the sign is wrong": (dims * error / tau).softmax(1),
        "the errors are means over dimensions, the likelihood is a sum: multiply by dims": (-error / tau).softmax(1),
        "the classes are columns: each row must sum to 1": (-dims * error / tau).softmax(0),
        "tau divides: a high temperature makes p flat": (-dims * error * tau).softmax(1),
    }
    compare(answer(error, dims, tau), log_posterior(error, dims, tau).exp(), known)


def check_eliminate(answer: Callable) -> None:
    """answer(error (N, K), pairs, keep) -> class, for stages that use the first pairs[i] pairs."""
    got, wanted, plain = [], [], []
    for _ in range(40):
        K = random.randint(5, 9)
        error, pairs, keep = torch.rand(24, K), (4, 12, 24), (random.randint(3, 4), 2, 1)
        alive = torch.arange(K)
        for n, kept in zip(pairs, keep, strict=True):
            alive = alive[error[:n, alive].mean(0).argsort()[:kept]]
        got.append(answer(error, pairs, keep))
        wanted.append(int(alive[0]))
        plain.append(int(error.mean(0).argmin()))
    known = {
        "that is the argmin over all pairs: nothing was eliminated": torch.tensor(plain),
        "always 0: a position among the classes left is not a class": torch.zeros(40),
    }
    compare(whole_numbers(got), torch.tensor(wanted), known)


def check_drowned(answer: Callable) -> None:
    """answer(sigma, factor, abar) -> first t at which the added noise is at least as large as the corruption's."""
    ratio = ((1 - ABAR) / ABAR).sqrt()
    drawn = [(random.uniform(0.05, 0.4), factor) for factor in (1, 2, 4) * 6]

    def levels(size: Callable) -> Tensor:
        return torch.stack([(ratio < size(sigma, factor)).sum() for sigma, factor in drawn])

    known = {
        "averaging f x f pixels divides the deviation by f, not by f^2": levels(lambda s, f: 2 * s / f**2),
        "the diffusion model sees the averaged noise: use factor": levels(lambda s, f: 2 * s),
        "the image goes from [0, 1] to [-1, 1]: that doubles the noise": levels(lambda s, f: s / f),
    }
    got = whole_numbers([answer(sigma, factor, ABAR) for sigma, factor in drawn])
    compare(got, levels(lambda s, f: 2 * s / f), known)

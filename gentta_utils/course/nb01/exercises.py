"""The checks of notebook 01's exercises."""

import random
from collections.abc import Callable

import torch

from ...diffusion.process import add_noise, eps_to_v, eps_to_x0, to_eps
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


def check_unpair(answer: Callable) -> None:
    """answer(error (B, N, K)) -> mean errors (B, K), of class k over its own pairs k, k + K, ... alone."""
    B, K, each = random.randint(2, 5), random.randint(3, 6), random.randint(3, 5)
    error = torch.rand(B, K * each, K)
    known = {
        "that is the mean over all pairs, the same for all classes: the draws are still paired": error.mean(1),
        "that gives each class a block of pairs: take every K-th": torch.stack(
            [error[:, k * each : (k + 1) * each, k].mean(1) for k in range(K)], 1
        ),
        "class k sees its own pairs, but the errors are of another class": torch.stack(
            [error[:, k::K].mean((1, 2)) for k in range(K)], 1
        ),
    }
    compare(answer(error), torch.stack([error[:, k::K, k].mean(1) for k in range(K)], 1), known)


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


def check_move_window(answer: Callable) -> None:
    """answer(error (B, N, K), t (N,), labels (B,), width) -> low of the window [low, low + width) that reads best."""
    got, found = [], {"wanted": [], "last": [], "most": [], "worst": []}
    for _ in range(30):
        B, K, width = random.randint(4, 7), random.randint(3, 6), random.choice((200, 300, 400))
        t, labels = torch.arange(12, 1000, 25), torch.randint(K, (B,))
        error = torch.rand(B, len(t), K)
        got.append(answer(error, t, labels, width))
        lows = range(0, 1001 - width, 50)
        within = {low: error[:, (t >= low) & (t < low + width)].mean(1) for low in lows}
        right = {low: int((e.argmin(1) == labels).sum()) for low, e in within.items()}
        found["wanted"].append(max(lows, key=right.get))
        found["last"].append(max(reversed(lows), key=right.get))
        found["most"].append(max(lows, key=lambda low: int((within[low].argmax(1) == labels).sum())))
        found["worst"].append(min(lows, key=right.get))
    outcome = {name: torch.tensor(values) for name, values in found.items()}
    known = {
        "of windows that read as many right, take the lowest": outcome["last"],
        "the class that is read has the least error, not the largest": outcome["most"],
        "that is the window that reads the fewest right": outcome["worst"],
    }
    compare(whole_numbers(got), outcome["wanted"], known)

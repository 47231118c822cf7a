"""Checks of notebook 06's exercises; how a check works is said in `course.exercises`."""

import random
from collections.abc import Callable

import torch

from ...diffusion.entropy import entropy, log_mean, marginal_entropy
from ..exercises import Wrong, compare, whole_numbers


def check_disagreement(answer: Callable) -> None:
    """H(mean p) - mean H(p), a number, of logits (V, K): what the views disagree about."""
    V, K = random.randint(3, 9), random.randint(3, 8)
    z = torch.randn(V, K).double() * 3
    mean = z.softmax(1).mean(0)
    gap = marginal_entropy(z) - entropy(z).mean()
    compare(
        answer(z),
        gap,
        {
            "the sign is turned: entropy is concave, so that of the mean is the larger one": -gap,
            "that is the marginal entropy alone: take away the mean of the views' own entropies": marginal_entropy(z),
            "average the probabilities, not the logits": entropy(z.mean(0)) - entropy(z).mean(),
            "the mean of the views' entropies, not their sum": marginal_entropy(z) - entropy(z).sum(),
            "log to base e: entropies here are in nats": gap / torch.tensor(2.0).double().log(),
            "normalise over the classes of a view, not over the views of a class": (
                -(mean * mean.log()).sum() - entropy(z.T).mean()
            ),
        },
    )


def check_view_gradient(answer: Callable) -> None:
    """Gradient (V, K) of H(mean p) with respect to the logits (V, K) of each view."""
    V, K = random.randint(2, 6), random.randint(3, 7)
    z = (torch.randn(V, K).double() * 2).requires_grad_()
    (wanted,) = torch.autograd.grad(marginal_entropy(z), z)
    p, log_mean_p = z.detach().softmax(1), log_mean(z.detach())
    inner = (p * log_mean_p).sum(1, keepdim=True)
    own = -p * (p.log() + entropy(z.detach())[:, None])
    compare(
        answer(z.detach()),
        wanted,
        {
            "the sign is turned: that is the step, not the gradient": -wanted,
            "each view is one of V in the mean: the factor 1/V is missing": V * wanted,
            "that is each view's own entropy: its logarithm is that of the mean": own / V,
            "that is the gradient of the sum of own entropies: the views must meet in the mean": own,
            "back through the softmax of the view: p_k is a factor of the whole": -(log_mean_p - inner) / V,
            "back through the softmax: take away the mean of the inner gradient under p": -p * log_mean_p / V,
        },
    )


def check_parallel_filter(answer: Callable) -> None:
    """Whether each of S + G views is kept: standard ones by entropy, generated ones by cosine, then entropy."""
    for _ in range(6):
        S, G = random.randint(12, 30), random.randint(12, 30)
        rho_c, rho_h = random.choice([0.5, 0.6, 0.8]), random.choice([0.2, 0.3])
        H, cosine = torch.rand(S + G).double(), torch.rand(G).double()
        H[S + cosine.argsort()[: G // 3]] *= 0.05  # what has drifted away is sure of itself: else both filters agree
        got = answer(H, cosine, rho_c, rho_h)
        if got is not None:
            got = torch.as_tensor(got)
            got = got.double() if got.dtype == torch.bool else got
        compare(got, _parallel(H, cosine, rho_c, rho_h).double(), _filters(H, cosine, rho_c, rho_h), tolerance=0.0)


def _lowest(values: torch.Tensor, k: int) -> torch.Tensor:
    """True at the k lowest values (N,)."""
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, values.argsort()[:k], True)


def _parallel(H: torch.Tensor, cosine: torch.Tensor, rho_c: float, rho_h: float) -> torch.Tensor:
    S = len(H) - len(cosine)
    near = _lowest(-cosine, int(rho_c * len(cosine)))
    among = torch.where(near, H[S:], torch.inf)
    return torch.cat([_lowest(H[:S], int(rho_h * S)), _lowest(among, int(rho_h * int(near.sum())))])


def _filters(H: torch.Tensor, cosine: torch.Tensor, rho_c: float, rho_h: float) -> dict[str, torch.Tensor]:
    """What comes of typical mistakes, by what to say of them."""
    S, G = len(H) - len(cosine), len(cosine)
    near = _lowest(-cosine, int(rho_c * G))
    joint = torch.cat([torch.ones(S, dtype=torch.bool), near])
    together = _lowest(torch.where(joint, H, torch.inf), int(rho_h * int(joint.sum())))
    of_all = torch.where(near, H[S:], torch.inf)
    wrong = {
        "one ranking of all views is the public code's filter: rank the two kinds apart": together,
        "the cosine filter is missing: variations that drifted away are confident too": torch.cat(
            [_lowest(H[:S], int(rho_h * S)), _lowest(H[S:], int(rho_h * G))]
        ),
        "the entropy filter is missing for the generated views": torch.cat([_lowest(H[:S], int(rho_h * S)), near]),
        "rho_H is a share of what the cosine filter left, not of all generated views": torch.cat(
            [_lowest(H[:S], int(rho_h * S)), _lowest(of_all, int(rho_h * G))]
        ),
        "the highest entropies were kept: confident views have low ones": torch.cat(
            [
                _lowest(-H[:S], int(rho_h * S)),
                _lowest(torch.where(near, -H[S:], torch.inf), int(rho_h * int(near.sum()))),
            ]
        ),
        "the smallest cosines were kept: those are the variations that drifted away": _parallel(
            H, -cosine, rho_c, rho_h
        ),
    }
    return {says: outcome.double() for says, outcome in wrong.items()}


def check_elected(answer: Callable) -> None:
    """The class (int) that wins: k votes of the most confident of V views with logits (V, K), ties to the next view."""
    cases = [_ballot() for _ in range(24)]
    got = whole_numbers([answer(z, k) for z, k, _ in cases])
    if got is not None and not ((got >= 0) & (got < 5)).all():
        raise Wrong("that is no class: return the index of the winner")
    count = lambda f: torch.tensor([f(z, k) for z, k, _ in cases])  # noqa: E731
    compare(
        got,
        count(_winner),
        {
            "ties are left to argmax, which prefers the class that stands first": count(
                lambda z, k: int(_votes(z, k).argmax())
            ),
            "all views vote here: only the k most confident do": count(lambda z, k: _winner(z, len(z))),
            "that is the mean of probabilities: at temperature 0 a view has one vote, however sure it is": count(
                lambda z, k: int(z[entropy(z).argsort()[:k]].softmax(1).mean(0).argmax())
            ),
            "a tie goes to a view outside of the k, not to the most confident one inside": count(
                lambda z, k: (
                    int(z[entropy(z).argsort()[0]].argmax())
                    if (_votes(z, k) == _votes(z, k).max()).sum() > 1
                    else int(_votes(z, k).argmax())
                )
            ),
            "the next view breaks a tie only if it votes for one of the tied classes": count(
                lambda z, k: _winner(z, k, any_class=True)
            ),
        },
        tolerance=0.0,
    )


def _votes(z: torch.Tensor, k: int) -> torch.Tensor:
    best = entropy(z).argsort()[:k]
    return torch.bincount(z[best].argmax(1), minlength=z.shape[1])


def _winner(z: torch.Tensor, k: int, any_class: bool = False) -> int:
    votes = _votes(z, k)
    tied = votes == votes.max()
    if tied.sum() == 1:
        return int(votes.argmax())
    for view in z[entropy(z).argsort()[k:]].argmax(1).tolist():
        if any_class or tied[view]:
            return view
    return int(votes.argmax())


def _ballot() -> tuple[torch.Tensor, int, int]:
    """Logits (V, 5) and k, half of them with a tie that a later view breaks."""
    while True:
        k = random.choice([2, 4])
        z = torch.randn(k + 6, 5).double()
        favourites = torch.randint(0, 5, (len(z),))
        z[torch.arange(len(z)), favourites] += torch.linspace(6, 2, len(z)).double() + torch.rand(len(z)).double() / 4
        votes = _votes(z, k)
        tied = votes == votes.max()
        rest = z[entropy(z).argsort()[k:]].argmax(1)
        if tied[rest].any() and (int(tied.sum()) > 1 or random.random() < 0.3):
            return z[torch.randperm(len(z))], k, int(tied.sum())

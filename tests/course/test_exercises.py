"""Every exercise's check passes on the notebook's own solution and fails on wrong answers that people really give."""

import math
import random
import re

import notebook_rules as rules
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import binom

from gentta_utils.course import exercises
from gentta_utils.course.nb01 import exercises as nb01_exercises
from gentta_utils.course.nb02 import exercises as nb02_exercises
from gentta_utils.course.nb03 import exercises as nb03_exercises
from gentta_utils.course.nb04 import exercises as nb04_exercises
from gentta_utils.course.nb05 import exercises as nb05_exercises
from gentta_utils.course.nb06 import exercises as nb06_exercises
from gentta_utils.course.nb07 import exercises as nb07_exercises
from gentta_utils.diffusion import guidance, process
from gentta_utils.diffusion.entropy import entropy, marginal_entropy
from gentta_utils.runner.notebook import notebooks

_PUSH = """
def f(predict, x, y, d, w):
    x = x.requires_grad_()
    d = bicubic_low_pass(y - predict(x), d)
    return torch.autograd.grad(w * ({}), x)[0]"""
_PARALLEL = """
def f(H, c, rho_c, rho_h):
    S, keep = len(H) - len(c), torch.zeros(len(H), dtype=torch.bool)
    near = {}
    keep[H[:S].argsort()[: int(rho_h * S)]] = True
    keep[S + near[H[S + near].argsort()[: {}]]] = True
    return keep"""
_GROW = """
def f(counts, won, lost):
    def scores(c):
        right = c.diagonal()
        return torch.stack([{}])
    return {}"""
_CLASSES, _UNION = "(right / c.sum(1)).mean()", "(right / (c.sum(0) + c.sum(1) - right)).mean()"
_GROWN = "100 * (scores(counts + torch.tensor([[-lost, lost], [-won, won]])) - scores(counts))"
_PIXEL = """
def f(p, each, eps):
    mixed = (p[:, :, None] * each).sum(1)
    g = {} * ((mixed - eps)[:, None] * each).sum(2) / {}
    return {}"""
_BACK = "p * (g - (p * g).sum(1, keepdim=True))"
WRONG = {
    "grow": {
        "points": _GROW.format(f"{_CLASSES}, {_UNION}", _GROWN.removeprefix("100 * ")),
        "other way round": _GROW.format(f"{_UNION}, {_CLASSES}", _GROWN),
        "pixel accuracy": _GROW.format(f"right.sum() / c.sum(), {_UNION}", _GROWN),
        "true classes": _GROW.format(f"(right / c.sum(0)).mean(), {_UNION}", _GROWN),
        "wrongly taken": _GROW.format(f"{_CLASSES}, {_CLASSES}", _GROWN),
        "lost pixels": _GROW.format(f"{_CLASSES}, {_UNION}", _GROWN.replace("-lost, lost", "0, 0")),
        "shape": "def f(counts, won, lost): return torch.tensor(0.0)",
    },
    "handed_back": {
        "gets that share": "def f(G, f): return G.repeat_interleave(f, 2).repeat_interleave(f, 3)",
        "two sides": "def f(G, f): return G.repeat_interleave(f, 2).repeat_interleave(f, 3) / f",
        "not to one alone": """
def f(G, f):
    out = G.new_zeros(*G.shape[:2], f * G.shape[2], f * G.shape[3])
    out[:, :, ::f, ::f] = G
    return out""",
        "no interpolation": "def f(G, f): return F.interpolate(G, scale_factor=f, mode='bilinear') / f**2",
        "shape": "def f(G, f): return G / f**2",
    },
    "pixel_gradient": {
        "factor 2": _PIXEL.format(1, "eps[0].numel()", _BACK),
        "divide by C": _PIXEL.format(2, 1, _BACK),
        "over the pixels too": _PIXEL.format(2, "eps.shape[1]", _BACK),
        "back through the softmax of": _PIXEL.format(2, "eps[0].numel()", "g"),
        "p_k is missing": _PIXEL.format(2, "eps[0].numel()", "g - (p * g).sum(1, keepdim=True)"),
        "not nothing": _PIXEL.format(2, "eps[0].numel()", "p * g"),
        "plain mean": _PIXEL.format(2, "eps[0].numel()", "p * (g - g.mean(1, keepdim=True))"),
        "sign": _PIXEL.format(-2, "eps[0].numel()", _BACK),
    },
    "flat_ssim": {
        "square": "def f(x, y, L): return (2 * x * y + 0.01 * L) / (x**2 + y**2 + 0.01 * L)",
        "is missing": "def f(x, y, L): return 2 * x * y / (x**2 + y**2)",
        "grows with the range": "def f(x, y, L): return (2 * x * y + 1e-4) / (x**2 + y**2 + 1e-4)",
        "variances": "def f(x, y, L): return (2 * x * y + 9e-4 * L**2) / (x**2 + y**2 + 9e-4 * L**2)",
        "percent": "def f(x, y, L): return 100 * (2 * x * y + 1e-4 * L**2) / (x**2 + y**2 + 1e-4 * L**2)",
    },
    "best_scale": {
        "in metres": "def f(y, d): return (y * d).sum() / (y * y).sum()",
        "relative errors": "def f(y, d): return (y / d).sum() / (y / d).square().sum()",
        "mean of the ratios": "def f(y, d): return (d / y).mean()",
        "ratio of the means": "def f(y, d): return d.mean() / y.mean()",
        "plain median": "def f(y, d): return (d / y).median()",
        "upside down": """
def f(y, d):
    order = (d / y).argsort()
    weight = (y / d)[order].cumsum(0)
    return (y / d)[order][int((weight < weight[-1] / 2).sum())]""",
        "differ": "def f(y, d): return 1.01 * (d / y).max()",
    },
    "x0_error": {
        "upside down": "def f(e, t, abar): return e * abar[t] / (1 - abar[t])",
        "squared": "def f(e, t, abar): return e * ((1 - abar[t]) / abar[t]).sqrt()",
        "differ": "def f(e, t, abar): return e * (1 - abar[t])",
        "shape": "def f(e, t, abar): return (e * (1 - abar[t]) / abar[t]).mean()",
    },
    "noise_of_v": {
        "that is x0": "def f(v, x, t, a): return expand(a.sqrt(), t, v) * x - expand((1 - a).sqrt(), t, v) * v",
        "sign": "def f(v, x, t, a): return expand(a.sqrt(), t, v) * v - expand((1 - a).sqrt(), t, v) * x",
        "swapped": "def f(v, x, t, a): return expand((1 - a).sqrt(), t, v) * v + expand(a.sqrt(), t, v) * x",
        "roots": "def f(v, x, t, a): return expand(a, t, v) * v + expand(1 - a, t, v) * x",
        "raised|differ": "def f(v, x, t, a): return a[t] * v",
    },
    "unpair": {
        "still paired": "def f(e): return e.mean(1)",
        "block of pairs": """
def f(e):
    return torch.stack([part.mean(1)[:, k] for k, part in enumerate(e.chunk(e.shape[2], 1))], 1)""",
        "another class": """
def f(e):
    return torch.stack([e[:, k :: e.shape[2]].mean((1, 2)) for k in range(e.shape[2])], 1)""",
        "shape|differ": "def f(e): return torch.stack([e[:, k :: e.shape[2], k].mean(1) for k in range(e.shape[2])])",
        "differ": "def f(e): return torch.stack([e[:, k :: e.shape[2], k].sum(1) for k in range(e.shape[2])], 1)",
    },
    "eliminate": {
        "nothing was eliminated": "def f(e, pairs, keep): return int(e.mean(0).argmin())",
        "not a class": """
def f(e, pairs, keep):
    for n, kept in zip(pairs, keep):
        best = e[:n].mean(0).argsort()[:kept]
        e = e[:, best]
    return 0""",
        "differ": """
def f(e, pairs, keep):
    left = torch.arange(e.shape[1])
    for n, kept in zip(pairs, keep):
        left = left[e[:n, left].mean(0).argsort(descending=True)[:kept]]
    return int(left[0])""",
        "differ|nothing": """
def f(e, pairs, keep):
    left, start = torch.arange(e.shape[1]), 0
    for n, kept in zip(pairs, keep):
        left, start = left[e[start:n, left].mean(0).argsort()[:kept]], n
    return int(left[0])""",
    },
    "move_window": {
        "take the lowest": """
def f(e, t, y, w):
    right = lambda a: int((e[:, (t >= a) & (t < a + w)].mean(1).argmin(1) == y).sum())
    return max(reversed(range(0, 1001 - w, 50)), key=right)""",
        "not the largest": """
def f(e, t, y, w):
    right = lambda a: int((e[:, (t >= a) & (t < a + w)].mean(1).argmax(1) == y).sum())
    return max(range(0, 1001 - w, 50), key=right)""",
        "fewest right": """
def f(e, t, y, w):
    right = lambda a: int((e[:, (t >= a) & (t < a + w)].mean(1).argmin(1) == y).sum())
    return min(range(0, 1001 - w, 50), key=right)""",
        "differ": "def f(e, t, y, w): return 0",
    },
    "stratified": {
        "exactly": "def f(n, a, b, g): return torch.arange(a, b, max(1, (b - a) // (n + 1)))",
        "same": "def f(n, a, b, g): return (a + (torch.arange(n) + 0.5) / n * (b - a)).long()",
        "empty|outside": "def f(n, a, b, g): return torch.randint(a, b, (n,), generator=g).sort().values",
        "together": """
def f(n, a, b, g):
    return (a + (torch.arange(n) + torch.rand(1, generator=g)) / n * (b - a)).long().clamp(a, b - 1)""",
        "int64": "def f(n, a, b, g): return a + (torch.arange(n) + torch.rand(n, generator=g)) / n * (b - a)",
    },
    "accumulate": {
        "mean of the chunks": "def f(g, x, s): return torch.stack([g(c) for c in x.split(s)]).mean(0)",
        "sum of the chunks": "def f(g, x, s): return sum(g(c) for c in x.split(s))",
        "sum over pairs": "def f(g, x, s): return sum(g(c) * len(c) for c in x.split(s))",
        "do not fit": "def f(g, x, s): return g(x)",
    },
    "output_gradient": {
        "through the softmax": "def f(G, p): return 2 * (G @ p[..., None])[..., 0]",
        "factor 2": """
def f(G, p):
    h = (G @ p[..., None])[..., 0]
    return p * (h - (p * h).sum(1, keepdim=True))""",
        "plain mean": """
def f(G, p):
    h = 2 * (G @ p[..., None])[..., 0]
    return p * (h - h.mean(1, keepdim=True))""",
        "p_i is missing": """
def f(G, p):
    h = 2 * (G @ p[..., None])[..., 0]
    return h - (p * h).sum(1, keepdim=True)""",
    },
    "rate": {
        "not the mean": "def f(a, b, d): return d / (a * b).mean()",
        "before you take": "def f(a, b, d): return d / (a.median() * b.median())",
        "divide delta": "def f(a, b, d): return d * (a * b).median()",
        "squared norm": "def f(a, b, d): return d / (a**2 * b).median()",
    },
    "adapter_size": {
        "whole patch": "def f(shape, r): return r * (shape[0] + shape[1])",
        "two thin": "def f(shape, r): return r * int(torch.Size(shape).numel())",
        "enters once": "def f(shape, r): return r * shape[0] + int(torch.Size(shape[1:]).numel()) * r * r",
        "differ": "def f(shape, r): return shape[0] + int(torch.Size(shape[1:]).numel())",
    },
    "class_feature": {
        "outvotes": "def f(x): return F.normalize(x.mean(1), dim=1)",
        "normalise again": "def f(x): return F.normalize(x, dim=2).mean(1)",
        "both times": "def f(x): return x.mean(1)",
        "over the classes": "def f(x): return F.normalize(F.normalize(x, dim=2).mean(1), dim=0)",
        "differ": "def f(x): return F.normalize(F.normalize(x, dim=0).mean(1), dim=1)",
        "shape|differ": "def f(x): return F.normalize(F.normalize(x, dim=2).mean(0), dim=1)",
    },
    "condition": {
        "follow the current": """
def f(z, start, k, T):
    best = torch.zeros_like(z, dtype=torch.bool).scatter(1, z.topk(k).indices, True)
    return (z / T).masked_fill(~best, -torch.inf).softmax(1)""",
        "sum to 1": """
def f(z, start, k, T):
    best = torch.zeros_like(z, dtype=torch.bool).scatter(1, start.topk(k).indices, True)
    return (z / T).softmax(1) * best""",
        "temperature": """
def f(z, start, k, T):
    best = torch.zeros_like(z, dtype=torch.bool).scatter(1, start.topk(k).indices, True)
    return z.masked_fill(~best, -torch.inf).softmax(1)""",
        "only the choice": """
def f(z, start, k, T):
    best = torch.zeros_like(z, dtype=torch.bool).scatter(1, start.topk(k).indices, True)
    return (start / T).masked_fill(~best, -torch.inf).softmax(1)""",
        "use -inf": """
def f(z, start, k, T):
    best = torch.zeros_like(z, dtype=torch.bool).scatter(1, start.topk(k).indices, True)
    return (z / T * best).softmax(1)""",
        "not numbers": """
def f(z, start, k, T):
    best = torch.zeros_like(z, dtype=torch.bool).scatter(1, start.topk(k).indices, True)
    return (z / T * torch.where(best, 1.0, -torch.inf)).log().softmax(1)""",
        "shape": "def f(z, start, k, T): return (z / T).gather(1, start.topk(k).indices).softmax(1)",
    },
    "pair_scores": {
        "swapped": """
def f(s):
    own = s.diagonal(dim1=1, dim2=2)
    one, other = ((own > s.flip(d).diagonal(dim1=1, dim2=2)).all(1) for d in (1, 2))
    return torch.stack([v.double().mean() for v in (one, other, one & other)])""",
        "tie": """
def f(s):
    own = s.diagonal(dim1=1, dim2=2)
    text, image = ((own >= s.flip(d).diagonal(dim1=1, dim2=2)).all(1) for d in (2, 1))
    return torch.stack([v.double().mean() for v in (text, image, text & image)])""",
        "not one of them": """
def f(s):
    own = s.diagonal(dim1=1, dim2=2)
    text, image = ((own > s.flip(d).diagonal(dim1=1, dim2=2)).any(1) for d in (2, 1))
    return torch.stack([v.double().mean() for v in (text, image, text & image)])""",
        "product": """
def f(s):
    own = s.diagonal(dim1=1, dim2=2)
    text, image = ((own > s.flip(d).diagonal(dim1=1, dim2=2)).all(1).double().mean() for d in (2, 1))
    return torch.stack([text, image, text * image])""",
        "differ": """
def f(s):
    own = s.diagonal(dim1=1, dim2=2)
    text, image = (own > s.flip(d).diagonal(dim1=1, dim2=2) for d in (2, 1))
    return torch.stack([v.double().mean() for v in (text, image, text & image)])""",
    },
    "disagreement": {
        "sign is turned": "def f(z): return entropy(z).mean() - marginal_entropy(z)",
        "marginal entropy alone": "def f(z): return marginal_entropy(z)",
        "not the logits": "def f(z): return entropy(z.mean(0)) - entropy(z).mean()",
        "not their sum": "def f(z): return marginal_entropy(z) - entropy(z).sum()",
        "nats": "def f(z): return (marginal_entropy(z) - entropy(z).mean()) / torch.tensor(2.0).double().log()",
        "shape": "def f(z): return marginal_entropy(z) - entropy(z)",
    },
    "view_gradient": {
        "sign is turned": """
def f(z):
    p, log_mean = z.softmax(1), z.softmax(1).mean(0).log()
    return p * (log_mean - (p * log_mean).sum(1, keepdim=True)) / len(z)""",
        "1/V is missing": """
def f(z):
    p, log_mean = z.softmax(1), z.softmax(1).mean(0).log()
    return -p * (log_mean - (p * log_mean).sum(1, keepdim=True))""",
        "own entropy": "def f(z): return -z.softmax(1) * (z.log_softmax(1) + entropy(z)[:, None]) / len(z)",
        "meet in the mean": "def f(z): return -z.softmax(1) * (z.log_softmax(1) + entropy(z)[:, None])",
        "factor of the whole": """
def f(z):
    p, log_mean = z.softmax(1), z.softmax(1).mean(0).log()
    return -(log_mean - (p * log_mean).sum(1, keepdim=True)) / len(z)""",
        "mean of the inner gradient": """
def f(z):
    p = z.softmax(1)
    return -p * p.mean(0).log() / len(z)""",
    },
    "parallel_filter": {
        "public code": """
def f(H, c, rho_c, rho_h):
    S, keep = len(H) - len(c), torch.zeros(len(H), dtype=torch.bool)
    near = torch.cat([torch.arange(S), S + c.argsort(descending=True)[: int(rho_c * len(c))]])
    keep[near[H[near].argsort()[: int(rho_h * len(near))]]] = True
    return keep""",
        "cosine filter is missing": _PARALLEL.format("torch.arange(len(c))", "int(rho_h * len(near))"),
        "entropy filter is missing": _PARALLEL.format("c.argsort(descending=True)[: int(rho_c * len(c))]", "len(near)"),
        "what the cosine filter left|differ": _PARALLEL.format(
            "c.argsort(descending=True)[: int(rho_c * len(c))]", "int(rho_h * len(c))"
        ),
        "smallest cosines": _PARALLEL.format("c.argsort()[: int(rho_c * len(c))]", "int(rho_h * len(near))"),
        "highest entropies": """
def f(H, c, rho_c, rho_h):
    S, keep = len(H) - len(c), torch.zeros(len(H), dtype=torch.bool)
    near = c.argsort(descending=True)[: int(rho_c * len(c))]
    keep[H[:S].argsort(descending=True)[: int(rho_h * S)]] = True
    keep[S + near[H[S + near].argsort(descending=True)[: int(rho_h * len(near))]]] = True
    return keep""",
        "shape": "def f(H, c, rho_c, rho_h): return H.argsort()[: int(rho_h * len(H))]",
    },
    "elected": {
        "stands first": "def f(z, k): return int(torch.bincount(z[entropy(z).argsort()[:k]].argmax(1)).argmax())",
        "all views vote": "def f(z, k): return int(torch.bincount(z.argmax(1)).argmax())",
        "one vote, however sure": "def f(z, k): return int(z[entropy(z).argsort()[:k]].softmax(1).mean(0).argmax())",
        "no class": "def f(z, k): return 7",
        "differ": "def f(z, k): return (int(z.mean(0).argmax()) + 1) % 5",
    },
    "mine": {
        "depend on its batch": "def f(c, x): return c(x) - c(x).mean(0)",
        "second time": "def f(c, x): return c(x + 0.1 * torch.randn_like(x))",
        "wanted are logits": "def f(c, x): return c(x).argmax(1)",
        "images were changed": "def f(c, x): return c(x.mul_(0.9))",
        "classifier was changed": """
def f(c, x):
    c.network.train()
    logits = c(x)
    c.network.eval()
    return logits""",
        "not finite": "def f(c, x): return c(x) / 0.0",
    },
    "honest_guide": {
        "own score": "def f(a, b): return (a.max(0).values.mean() + b.max(0).values.mean()) / 2",
        "praises it": "def f(a, b): return ((a + b) / 2).max(0).values.mean()",
        "by `b` too": "def f(a, b): return b.gather(0, a.argmax(0, keepdim=True)).mean()",
        "by `a` too": "def f(a, b): return a.gather(0, b.argmax(0, keepdim=True)).mean()",
        "one row for all": "def f(a, b): return (b[a.mean(1).argmax()].mean() + a[b.mean(1).argmax()].mean()) / 2",
    },
    "curse": {
        "in points": "def f(p, n, R): return (1 - torch.tensor(binom.cdf(range(n), n, p)) ** R).sum() / n - p",
        "take away": "def f(p, n, R): return 100 * (1 - torch.tensor(binom.cdf(range(n), n, p)) ** R).sum() / n",
        "approximation": "def f(p, n, R): return 100 * (2 * math.log(R) * p * (1 - p) / n) ** 0.5",
        "worst row": """
def f(p, n, R):
    return 100 * (((1 - torch.tensor(binom.cdf(range(n), n, p))) ** R).sum() / n - p)""",
        "from 0 on": """
def f(p, n, R):
    return 100 * ((1 - torch.tensor(binom.cdf(range(1, n), n, p)) ** R).sum() / n - p)""",
    },
    "survivors": {
        "Bonferroni": "def f(p, alpha): return (p <= alpha / len(p)).sum()",
        "no correction": "def f(p, alpha): return (p <= alpha).sum()",
        "first that fails": "def f(p, alpha): return (p.sort().values <= alpha / torch.arange(len(p), 0, -1)).sum()",
        "share of errors": """
def f(p, alpha):
    m = len(p)
    below = p.sort().values <= alpha * torch.arange(1, m + 1) / m
    return max((i + 1 for i in range(m) if below[i]), default=0)""",
        "sort them": "def f(p, alpha): return (p <= alpha / torch.arange(len(p), 0, -1)).long().cumprod(0).sum()",
    },
    "least_start": {
        "one too early": "def f(s, std, a): return int((a * std**2 / (a * std**2 + 1 - a) > s).sum()) - 1",
        "not kept": "def f(s, std, a): return int(((1 - a) / (a * std**2 + 1 - a) > s).sum())",
        "std squared": "def f(s, std, a): return int((a * std / (a * std + 1 - a) > s).sum())",
        "counts what x_t keeps": "def f(s, std, a): return int((a.sqrt() > s).sum())",
        "counts abar": "def f(s, std, a): return int((a > s).sum())",
        "differ": "def f(s, std, a): return int((a * std**2 / (a * std**2 + 1 - a) > s).sum()) + 1",
    },
    "replace_low": {
        "subtract them": "def f(x, y, d): return x + bicubic_low_pass(y, d)",
        "swap the two": "def f(x, y, d): return y + bicubic_low_pass(x - y, d)",
        "nothing but low": "def f(x, y, d): return bicubic_low_pass(y, d)",
        "sign is wrong": "def f(x, y, d): return x + bicubic_low_pass(x - y, d)",
        "mean of both": "def f(x, y, d): return x + bicubic_low_pass(y - x, d) / 2",
    },
    "push": {
        "over the whole batch": _PUSH.format("d.norm()"),
        "sign": _PUSH.format("-d.flatten(1).norm(dim=1).sum()"),
        "squared distance": _PUSH.format("d.square().sum()"),
        "differ": _PUSH.format("d.flatten(1).norm(dim=1).mean()"),
        "not with respect to x0_hat": """
def f(predict, x, y, d, w):
    v = predict(x).detach().requires_grad_()
    return torch.autograd.grad(w * bicubic_low_pass(y - v, d).flatten(1).norm(dim=1).sum(), v)[0]""",
        "low-pass is missing": """
def f(predict, x, y, d, w):
    x = x.requires_grad_()
    return torch.autograd.grad(w * (y - predict(x)).flatten(1).norm(dim=1).sum(), x)[0]""",
        "scale is missing": """
def f(predict, x, y, d, w):
    x = x.requires_grad_()
    return torch.autograd.grad(bicubic_low_pass(y - predict(x), d).flatten(1).norm(dim=1).sum(), x)[0]""",
    },
    "vote": {
        "logits added": "def f(z, y, T): return (z / T + y).softmax(1)",
        "mean of logits": "def f(z, y, T): return ((z / T + y) / 2).softmax(1)",
        "taken twice": "def f(z, y, T): return (((z / T).softmax(1) + y.softmax(1)) / 2).softmax(1)",
        "source alone": "def f(z, y, T): return ((z / T).softmax(1) + (y / T).softmax(1)) / 2",
        "do not multiply": "def f(z, y, T): return ((z * T).softmax(1) + y.softmax(1)) / 2",
        "not used": "def f(z, y, T): return (z.softmax(1) + y.softmax(1)) / 2",
        "sum to 2": "def f(z, y, T): return (z / T).softmax(1) + y.softmax(1)",
    },
    "scale_of": {
        "by the root": "def f(w, B, s): return w / B * s / 256",
        "do not multiply": "def f(w, B, s): return w * B**0.5 * s / 256",
        "grows with its side": "def f(w, B, s): return w / B**0.5",
        "enters once": "def f(w, B, s): return w / B**0.5 * (s / 256) ** 2",
        "is not used": "def f(w, B, s): return w * s / 256",
        "upside down": "def f(w, B, s): return w / B**0.5 * 256 / s",
    },
}
SPACE = {"torch": torch, "F": F, "expand": process.expand, "bicubic_low_pass": guidance.bicubic_low_pass}
SPACE |= {"binom": binom, "math": math, "entropy": entropy, "marginal_entropy": marginal_entropy}


def solutions() -> dict[str, str]:
    """Name of an exercise's function -> the code folded under "Solution", over all notebooks."""
    text = "\n".join(rules.source(c) for path in notebooks() for c in rules.load(path)["cells"])
    blocks = re.findall(r"<summary>Solution</summary>\s+```python\n(.*?)```", text, re.DOTALL)
    return {re.match(r"def (\w+)", block)[1]: block for block in blocks}


def check(name: str):
    """The check of an exercise, in whichever module it stands."""
    notebooks_of = (nb01_exercises, nb02_exercises, nb03_exercises, nb04_exercises)
    modules = (*notebooks_of, nb05_exercises, nb06_exercises, nb07_exercises)
    return next(getattr(m, f"check_{name}") for m in modules if hasattr(m, f"check_{name}"))


def function(code: str):
    space = dict(SPACE)
    exec(code, space)  # code of this file, and of the notebooks of this repository
    return next(v for k, v in space.items() if callable(v) and k not in SPACE and k != "__builtins__")


@pytest.fixture(autouse=True)
def _random():
    random.seed(0)


def test_every_exercise_has_a_solution_and_wrong_answers():
    assert set(solutions()) == set(WRONG)
    assert all(len(wrong) >= 2 for wrong in WRONG.values())


@pytest.mark.parametrize("name", WRONG)
def test_the_solution_passes_whatever_the_draw(name, capsys):
    for _ in range(20):
        check(name)(function(solutions()[name]))
    exercises.attempt(check(name), function(solutions()[name]))
    assert capsys.readouterr().out == f"{name}: right\n"


@pytest.mark.parametrize("name, says", [(name, says) for name, wrong in WRONG.items() for says in wrong])
def test_a_wrong_answer_is_told_what_is_wrong(name, says, capsys):
    for _ in range(20):
        exercises.attempt(check(name), function(WRONG[name][says]))
    for line in capsys.readouterr().out.splitlines():
        assert re.search(says, line), line


@pytest.mark.parametrize("name", WRONG)
def test_an_empty_body_is_no_fault(name, capsys):
    exercises.attempt(check(name), lambda *args: None)
    assert "not written yet" in capsys.readouterr().out

"""How fast is one update of Diffusion-TTA, stage by stage, and how much signal does it buy? Ratios within one run.

    python bench/speed.py [--images 16] [--pairs 60] [--rounds 7]

The plain loop is fixed here, after the published procedure: one image at a time, float32, micro-batches of 15 pairs,
the classifier run again in each, weight gradients of the diffusion model computed, the state deep-copied for the reset.
"""

import argparse
import copy
import time

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gentta_utils.diffusion.feedback import condition_gradient, probabilities
from gentta_utils.diffusion.pairs import draw_pairs
from gentta_utils.diffusion.process import add_noise, eps_error
from gentta_utils.models import zoo
from gentta_utils.models.copies import Copies
from gentta_utils.models.denoiser import Denoiser
from gentta_utils.streams.scenes import SceneSpec
from gentta_utils.streams.stream import stream
from gentta_utils.world.severities import VALIDATION

WINDOW, TEMPERATURE, MICRO = (150, 600), 3.0, 15


def plain(classifier, denoiser, images, t, eps, once=False, frozen=False, copied=True, micro=MICRO) -> Tensor:
    """One image after the other; the three switches take away one waste each. Returns dL/dp (B, K)."""
    classifier.requires_grad_(True)
    denoiser.requires_grad_(not frozen)
    out = []
    for b in range(len(images)):
        kept = copy.deepcopy((classifier.state_dict(), denoiser.state_dict())) if copied else None
        x0 = denoiser.encode(images[b : b + 1])
        total = torch.zeros(1, classifier.classes)
        p = None
        for part in torch.arange(t.shape[1]).split(micro):
            if p is None or not once:
                p = probabilities(classifier(images[b : b + 1]), TEMPERATURE)
            cond = p.detach().requires_grad_() if once else p
            if not once:
                p.retain_grad()
            x_t = add_noise(x0.expand(len(part), -1, -1, -1), t[b, part], eps[b, part], denoiser.alphas_cumprod)
            eps_hat = denoiser(x_t, t[b, part], cond.expand(len(part), -1))
            (eps_error(eps_hat, eps[b, part]).sum() / t.shape[1]).backward()
            total += cond.grad
        if once:
            (p * total).sum().backward()
        classifier.zero_grad()
        denoiser.zero_grad()
        if copied:
            classifier.load_state_dict(kept[0])
            denoiser.load_state_dict(kept[1])
        out.append(total[0].detach())
    classifier.requires_grad_(False)
    denoiser.requires_grad_(False)
    return torch.stack(out)


def ours(classifier, denoiser, images, t, eps, micro=48) -> Tensor:
    """The package's update: copies of the classifier side by side, gradient gathered on p."""
    task = Copies(classifier, "all", len(images))
    p = probabilities(task(images), TEMPERATURE)
    G, _ = condition_gradient(denoiser, denoiser.encode(images), p, t, eps, micro_batch=micro)
    (p * G).sum().backward()
    return G


def timed(call, repeats: int, warm: bool = True) -> tuple[float, Tensor]:
    """Fastest of `repeats` calls, in seconds, with what it returned; one call before them as a warm-up."""
    result, seconds = call() if warm else None, []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def stages(classifier, fp32: Denoiser, bf16: Denoiser, images: Tensor, pairs: int, rounds: int) -> float:
    """Print the time of each stage and its agreement with the plain loop; returns the last one's seconds per image.

    The stages take turns, and each ratio is the median over rounds: a machine that others share drifts by a tenth."""
    t, eps = draw_pairs(torch.arange(len(images)), pairs, fp32.shape, WINDOW)
    calls = {
        "plain loop": lambda: plain(classifier, fp32, images, t, eps),
        "classifier once": lambda: plain(classifier, fp32, images, t, eps, once=True),
        "+ frozen denoiser": lambda: plain(classifier, fp32, images, t, eps, once=True, frozen=True),
        "+ no deep copy": lambda: plain(classifier, fp32, images, t, eps, once=True, frozen=True, copied=False),
        "+ images side by side": lambda: ours(classifier, fp32, images, t, eps),
        "+ bf16": lambda: ours(classifier, bf16, images, t, eps),
    }
    G = {name: call() for name, call in calls.items()}  # also the warm-up
    seconds = torch.tensor([[timed(call, 1, warm=False)[0] for call in calls.values()] for _ in range(rounds)])
    ratios, reference = (seconds[:, :1] / seconds), G["plain loop"]
    for i, name in enumerate(calls):
        error = float((G[name] - reference).norm() / reference.norm())
        cosine = float(torch.cosine_similarity(G[name].flatten(), reference.flatten(), 0))
        print(
            f"  {name:<22} {1000 * seconds[:, i].median() / len(images) / pairs:6.2f} ms per pair   "
            f"{ratios[:, i].median():5.2f} x ({ratios[:, i].min():.2f} to {ratios[:, i].max():.2f})   "
            f"relative error of dL/dp {error:.1e}   cosine {cosine:.5f}",
            flush=True,
        )
    return float(seconds[:, -1].median()) / len(images) / pairs


def samples(denoiser, images: Tensor, p: Tensor, pairs: int, draws: int, **how) -> Tensor:
    """Independent estimates of dL/dp: (draws, B, K)."""
    x0, out = denoiser.encode(images), []
    for seed in range(draws):
        t, eps = draw_pairs(torch.arange(len(images)), pairs, denoiser.shape, seed=seed, purpose="bench", **how)
        out.append(condition_gradient(denoiser, x0, p, t, eps)[0])
    return torch.stack(out)


def centred(G: Tensor) -> Tensor:
    """dL/dp without its mean over classes, which no softmax can follow."""
    return G - G.mean(-1, keepdim=True)


def signal_to_noise(estimates: Tensor) -> tuple[float, float, float]:
    """norm(mean)^2 / trace(cov), both summed over images, with a 95% bootstrap interval over images.

    The signal is the product of the means of two halves of the draws, so that noise does not pass for signal."""
    signal = (estimates[::2].mean(0) * estimates[1::2].mean(0)).sum(-1)
    variance = estimates.var(0).sum(-1)
    rows = torch.randint(0, len(signal), (2000, len(signal)), generator=torch.Generator().manual_seed(0))
    ratios = signal[rows].sum(1) / variance[rows].sum(1)
    return float(signal.sum() / variance.sum()), *ratios.quantile(torch.tensor([0.025, 0.975])).tolist()


def peak(dtype: torch.dtype, n: int = 1536) -> float:
    """Best matrix product here, in FLOP/s."""
    a, b = torch.randn(2, n, n).to(dtype)
    seconds, _ = timed(lambda: a @ b, 8)
    return 2 * n**3 / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--draws", type=int, default=24)
    args = parser.parse_args()
    classifier = zoo.load("classifier/resnet")
    fp32 = zoo.load("denoiser/dit", precision="fp32")
    bf16 = zoo.load("denoiser/dit", precision="bf16")
    parts = [stream(SceneSpec(args.images // 4 or 1, name, 5, "select", 4500)) for name in VALIDATION]
    images = torch.cat([p.images for p in parts])
    print(f"{len(images)} images under the validation corruptions, {torch.get_num_threads()} threads")

    print(f"\none update of {args.pairs} pairs, stage by stage")
    per_pair = stages(classifier, fp32, bf16, images, args.pairs, args.rounds)
    with FlopCounterMode(display=False) as counter:
        t, eps = draw_pairs(torch.arange(len(images)), 8, fp32.shape, WINDOW)
        ours(classifier, fp32, images, t, eps)
    rate = counter.get_total_flops() / len(images) / 8 / per_pair
    print(f"  {rate / 1e9:.0f} GFLOP/s in bf16, {100 * rate / peak(torch.bfloat16):.0f}% of this machine's matmul peak")

    with torch.no_grad():
        logits = classifier(images)
    soft, hard = probabilities(logits, TEMPERATURE), probabilities(logits, 1.0)
    print("\nvariance of dL/dp, 8 pairs in the same window; iid draws are 1")
    kinds = [("iid", "fresh"), ("stratified", "fresh"), ("iid", "antithetic"), ("stratified", "antithetic")]
    reference = None
    for timesteps, noise in kinds:
        how = dict(window=WINDOW, timesteps=timesteps, noise=noise)
        estimates = samples(bf16, images, soft, 8, args.draws, **how)
        variances = [float(e.var(0).sum()) for e in (estimates, centred(estimates))]
        reference = reference or variances
        raw, reaching = (v / r for v, r in zip(variances, reference, strict=True))
        print(f"  {timesteps:<11} {noise:<11} {raw:.3f}   without the mean over classes {reaching:.3f}", flush=True)

    print("\npublished against ours: time to the same signal-to-noise, norm(mean)^2 / trace(cov) of the centred dL/dp")
    published = dict(window=(0, 1000), timesteps="iid", noise="fresh")
    rates = {}
    for name, p, pairs, how in (
        ("published", hard, 180, published),
        ("ours", soft, 8, dict(window=WINDOW, timesteps="stratified", noise="fresh")),
    ):
        ratio, low, high = signal_to_noise(centred(samples(bf16, images, p, pairs, args.draws, **how)))
        rates[name] = [v / pairs for v in (ratio, low, high)]
        print(
            f"  {name:<9} {ratio:8.3f} [{low:.3f}, {high:.3f}] for {pairs} pairs, {ratio / pairs:.5f} a pair",
            flush=True,
        )
    t, eps = draw_pairs(torch.arange(len(images)), 30, fp32.shape)
    seconds_plain, _ = timed(lambda: plain(classifier, fp32, images, t, eps), 1)
    speed_ratio = seconds_plain / len(images) / 30 / per_pair
    pairs_ratio = rates["ours"][0] / max(rates["published"][0], 1e-9)
    at_least = rates["ours"][1] / max(rates["published"][2], 1e-9)
    print(
        f"  {pairs_ratio:.1f} x fewer pairs, each {speed_ratio:.1f} x faster: {pairs_ratio * speed_ratio:.0f} x in time"
    )
    print(f"  at the unfavourable ends of both intervals: {at_least * speed_ratio:.0f} x")


if __name__ == "__main__":
    main()

"""How fast is this machine at what notebooks spend their time on? Half a second of it.

`python -m gentta_utils.runner.probe` prints the milliseconds of one pass; `costs` starts it, with the
threads that a run gets.
"""

import json
import subprocess
import sys
import time

from ..common.paths import ROOT

SECONDS = 0.5
BATCH, TOKENS, WIDTH, HEADS = 32, 64, 192, 6  # of the shipped DiT, in one of its micro-batches


def speed(environment: dict[str, str] | None = None) -> float | None:
    """Milliseconds of a pass in a process with these variables; None where it cannot be measured."""
    done = subprocess.run(
        [sys.executable, "-m", "gentta_utils.runner.probe"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    try:
        return float(json.loads(done.stdout))
    except ValueError:
        return None


def passes(seconds: float = SECONDS) -> list[float]:
    """Milliseconds of each of the passes that fit in this time, after two for warming up: a transformer block of the
    DiT's size, forward and back to its frozen weights' input, in the precision that notebooks use here."""
    import torch
    from torch import nn

    from ..common.devices import precision_on

    torch.manual_seed(0)
    norms = [nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2)]
    qkv, out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
    mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))
    for module in (qkv, out, mlp):
        module.requires_grad_(False)
    x = torch.randn(BATCH, TOKENS, WIDTH, requires_grad=True)
    half = precision_on("cpu") == "bf16"

    def once() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            q, k, v = qkv(norms[0](x)).view(BATCH, TOKENS, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            weights = (q @ k.transpose(-2, -1) * (WIDTH // HEADS) ** -0.5).softmax(-1)
            y = x + out((weights @ v).transpose(1, 2).flatten(2))
            y = y + mlp(norms[1](y))
        torch.autograd.grad(y.float().square().mean(), x)

    once(), once()
    taken, end = [], time.perf_counter() + seconds
    while not taken or time.perf_counter() < end:
        start = time.perf_counter()
        once()
        taken.append(1000 * (time.perf_counter() - start))
    return taken


if __name__ == "__main__":
    from statistics import median

    print(json.dumps(median(passes())))

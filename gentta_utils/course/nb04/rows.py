"""The rows of notebook 04's tables by name, its networks, and how a run of maps is described."""

from ...evaluation.records import Records
from ...evaluation.rows import pick
from ...evaluation.tables import Job
from ...methods import source
from ...models import zoo
from ...streams.maps import MapSpec
from ...world.severities import VALIDATION
from ..trials import job

NETWORKS = {
    "classes": ("segmentor/resnet", "segmentor/segformer"),
    "depth": ("depth/densenet", "depth/glpn"),
}
MAP_MODEL = {"classes": "maps/classes", "depth": "maps/depth"}
PURIFIER = "unconditional/unet-unshuffle"  # notebook 05's, which saw scenes of one object alone

SOURCE, LOW, OURS = "source", "low view", "Diffusion-TTA"
BOLD = "Diffusion-TTA, clean scenes ignored"
START, CHOICE = "its start, no feedback", "its start, judged alone"
ANOTHER, RANDOM = "placebo: another image", "placebo: random direction"
CEILING, INFORMED = "ceiling: trained on corruptions", "trained on 60,000 maps"
DILATE, BIAS, MEDIAN, GUIDED, BLEND = "dilation", "logit bias", "median filter", "guided filter", "mean map"
BN, TENT, CONSISTENCY, VIEWS, DDA = "BN", "TENT", "consistency", "mean of views", "DDA"
CONTROLS = (LOW, DILATE, BIAS, MEDIAN, GUIDED, BLEND)  # which change the image or the map, and understand nothing
RIVALS = (BN, TENT, CONSISTENCY, VIEWS, DDA)  # other methods of adaptation
PLACEBOS = (ANOTHER, RANDOM)
PARTS = {  # of `BOLD`: what its updates start from, and that judged, without any update
    START: dict(updates=0, trust=0, margin=0.0),
    CHOICE: dict(updates=0),
}


def here(target: str) -> tuple[str, ...]:
    """Those of `NETWORKS` whose weights are here."""
    return tuple(name for name in NETWORKS[target] if name in zoo.names())


def target_of(network: str) -> str:
    """ "classes" or "depth", by a network's name."""
    return "depth" if network.startswith("depth/") else "classes"


def map_job(method: str, settings, network: str, spec: MapSpec, label: str, **how) -> Job:
    """`trials.job` for a network that answers with maps, episodic, with the diffusion model that the method needs."""
    denoiser = PURIFIER if method == "dda" else MAP_MODEL[spec.target]
    return job(method, settings, network, spec, label, **dict(denoiser=denoiser, batch=12) | how)


def source_job(network: str, spec: MapSpec, view: str = "full", label: str | None = None) -> Job:
    """The frozen network."""
    label = label or (SOURCE if view == "full" else LOW)
    return map_job("source", source.Settings(view), network, spec, label, batch=100)


def validation_specs(target: str, n: int, start: int, severities: tuple[int, ...] = (3, 5)) -> list[MapSpec]:
    """n selection scenes under each validation corruption at each of these severities, the same scenes in both."""
    return [
        MapSpec(n, name, severity, "select", start + 20 * i, target=target)
        for i, name in enumerate(VALIDATION)
        for severity in severities
    ]


def of_network(runs: list[Records], network: str, label: str) -> list[Records]:
    """The runs of a row beside a network: of the ceiling, and of the network that knows more maps, it is another."""
    return pick(runs, label, beside(network, label))


def beside(network: str, label: str) -> str:
    """The network that a row is measured with."""
    return network + {CEILING: "-ceiling", INFORMED: "-60000"}.get(label, "")

"""Every method by name: a new one is one file and one line."""

from . import diffusion_classifier, diffusion_tta, ensemble, source

METHODS = {
    "source": source,
    "diffusion_classifier": diffusion_classifier,
    "ensemble": ensemble,
    "diffusion_tta": diffusion_tta,
}

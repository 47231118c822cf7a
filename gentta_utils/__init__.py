"""GenTTA: generative test-time adaptation, built step by step.

What most users need is here, loaded when it is first used:

    from gentta_utils import Models, SceneSpec, load, stream, run

The packages, each of which imports only those before it:

    common -> world, diffusion, runner -> models -> streams, methods -> evaluation -> recipes -> course
"""

import gc
import os

import lazy_loader

# Read when torch is loaded, so `import gentta_utils` comes first. Tensors on a CPU from huge pages: somewhat faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Torch and its company are millions of objects that stay. Looked through for garbage at every 700 new ones, they take a
# quarter longer to load.
if gc.get_threshold()[0] == 700:
    gc.set_threshold(10_000, *gc.get_threshold()[1:])

from .common.torchvision_shim import prepare_torchvision

__version__ = "0.1.0"
prepare_torchvision()  # torch itself is loaded when something needs it: what starts runs does not

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "common",
        "course",
        "diffusion",
        "evaluation",
        "methods",
        "models",
        "recipes",
        "runner",
        "streams",
        "world",
    ],
    submod_attrs={
        "common.randomness": ["generator"],
        "common.text": ["as_table"],
        "course": ["gradcam", "plots"],
        "diffusion.entropy": ["entropy"],
        "diffusion.error_table": ["error_table", "evenly", "plausible"],
        "diffusion.feedback": ["condition_gradient"],
        "diffusion.guidance": ["bicubic_low_pass"],
        "diffusion.mixture": ["GaussianMixture"],
        "diffusion.pairs": ["draw_pairs"],
        "diffusion.process": ["add_noise", "diffusion_loss", "eps_error"],
        "diffusion.reverse": ["noise_for"],
        "diffusion.sampling": ["ddim_step", "predicted_x0", "previous", "respaced", "sample"],
        "diffusion.synthesis": ["Synthesis", "synthesize"],
        "evaluation.evaluate": ["run"],
        "methods.base": ["Models", "Output"],
        "models": ["hub", "zoo"],
        "models.zoo": ["load"],
        "streams.folders": ["FolderSpec"],
        "streams.scenes": ["SceneSpec"],
        "streams.stream": ["Stream", "stream"],
        "world.views": ["low_pass"],
    },
)

"""Make `import torchvision` work beside a CPU-only torch; do nothing anywhere else.

The Linux wheel of torchvision 0.28 is linked against CUDA. Beside a CPU-only torch its compiled library does not load,
and its Python half then fails on operators that nobody has defined ("operator torchvision::nms does not exist").
Giving torch the *schemas* of these two operators is enough: transforms, models and datasets work, and so does all that
imports torchvision (timm, open_clip, peft, most of diffusers and transformers). Calling nms itself still fails.
"""

import importlib
import sys

import torch

_SCHEMAS = ("nms", "qnms")  # the operators that torchvision 0.28 registers without asking whether they exist
_library = None  # torch withdraws the schemas when this object is collected


def ensure_torchvision() -> str:
    """Import torchvision, defining the missing schemas first where that is needed.

    Returns "native" where it imports by itself, "shim" where the schemas were needed. Calling it again is harmless.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: it fails for another reason.
    """
    global _library
    if _library is not None:
        return "shim"
    try:
        importlib.import_module("torchvision")
        return "native"
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n == "torchvision" or n.startswith("torchvision.")]:
        del sys.modules[name]  # half loaded
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _SCHEMAS:
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
    return "shim"

"""Make `import torchvision` work beside a CPU-only torch; do nothing anywhere else.

The Linux wheel of torchvision 0.28 is linked against CUDA. Beside a CPU-only torch its compiled library does not load,
and its Python half then fails on operators that nobody has defined ("operator torchvision::nms does not exist").
Giving torch the *schemas* of these two operators is enough: transforms, models and datasets work, and so does all that
imports torchvision (timm, open_clip, peft, most of diffusers and transformers). Calling nms itself still fails.
"""

import importlib
import sys
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path

_SCHEMAS = ("nms", "qnms")  # the operators that torchvision 0.28 registers without asking whether they exist
_library = None  # torch withdraws the schemas when this object is collected


class _Before:
    """A finder of modules that finds none: it sees `import torchvision` come and defines what is missing first."""

    done = False  # it stays in the list, through which its caller is just going

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name == "torchvision" and not self.done:
            self.done = True
            _define_missing()


def prepare_torchvision() -> None:
    """From now on `import torchvision` works, whoever gives it. Loads neither torch nor torchvision."""
    if "torchvision" not in sys.modules and not any(isinstance(finder, _Before) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Before())


def ensure_torchvision() -> str:
    """Import torchvision, defining the missing schemas first where that is needed.

    Returns "native" where it imports by itself, "shim" where the schemas were needed. Calling it again is harmless.

    Raises:
        ImportError: torchvision is not installed.
    """
    prepare_torchvision()
    importlib.import_module("torchvision")
    return "native" if _library is None else "shim"


def _define_missing() -> None:
    global _library
    import torch

    spec = PathFinder.find_spec("torchvision")
    if spec is None or torch.version.cuda is not None or sys.platform != "linux":
        return
    for compiled in Path(spec.submodule_search_locations[0]).glob("_C*.so"):
        with suppress(OSError):  # torchvision itself passes over it too
            torch.ops.load_library(str(compiled))
    if not hasattr(torch.ops.torchvision, "nms"):
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in _SCHEMAS:
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

"""GenTTA: generative test-time adaptation, built step by step."""

import os

# Read when torch is loaded, so `import gentta_utils` comes first. Tensors on a CPU from huge pages: somewhat faster.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# A thread that waits for others sleeps instead of spinning: beside another busy process an adaptation that took 47 s
# took more than 150 s with spinning threads (bench/threads.py).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .torchvision_shim import prepare_torchvision

__version__ = "0.1.0"
prepare_torchvision()  # torch itself is loaded when something needs it: what starts runs does not

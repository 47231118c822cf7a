"""Progress bars that can be switched off: GENTTA_PROGRESS=0 for logs and committed notebooks."""

import os
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(iterable: Iterable | None = None, **kwargs) -> tqdm:
    """A tqdm bar on stderr over `iterable`, with the time left; draws nothing when GENTTA_PROGRESS is 0."""
    return tqdm(iterable, disable=os.environ.get("GENTTA_PROGRESS") == "0", dynamic_ncols=True, **kwargs)

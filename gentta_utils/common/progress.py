"""Progress bars for somebody who is there; nothing in logs, in committed and in checked notebooks."""

import os
import sys
from collections.abc import Iterable

from tqdm.auto import tqdm


def progress(iterable: Iterable | None = None, **kwargs) -> tqdm:
    """A tqdm bar over `iterable`, with the time left, in a notebook or on a terminal that somebody looks at.

    GENTTA_PROGRESS=0 draws none anywhere, GENTTA_PROGRESS=1 draws it everywhere."""
    wanted = os.environ.get("GENTTA_PROGRESS", "")
    shown = wanted == "1" or (wanted != "0" and somebody_looks())
    return tqdm(iterable, disable=not shown, dynamic_ncols=True, **kwargs)


def somebody_looks() -> bool:
    """In a kernel whether its front end could be asked for input (JupyterLab can, whatever executes notebooks without
    a reader says that it cannot: nbclient, papermill, nbconvert, nbval); elsewhere whether stderr is a terminal."""
    kernel = getattr(getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)(), "kernel", None)
    if kernel is not None:
        return bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin", False))
    return sys.stderr is not None and sys.stderr.isatty()

"""What the runs are at, for whoever waits: a live line in a terminal, a line now and then in a log."""

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from io import TextIOBase

EVERY = 30  # seconds between two lines in a log


class Watch:
    """Says which notebook and which cell is running. A context: what it says of itself ends with it.

    In a terminal one line is drawn again every second. Elsewhere a line is printed whenever a run ends, and every
    `EVERY` seconds if a run has come to another cell. GENTTA_PROGRESS=0 switches both off.

    Args:
        total: how many runs there are to do.
        seconds: for how long they are expected to run in all, if that is known.
        out: where the lines go; standard error if not given.
        clock: a clock in seconds.
    """

    def __init__(
        self,
        total: int,
        seconds: float | None = None,
        out: TextIOBase | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.total, self.seconds, self.out, self.clock = total, seconds, out or sys.stderr, clock
        self.done = self.bad = 0
        self.begun = clock()
        self.live: dict[str, tuple[int, int, float]] = {}  # run -> cell, cells, when the run began
        self.said, self.lock, self.over = "", threading.Lock(), threading.Event()
        self.silent = os.environ.get("GENTTA_PROGRESS") == "0"

    def __enter__(self) -> "Watch":
        if not self.silent and self.total:
            self.thread = threading.Thread(target=self._keep_saying, daemon=True)
            self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        if not self.silent and self.total:
            self.thread.join()
            if self.out.isatty():
                print(file=self.out, flush=True)

    def told(self, run: str, cell: int, cells: int) -> None:
        """A run begins a cell, its number from 1 on."""
        with self.lock:
            begun = self.live[run][2] if run in self.live else self.clock()
            self.live[run] = (cell, cells, begun)

    def ended(self, run: str, status: str) -> None:
        """A run has ended, "ok" or not."""
        with self.lock:
            self.done, self.bad = self.done + 1, self.bad + (status != "ok")
            *_, begun = self.live.pop(run, (self.begun,))
        if not self.silent and not self.out.isatty():
            line = f"{self.done} of {self.total}: {_readable(run)} {status}, {self.clock() - begun:.0f} s"
            print(line, file=self.out, flush=True)

    def line(self) -> str:
        """How far all runs are, and what each that is under way is at."""
        now = self.clock()
        with self.lock:
            at = [f"{_readable(run)} cell {i} of {n}, {now - begun:.0f} s" for run, (i, n, begun) in self.live.items()]
        counts = f"{self.done} of {self.total} done" + (f", {self.bad} failed" if self.bad else "")
        expected = f" of about {self.seconds:.0f}" if self.seconds else ""
        return " | ".join([f"{counts}, {now - self.begun:.0f}{expected} s", *at])

    def say(self) -> None:
        """Draw the line in a terminal; print it elsewhere if a run is at another cell than when it was last printed."""
        if self.out.isatty():
            width = shutil.get_terminal_size().columns - 1
            print("\r" + self.line()[:width].ljust(width), end="", file=self.out, flush=True)
            return
        with self.lock:
            at = str({run: cell for run, (cell, _, _) in self.live.items()})
            new, self.said = self.live and at != self.said, at
        if new:
            print(self.line(), file=self.out, flush=True)

    def _keep_saying(self) -> None:
        while not self.over.wait(1 if self.out.isatty() else EVERY):
            self.say()


def _readable(run: str) -> str:
    """Its name without the checksum of its parameters."""
    return re.sub(r"-[0-9a-f]{8}$", "", run)

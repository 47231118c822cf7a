"""Kernels of notebooks, forked from a process that has loaded the libraries already: four seconds less for each.

`python forked_kernels.py SOCKET` is that process; it lives as long as its standard input is open. A kernel's command is
`python -S forked_kernels.py SOCKET ARGUMENTS`, which asks for a kernel and lives as long as it; killed, it takes the
kernel with it. The package itself is loaded by each kernel, and what starts kernels is the tested code as it is.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

LIBRARIES = (
    "torch", "torchvision", "diffusers.models.unets", "diffusers.schedulers", "transformers.modeling_utils", "timm",
    "peft", "open_clip", "torchmetrics.functional", "matplotlib.pyplot", "scipy.stats", "skimage.feature",
    "ipykernel.kernelapp", "ipywidgets", "torch._dynamo",
)  # fmt: skip


@contextmanager
def started(environment: dict[str, str]):
    """Variables with which Jupyter's "python3" is forked; libraries have read `environment` as they were loaded.

    No variables, and kernels as ever, where a process with these libraries may not be forked (all but Linux)."""
    if sys.platform != "linux":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="gentta-") as folder:
        address, spec = f"{folder}/s", Path(folder) / "kernels" / "python3" / "kernel.json"
        argv = [sys.executable, "-S", __file__, address, "-f", "{connection_file}"]
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}), encoding="utf-8")
        how = dict(env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with subprocess.Popen([sys.executable, __file__, address], **how) as server:
            assert server.stdout.readline() == b"ready\n"
            try:
                yield {"JUPYTER_PATH": folder}
            finally:
                server.kill()


def ask(address: str, arguments: list[str]) -> None:
    """One kernel with the variables, folder and streams of this process; returns when it has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        request = json.dumps([arguments, os.getcwd(), dict(os.environ)]).encode()
        socket.send_fds(line, [len(request).to_bytes(4, "big")], [0, 1, 2])
        line.sendall(request)
        line.recv(1)


def serve(address: str) -> None:
    import gentta_utils  # noqa: F401  (torchvision beside a torch without CUDA)

    for name in LIBRARIES:
        __import__(name)
    gc.collect()
    gc.freeze()  # or a collection in a kernel would copy all that it shares
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
        while True:
            line, _ = door.accept()
            size, streams, *_ = socket.recv_fds(line, 4, 3)
            if not os.fork():
                door.close()
                return kernel(line, int.from_bytes(size, "big"), streams)
            line.close()
            for stream in streams:
                os.close(stream)


def kernel(line: socket.socket, size: int, streams: list[int]) -> None:
    arguments, folder, environment = json.loads(line.makefile("rb").read(size))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=lambda: (line.recv(1), os._exit(1)), daemon=True).start()  # whoever asked has gone
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = [*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]  # it says nothing then, and ends with it
    import numpy as np
    import torch
    from ipykernel import kernelapp

    np.random.seed()  # noqa: NPY002  (of each kernel its own, as ever)
    if "OMP_NUM_THREADS" in os.environ:  # read as torch was loaded
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    kernelapp.launch_new_instance()


if __name__ == "__main__":
    serve(sys.argv[1]) if len(sys.argv) == 2 else ask(sys.argv[1], sys.argv[2:])

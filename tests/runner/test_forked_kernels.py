"""Kernels that the long tests fork: as if each had been started, and gone when whoever asked for it is."""

import time

import psutil
import pytest
from jupyter_client import KernelManager

ASKED = """
import os, sys, threading
import numpy as np
before = "gentta_utils.models" in sys.modules
import torch
print(os.getcwd(), os.environ["ONLY_HERE"], "JUPYTER_PATH" in os.environ, torch.get_num_threads(), before, sep="|")
print(np.random.rand())
"""


@pytest.fixture
def start(forked, tmp_path, monkeypatch):
    """start() -> a manager and a client of a kernel in a folder of its own."""
    if not forked:
        pytest.skip("kernels are forked on Linux alone")
    monkeypatch.setenv("JUPYTER_PATH", forked["JUPYTER_PATH"])
    monkeypatch.setenv("ONLY_HERE", "yes")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started = []

    def start():
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel(cwd=tmp_path)
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=600)
        started.append((manager, client))
        return manager, client

    yield start
    for manager, client in started:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def said(client, code: str) -> list[str]:
    lines = []
    client.execute_interactive(code, output_hook=lambda m: lines.append(m["content"].get("text", "")), timeout=600)
    return "".join(lines).splitlines()


def test_it_is_as_if_it_had_been_started(start, tmp_path):
    first, second = (said(start()[1], ASKED) for _ in range(2))
    assert first[0] == second[0] == f"{tmp_path}|yes|True|1|False"
    assert first[1] != second[1]  # chance is not shared


def test_it_goes_with_whoever_asked_for_it(start):
    manager, client = start()
    pid = int(said(client, "import os; print(os.getpid())")[0])
    assert psutil.pid_exists(pid)
    manager.provisioner.process.kill()
    while psutil.pid_exists(pid):  # the limit of all tests ends it otherwise
        time.sleep(0.1)

"""The widgets, moved with the keys of a real browser, in JupyterLab as `make lab` starts it.

Two notebooks are cut down to the cells that their widget needs, in fast mode: what is tested is the way from a slider
through the kernel to the picture, which no test in the kernel can see."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import notebook_rules as rules
import pytest

from gentta_utils.common.paths import NOTEBOOKS, ROOT

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDGETS = {"00_start_here": ["a", "b", "c"], "01_diffusion_loss_basics": ["t", "noise"]}  # sliders, top to bottom
WAIT = 600  # seconds for whatever takes one or ten on a quiet machine
ERRORS = "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']"
SLIDER, PICTURE = ".jupyter-widgets.widget-slider", ".jupyter-widgets .jp-OutputArea img"
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
REPLACED = "([css, old]) => { const now = document.querySelector(css); return now && now.src !== old }"
FAILING = """\
from gentta_utils.course.widgets import explore
explore(lambda ax, x: ax.set(title=1 / (3 - x)), "an empty picture", x=(0, 3, 2))"""
SETTINGS = {
    # else a cell that was never scrolled to has no output in the page
    "notebook-extension/tracker": {"windowingMode": "none"},
    # nothing is asked of the network
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


def widget_notebook(name: str) -> nbformat.NotebookNode:
    """The cells of a course notebook that its first widget needs, in fast mode."""
    nb = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in rules.tagged(nb):
        cell.source += "\nfast = True"
    cells = rules.code_cells(nb)
    last = next(i for i, cell in enumerate(cells) if "explore(\n" in cell.source)
    nb.cells = [cells[i] for i in rules.needed_cells([cell.source for cell in cells], last)]
    for cell in nb.cells:
        cell.outputs, cell.execution_count = [], None
    return nb


@pytest.fixture(scope="module")
def browser():
    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        pytest.skip("no browser: install Debian's chromium to run it: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: install .[test] to run it")
    with playwright.sync_playwright() as p:
        # root has no sandbox, and a container often has little shared memory
        running = p.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """JupyterLab with both notebooks in its folder, apart from all settings of the user: its address and its token."""
    home = tmp_path_factory.mktemp("lab")
    for part in ("notebooks", "config", "runtime"):
        (home / part).mkdir()
    for name in WIDGETS:
        nbformat.write(widget_notebook(name), home / "notebooks" / f"{name}.ipynb")
    failing = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(FAILING)], metadata=KERNEL)
    nbformat.write(failing, home / "notebooks" / "failing.ipynb")
    for name, values in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values), encoding="utf-8")
    places = {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "JUPYTER_DATA_DIR": "data",
        "IPYTHONDIR": "ipython",
    }
    env = os.environ | {key: str(home / part) for key, part in places.items()}
    env |= {"GENTTA_INTERACTIVE": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    options = ["--no-browser", "--allow-root", "--port=0", "--IdentityProvider.token=course"]
    with (home / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], cwd=home / "notebooks", env=env, stdout=log, stderr=log
        )
        try:
            yield address(server, home)
        finally:
            server.terminate()  # it ends its kernels first
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


def address(server: subprocess.Popen, home: Path) -> str:
    """Where the server answers, as it writes when it does."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end and server.poll() is None:
        for path in (home / "runtime").glob("jpserver-*.json"):
            if text := path.read_text(encoding="utf-8"):
                return json.loads(text)["url"]
        time.sleep(0.2)
    raise AssertionError("JupyterLab does not start:\n" + (home / "log").read_text(encoding="utf-8"))


def run_all(browser, lab: str, name: str):
    """The page of a notebook, run up to its widget, and the list of what the browser's console complains of."""
    page = browser.new_page(viewport={"width": 1200, "height": 1000})
    page.set_default_timeout(1000 * WAIT)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{lab}lab/workspaces/{name}/tree/{name}.ipynb?token=course")
    page.locator("#jp-main-statusbar").get_by_text("| Idle").wait_for()  # what is run before the kernel is up, is lost
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.locator(f"{SLIDER}, {ERRORS}").first.wait_for()
    assert page.locator(ERRORS).all_inner_texts() == []
    return page, complaints


@pytest.mark.browser
@pytest.mark.timeout(4 * WAIT)
@pytest.mark.parametrize("name", WIDGETS)
def test_moved_sliders_change_the_picture(name, browser, lab):
    page, complaints = run_all(browser, lab, name)
    picture, sliders = page.locator(PICTURE), page.locator(SLIDER)
    assert sliders.locator(".widget-label").all_inner_texts() == WIDGETS[name]
    for slider in sliders.all():
        for _ in range(3):
            before, readout = picture.get_attribute("src"), slider.locator(".widget-readout").inner_text()
            slider.locator(".noUi-handle").press("ArrowRight")
            page.wait_for_function(REPLACED, arg=[PICTURE, before])
            assert slider.locator(".widget-readout").inner_text() != readout
    assert page.locator(ERRORS).all_inner_texts() == []
    assert complaints == []
    page.close()


@pytest.mark.browser
@pytest.mark.timeout(4 * WAIT)
def test_what_a_moved_slider_raises_is_seen(browser, lab):
    page, _ = run_all(browser, lab, "failing")
    page.locator(PICTURE).wait_for()
    page.locator(SLIDER).locator(".noUi-handle").press("ArrowRight")
    page.locator(ERRORS).wait_for()
    assert "ZeroDivisionError" in page.locator(ERRORS).inner_text()
    assert page.locator(PICTURE).count() == 0
    page.locator(SLIDER).locator(".noUi-handle").press("ArrowLeft")
    page.locator(PICTURE).wait_for()
    assert page.locator(ERRORS).count() == 0
    page.close()

"""The widgets as a learner meets them: a real JupyterLab in a real browser that has no screen.

Each chapter with a widget is opened, run as a whole, and then its sliders are moved and its buttons pressed, and the
picture must change. Needs selenium and Chromium with its driver (on Debian: apt install chromium chromium-driver).
"""

import os
import re
import secrets
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import crew
import pytest

webdriver = pytest.importorskip("selenium.webdriver", reason='selenium is not installed: pip install -e ".[test]"')
pytest.importorskip("jupyterlab", reason='jupyterlab is not installed: pip install -e ".[course]"')
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
if not (CHROMIUM and DRIVER):
    pytest.skip("no Chromium with its driver: apt install chromium chromium-driver", allow_module_level=True)

USED = {path.stem: sorted(set(re.findall(r"widgets\.(slider|panel)\(", path.read_text(encoding="utf-8"))))
        for path in sorted((ROOT / "notebooks").glob("*.py"))}
CHAPTERS = {name: kinds for name, kinds in USED.items() if kinds}
PATIENCE = 300                                            # seconds for what takes one or two on an idle machine
SETTINGS = {"notebook-extension/tracker": '{"windowingMode": "none"}',                    # the whole page is there
            "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}'}

RUN_ALL = """
const app = window.jupyterapp;                            // from --expose-app-in-browser
window.ran = null;                                        // asked for again and again: one long call would time out
(async () => {
    await app.restored;
    const panel = app.shell.currentWidget;
    await panel.context.ready;
    await panel.sessionContext.ready;
    await app.commands.execute("notebook:run-all-cells");
    const cells = panel.content.widgets.filter(cell => cell.model.type === "code");
    window.ran = {counts: cells.map(cell => cell.model.executionCount),
                  errors: cells.flatMap(cell => cell.model.outputs.toJSON()).filter(o => o.output_type === "error")
                               .map(o => o.ename + ": " + o.evalue)};
})().catch(error => { window.ran = {errors: [String(error)], counts: []}; });
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own: address, token, and an empty folder to work in. No setting of this machine is read."""
    home = tmp_path_factory.mktemp("lab")
    for name, text in SETTINGS.items():
        path = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (home / "work").mkdir()
    port = crew.free_port()
    token = secrets.token_hex(16)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "run"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
               "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
               f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={home / 'work'}"]
    log = home / "log"
    with log.open("w") as out:
        server = subprocess.Popen(command, env=environment, cwd=home, stdout=out, stderr=subprocess.STDOUT)
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=10).close()
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()
                time.sleep(0.5)
        yield address, token, home / "work"
    finally:
        server.terminate()                                            # it ends its kernels
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # No sandbox: the only pages are ours, and in a container, or as root, there would be no browser at all.
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
                   "--window-size=1400,1000", f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(option)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def wait(browser, condition, message: str):
    return WebDriverWait(browser, PATIENCE).until(lambda _: condition(), message)


def picture(widget) -> str:
    """The picture that a widget shows: its bytes, as the page has them."""
    return widget.find_element(By.CSS_SELECTOR, ".widget-html img").get_attribute("src")


def move(browser, slider) -> None:
    """With the arrow key, then with the mouse to the other end and back."""
    handle = slider.find_element(By.CSS_SELECTOR, ".noUi-handle")
    label = slider.find_element(By.CSS_SELECTOR, ".widget-readout")
    track = slider.find_element(By.CSS_SELECTOR, ".noUi-target")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
    seen = [(label.text, picture(slider))]

    def moved(how):
        wait(browser, lambda: label.text != seen[-1][0] and picture(slider) != seen[-1][1], f"{how}: nothing changes")
        seen.append((label.text, picture(slider)))

    first = float(handle.get_attribute("aria-valuenow")) == float(handle.get_attribute("aria-valuemin"))
    handle.send_keys(Keys.ARROW_RIGHT if first else Keys.ARROW_LEFT)
    moved("the arrow key")
    for side in (1, -1):
        edge = side * track.size["width"] // 2
        ActionChains(browser).click_and_hold(handle).move_to_element_with_offset(track, edge, 0).release().perform()
        moved("the mouse")
    assert len({src for _, src in seen[-2:]}) == 2


def press(browser, panel) -> None:
    """A new seed, if the panel has one, and a new prompt; then the button."""
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", panel)
    button = panel.find_element(By.TAG_NAME, "button")
    for kind, text in (("text", "a blue square moves left"), ("number", "3")):
        for field in panel.find_elements(By.CSS_SELECTOR, f"input[type={kind}]"):
            field.send_keys(Keys.CONTROL, "a")
            field.send_keys(text, Keys.TAB)
    before = picture(panel)
    button.click()
    wait(browser, lambda: picture(panel) != before, "the button: nothing changes")
    wait(browser, lambda: button.is_enabled() and button.text == "Run", "the button does not come back")


def test_the_chapters_with_widgets_are_found():
    assert "slider" in CHAPTERS["00_first_clip"]
    assert "06_sampling" not in USED or "panel" in CHAPTERS["06_sampling"]
    assert "slider" in CHAPTERS["09_measuring"]


@pytest.mark.parametrize("name, kinds", CHAPTERS.items(), ids=CHAPTERS)
def test_widgets_are_alive(name, kinds, lab, browser):
    address, token, folder = lab
    shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", folder)         # what is saved, is saved there
    browser.get(f"{address}/doc/tree/{name}.ipynb?token={token}")
    wait(browser, lambda: browser.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-OutputArea img"), "no notebook")
    page = browser.find_element(By.CSS_SELECTOR, ".jp-Notebook")
    assert "Run this notebook to use the" in page.text and "Error displaying widget" not in page.text    # as saved

    browser.execute_script(RUN_ALL)
    result = wait(browser, lambda: browser.execute_script("return window.ran"), "the notebook does not come to its end")
    assert result["errors"] == [] and all(result["counts"])
    for kind, act in (("slider", move), ("panel", press)):
        found = page.find_elements(By.CSS_SELECTOR, f".minit2v-{kind}")
        assert bool(found) == (kind in kinds)
        for widget in found:
            wait(browser, lambda: widget.find_elements(By.CSS_SELECTOR, ".widget-html img"), f"the {kind} is empty")
            act(browser, widget)

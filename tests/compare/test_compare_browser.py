"""The report in headless Chromium, driven over WebDriver with the standard library alone."""

import json
import re
import shutil
import subprocess
import time
import urllib.request

import pytest

from compresskd.compare import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (shutil.which("chromium") and shutil.which("chromedriver")),
        reason="needs chromium and chromedriver on the path",
    ),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
)  # fmt: skip


class Browser:
    """The few WebDriver commands that these tests need."""

    def __init__(self, port, profile, *flags):
        self.base = f"http://127.0.0.1:{port}"
        options = {"binary": shutil.which("chromium"), "args": [*FLAGS, *flags, f"--user-data-dir={profile}"]}
        always = {
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"performance": "ALL", "browser": "ALL"},
        }
        session = self.call("POST", "/session", {"capabilities": {"alwaysMatch": always}})
        self.base += f"/session/{session['sessionId']}"

    def call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.base + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path):
        self.call("POST", "/url", {"url": path.as_uri()})

    def script(self, text, *arguments):
        return self.call("POST", "/execute/sync", {"script": text, "args": list(arguments)})

    def log(self, kind):
        return self.call("POST", "/se/log", {"type": kind})

    def press(self, key):
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})


@pytest.fixture
def browser(tmp_path):
    with (tmp_path / "driver.log").open("w+b") as log:
        driver = subprocess.Popen([shutil.which("chromedriver"), "--port=0"], stdout=log, stderr=log)
        started = None
        try:
            deadline = time.monotonic() + 60
            while (
                found := re.search(rb"successfully on port (\d+)", (tmp_path / "driver.log").read_bytes())
            ) is None:
                assert driver.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            started = Browser(int(found[1]), tmp_path / "profile")
            yield started
        finally:
            if started is not None:
                started.call("DELETE", "")
            driver.terminate()
            driver.wait(30)


@pytest.fixture
def report(tmp_path, sweep, run):
    for number in range(150):
        run(sweep / f"<script>document.title='owned'<{number}", config__rank=number + 100, seed=9, config__seed=9,
            stages__0__metrics={"test_accuracy": 0.5 + number / 1000})  # fmt: skip
    for folder in sweep.glob("rank*"):
        lines = [
            {"stage": "distill", "epoch": e, "validation_accuracy": e / 10, "train_loss": 1.0}
            for e in range(5)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = tmp_path / "report.html"
    assert main([str(sweep), "--html", str(path)]) == 0
    return path


COLUMN = """
const table = document.querySelector('#results table');
const index = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === arguments[0]);
const shown = [...table.tBodies[0].rows].filter(row => row.offsetParent !== null);
return {sort: table.tHead.rows[0].cells[index].ariaSort, texts: shown.map(row => row.cells[index].textContent)};
"""
BUTTON = """
const cells = [...document.querySelectorAll('#results th')];
const button = cells.find(cell => cell.textContent === arguments[0]).querySelector('button');
"""


def test_report_in_a_browser(browser, report):
    browser.call("POST", "/url", {"url": "about:blank"})
    browser.log("performance")  # empties it of what the browser's own start page asked
    browser.open(report)
    assert browser.script("return document.title") == "Comparison of runs"  # no hostile name ran

    first = browser.script(COLUMN, "rank")
    assert len(first["texts"]) == 100
    assert first["sort"] is None

    browser.script(BUTTON + "button.click()", "rank")
    by_rank = browser.script(COLUMN, "rank")
    assert by_rank["sort"] == "ascending"
    assert by_rank["texts"][:4] == ["4", "16", "100", "101"]  # as numbers, not as text

    browser.script(BUTTON + "button.focus()", "rank")
    browser.press("\ue007")  # Enter
    by_rank = browser.script(COLUMN, "rank")
    assert by_rank["sort"] == "descending"
    assert by_rank["texts"][:2] == ["249", "248"]

    browser.script(BUTTON + "button.click()", "± std")  # values that are missing in most rows stay last
    browser.script(BUTTON + "button.click()", "± std")
    assert "–" not in browser.script(COLUMN, "± std")["texts"][:2]

    more = "document.querySelector('#results .tools button')"
    assert browser.script(f"return {more}.textContent") == "Show all 152"
    browser.script(f"{more}.click()")
    assert len(browser.script(COLUMN, "rank")["texts"]) == 152

    browser.script(
        "const box = document.querySelector('#results input'); box.value = '249';"
        "box.dispatchEvent(new Event('input'))"
    )
    assert browser.script(COLUMN, "rank")["texts"] == ["249"]

    boxes = browser.script(
        "return [...document.querySelectorAll('svg.plot')].map(plot => {"
        "const box = plot.getBoundingClientRect(); return [box.width, box.height,"
        " plot.querySelectorAll('.point, .curve').length, plot.querySelectorAll('path.front').length]})"
    )
    assert len(boxes) == 5
    assert all(width > 300 and height > 150 and marks > 0 for width, height, marks, _ in boxes)
    assert [fronts for *_, fronts in boxes] == [1, 1, 1, 0, 0]

    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.script(colour)
    features = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.call(
        "POST", "/goog/cdp/execute", {"cmd": "Emulation.setEmulatedMedia", "params": {"features": features}}
    )
    assert (light, browser.script(colour)) == ("rgb(255, 255, 255)", "rgb(21, 23, 26)")

    events = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked - {"data:,"} == {report.as_uri()}
    assert [entry["message"] for entry in browser.log("browser")] == []  # no script error, nothing blocked

"""The page of a run as people open it: while the run lives, and through axe-core's rules of accessibility."""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_report_page import CHROMIUM
from tiny_runs import config_for, noisy_pictures

from glocal.cli.report import run
from glocal.report.page import Shown, write_report
from glocal.training.loop import pretrain
from glocal.training.records import Records

AXE = next(
    (
        path
        for path in (
            Path(os.environ.get("AXE_CORE", "axe.min.js")),
            Path(__file__).parents[1] / "node_modules" / "axe-core" / "axe.min.js",
        )
        if path.is_file()
    ),
    None,
)
ASK = """<script>
setTimeout(async () => {
  const found = await axe.run(document, { runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"] });
  const said = document.createElement("pre");
  said.id = "axe";
  const broken = found.violations.map((v) => [v.id, v.help, v.nodes.length, v.nodes[0].html.slice(0, 160)]);
  said.textContent = JSON.stringify({ broken, dark: matchMedia("(prefers-color-scheme: dark)").matches });
  document.body.append(said);
}, 1500);
</script>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = pretrain(
        config_for(folder, tmp_path_factory.mktemp("run") / "run", "training.steps=2", recipe="dino")
    )
    return write_report(run, shown=Shown(images=12, samples=4))


def broken_rules(text: str, folder: Path, width: int = 1400, scheme: str = "light") -> list[Any]:
    """What axe-core finds wrong with a page, in a window of this width and a light or dark scheme."""
    if CHROMIUM is None or AXE is None:
        missing = (
            "chromium (apt-get install chromium)" if CHROMIUM is None else "axe-core (npm install axe-core)"
        )
        pytest.skip(f"no {missing} here; AXE_CORE= names axe.min.js elsewhere")
    copy = folder / "copy.html"
    script = f"<script>{AXE.read_text()}</script>{ASK}"
    copy.write_text(
        text.replace('<script type="application/json"', script + '<script type="application/json"', 1)
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
        "--virtual-time-budget=60000", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    said = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said is not None, done.stderr[-2000:]
    found = json.loads(html.unescape(said.group(1)))
    assert found["dark"] == (scheme == "dark")
    return list(found["broken"])


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (500, "light"), (1400, "dark")])
def test_the_page_breaks_none_of_axes_rules(page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    """WCAG 2.1 A and AA: contrast, names of controls, alternative texts, language."""
    assert broken_rules(page.read_text(), tmp_path, width, scheme) == []


def test_axe_would_see_a_picture_without_a_text_and_pale_words(page: Path, tmp_path: Path) -> None:
    spoiled = page.read_text().replace(
        "</main>", '<img src="data:,"><p style="color:#ddd;background:#fff">pale</p></main>', 1
    )
    assert {rule for rule, *_ in broken_rules(spoiled, tmp_path)} == {"image-alt", "color-contrast"}


def test_a_page_follows_a_run_that_lives(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages are written while the run goes on, ask to be opened anew, and end with one that does not."""
    pages: list[str] = []
    words = [str(tmp_path / "run"), "live=true", "every=5", "images=8", "samples=2"]
    write, waits = Records.write, threading.Event()

    def slowly(self: Records, *arguments: Any) -> Any:
        """The run goes on once a page was written beside it."""
        result = write(self, *arguments)
        if arguments[0] >= 4:
            waits.wait(60)
        return result

    def sleep(seconds: float) -> None:
        pages.append((tmp_path / "run" / "report.html").read_text())
        waits.set()
        training.join(120)

    monkeypatch.setattr(Records, "write", slowly)
    monkeypatch.setattr("glocal.cli.report.time.sleep", sleep)
    more = ("training.steps=6", "training.checkpoint_every=2", "verdict.enabled=true")
    training = threading.Thread(
        target=pretrain, args=(config_for(folder, tmp_path / "run", *more, recipe="dino"),)
    )
    training.start()
    while not (tmp_path / "run" / "checkpoints" / "last.pt").exists():
        threading.Event().wait(0.05)
        assert training.is_alive()
    began = time.monotonic()
    run(words)
    training.join(60)
    assert not training.is_alive() and time.monotonic() - began < 120
    last = (tmp_path / "run" / "report.html").read_text()
    assert (
        pages and all('http-equiv="refresh"' in page for page in pages) and 'http-equiv="refresh"' not in last
    )
    assert "of 6" in pages[0]

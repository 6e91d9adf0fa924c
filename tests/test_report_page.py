"""The page of a run: its figures against slow versions, hostile names, and a real browser that clicks a patch."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_config
from PIL import Image

from glocal.report.embedded import script_json, sheet
from glocal.report.model_looks import choose_samples
from glocal.report.page import LARGEST, Shown, write_report
from glocal.report.patch_store import StoredPatches, store_patches
from glocal.report.projections import cluster_patches, foreground, otsu_threshold, patch_colours, plane_map
from glocal.report.run_story import charts
from glocal.training.loop import pretrain

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<img src=x onerror=alert(1)>'\"&.png"
HOSTILE_CLASS = "<script>window.hacked=1<"


# --------------------------------------------------------------------------------------------------- stored patches


def similarities(stored: StoredPatches, image: int, patch: int) -> np.ndarray:
    """What a click on the page shows, (images, patches): cosines of one patch with every patch, from the stored bytes."""
    values = stored.values.astype(np.int64)
    lengths = np.sqrt((values * values).sum(-1).astype(np.float64))
    cosines: np.ndarray = values @ values[image, patch] / (lengths * lengths[image, patch])
    return cosines


def test_similarities_equal_cosines_of_the_stored_bytes() -> None:
    stored = store_patches(torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0)), (2, 3))
    found = similarities(stored, 1, 4)
    for image in range(3):
        for patch in range(6):
            a, b = stored.values[1, 4].tolist(), stored.values[image, patch].tolist()
            product = sum(x * y for x, y in zip(a, b, strict=True))
            below = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            assert found[image, patch] == product / below
    assert found[1, 4] == 1.0


def test_stored_similarities_are_close_to_those_of_the_features() -> None:
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(20, 96, generator=generator)
    patches = torch.randn(4, 9, 20, generator=generator) @ basis
    unit = torch.nn.functional.normalize(patches, dim=-1)
    stored = store_patches(patches, (3, 3))
    assert stored.values.shape == (4, 9, 64) and stored.kept > 0.9999
    exact = (unit.flatten(0, 1) @ unit[2, 5]).view(4, 9).numpy()
    assert np.abs(similarities(stored, 2, 5) - exact).max() < 0.01


# ------------------------------------------------------------------------------------------------------ projections


def test_colours_have_one_basis_for_all_images() -> None:
    """Equal patches of different images get equal colours, and a second call the same ones."""
    patches = torch.randn(3, 8, 12, generator=torch.Generator().manual_seed(2))
    patches[2, 5] = patches[0, 1]
    colours = patch_colours(patches)
    assert (colours[2, 5] == colours[0, 1]).all()
    assert (patch_colours(patches.clone()) == colours).all()
    assert (patch_colours(-patches) != colours).any()


def test_otsu_equals_trying_every_threshold() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 300), rng.normal(7, 1, 100)])
    best, spread = 0.0, -1.0
    for edge in np.histogram(values, 128)[1][1:-1]:
        low, high = values[values <= edge], values[values > edge]
        if len(low) and len(high):
            between = len(low) * len(high) * (low.mean() - high.mean()) ** 2
            if between > spread:
                best, spread = edge, between
    found = otsu_threshold(torch.from_numpy(values))
    assert abs(found - best) < 0.5 and 2 < found < 5


def test_foreground_is_the_side_of_the_middle() -> None:
    patches = torch.zeros(2, 25, 4)
    patches[..., 0] = 1.0
    middle = [6, 7, 8, 11, 12, 13, 16, 17, 18]
    patches[:, middle] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    front = foreground(patches, (5, 5))
    assert front[0].nonzero().flatten().tolist() == middle


def test_samples_differ_and_each_brings_its_nearest_image() -> None:
    embeddings = torch.eye(6).repeat_interleave(2, 0) + 0.01 * torch.randn(
        12, 6, generator=torch.Generator().manual_seed(3)
    )
    chosen = choose_samples(embeddings, 8)
    assert len(set(chosen)) == 8
    assert all(a // 2 == b // 2 for a, b in zip(chosen[::2], chosen[1::2], strict=True))
    assert choose_samples(embeddings[:3], 8) and len(choose_samples(embeddings[:1], 8)) == 1


def test_groups_of_patches_show_one_patch_an_image() -> None:
    patches = torch.eye(4).repeat(5, 1, 1) + 0.01 * torch.randn(
        5, 4, 4, generator=torch.Generator().manual_seed(4)
    )
    groups = cluster_patches(patches, count=4)
    assert sorted(map(len, groups.examples)) == [5, 5, 5, 5]
    assert all(len(set(groups.labels[:, patch])) == 1 for patch in range(4))


def test_maps_lie_in_the_unit_square() -> None:
    for count in (1, 5, 40):
        points = plane_map(torch.randn(count, 6, generator=torch.Generator().manual_seed(count)))
        assert points.shape == (count, 2) and points.min() >= 0 and points.max() <= 1


# ------------------------------------------------------------------------------------------------------- the page


def test_texts_in_scripts_can_not_end_them() -> None:
    text = script_json({"a": "</script><!--\u2028", "b": math.nan, "c": [1, "&"]})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028", "b": None, "c": [1, "&"]}


def test_sheets_hold_every_picture() -> None:
    found = sheet([Image.new("RGB", (9, 9), (n, 0, 0)) for n in range(5)], 4)
    assert found.columns == 3 and found.picture.startswith("data:image/webp;base64,")


def test_charts_leave_out_what_is_no_number() -> None:
    records = [
        {"step": n, "loss": float(n), "image": 1.0, "note": "x", "verdict.score": math.nan if n == 1 else 2.0}
        for n in range(3)
    ]
    drawn = {chart["title"]: chart["lines"] for chart in charts(records, ["image"])}
    assert drawn["Loss"][0]["points"] == [[0, 0.0], [1, 1.0], [2, 2.0]]
    assert drawn["Score without labels"][0]["points"] == [[0, 2.0], [2, 2.0]]
    assert drawn["Terms of the loss"][0]["name"] == "image"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a tiny run on images whose names and classes are hostile."""
    root = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for number in range(24):
        folder = root / "photos" / (HOSTILE_CLASS if number % 2 else "blue")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 80)).save(folder / f"{number}{HOSTILE}")
    config = small_config(data=str(root / "photos"), out=str(root / "run"))
    settings = {"batch_size": 8, "steps": 4, "log_every": 1}
    config = config.model_copy(
        update={
            "training": config.training.model_copy(update=settings),
            "speed": config.speed.model_copy(update={"workers": 0, "device": "cpu"}),
        }
    )
    return write_report(pretrain(config), shown=Shown(images=24, samples=6))


def page_content(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text())
    assert found is not None
    content: dict[str, Any] = json.loads(found.group(1))
    return content


def test_a_page_is_one_small_file_that_holds_everything(page: Path) -> None:
    text = page.read_text()
    assert page.stat().st_size < LARGEST and "default-src 'none'" in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)
    content = page_content(page)
    assert [model["name"] for model in content["models"]] == ["run", "before training"]
    assert len(content["samples"]) == 6 and len(content["collection"]["names"]) == 24
    assert len(content["seen"][0]["views"]) == 5 and content["verdict"]["sentence"]


def test_hostile_names_stay_texts(page: Path) -> None:
    assert "<img src=x" not in page.read_text()
    assert any("<img src=x onerror=alert(1)>" in name for name in page_content(page)["collection"]["names"])


ASK = """
<script>
window.hacked = 0; window.problems = [];
window.alert = () => { window.hacked = 1; };
addEventListener("error", (event) => window.problems.push(String(event.message)));
addEventListener("securitypolicyviolation", (event) => window.problems.push("policy: " + event.violatedDirective));
setTimeout(() => {
  const ask = document.getElementById("ask"), box = ask.getBoundingClientRect();
  ask.dispatchEvent(new MouseEvent("click", { clientX: box.left + 0.9 * box.width, clientY: box.top + 0.4 * box.height, bubbles: true }));
  const answer = () => { const a = document.querySelector(".answer"); return { patch: Number(a.dataset.patch), best: JSON.parse(a.dataset.best) }; };
  const clicked = answer();
  ask.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft", bubbles: true }));
  const found = { clicked, moved: answer(), values: [...similarities(0, 0, clicked.patch)], hacked: window.hacked, problems: window.problems,
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    unnamed: [...document.querySelectorAll("img:not([alt]), button:not([title]):empty, canvas:not([aria-label])")].length,
    sections: [...document.querySelectorAll("main section")].map((s) => s.id) };
  const said = document.createElement("pre");
  said.id = "answer"; said.textContent = JSON.stringify(found);
  document.body.append(said);
}, 1500);
</script>
"""


def in_browser(page: Path, folder: Path, width: int) -> tuple[dict[str, Any], str]:
    """Open a copy of the page in Chromium, click and move; return what the page says and the console's lines."""
    if CHROMIUM is None:
        pytest.skip("no chromium here; apt-get install chromium, or ignore: the page's script stays untested")
    copy = folder / "copy.html"
    copy.write_text(
        page.read_text().replace(
            '<script type="application/json"', ASK + '<script type="application/json"', 1
        )
    )
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900",
        "--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    said = re.search(r'<pre id="answer">(.*?)</pre>', done.stdout, re.DOTALL)
    assert said is not None, done.stderr[-2000:]
    import html

    lines = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(said.group(1))), "\n".join(lines)


@pytest.mark.parametrize("width", [1400, 500])
def test_a_click_gives_the_map_that_python_computes(page: Path, tmp_path: Path, width: int) -> None:
    found, console = in_browser(page, tmp_path, width)
    assert found["problems"] == [] and console == "" and found["hacked"] == 0
    content = page_content(page)
    model = content["models"][0]
    rows, columns = model["grid"]
    patch = int(0.4 * rows) * columns + int(0.9 * columns)
    assert found["clicked"]["patch"] == patch and found["moved"]["patch"] == patch - 1
    values = np.frombuffer(base64.b64decode(model["patches"]), np.int8).reshape(6, rows * columns, -1)
    expected = similarities(StoredPatches(values, (rows, columns), 1.0), 0, patch)
    assert found["values"] == expected.ravel().tolist()
    best = found["clicked"]["best"][0]
    assert best["value"] == expected[1:].max() and best["sample"] == 1 + int(expected[1:].argmax()) // (
        rows * columns
    )
    assert found["wide"] <= 0 and found["unnamed"] == 0
    assert {"patches", "lenses", "neighbours", "map", "groups", "training", "views"} <= set(found["sections"])


def test_patches_that_find_each_other_equal_a_search_both_ways() -> None:
    from glocal.models.features import Features
    from glocal.report.model_pictures import mutual_nearest

    patches = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(5))
    found = mutual_nearest(Features(torch.zeros(2, 4), patches, (3, 3), torch.zeros(2, 10, 4)))
    a, b = (p / np.linalg.norm(p, axis=1, keepdims=True) for p in patches.numpy())
    expected = [
        (float(a[i] @ b[j]), i, j)
        for i in range(9)
        for j in range(9)
        if all(a[i] @ b[j] >= a[i] @ b[k] for k in range(9))
        and all(a[i] @ b[j] >= a[k] @ b[j] for k in range(9))
    ]
    assert 0 < len(expected) < 9
    assert found == [(i, j) for _, i, j in sorted(expected, reverse=True)]


def test_a_run_is_alive_while_a_process_holds_its_folder(tmp_path: Path) -> None:
    """What `glocal report live=true` goes by."""
    from glocal.training.run_folder import RunFolder, is_alive

    assert not is_alive(tmp_path / "run")
    with RunFolder(tmp_path / "run") as folder:
        folder.claim(resume=False)
        assert is_alive(tmp_path / "run")
    assert not is_alive(tmp_path / "run")

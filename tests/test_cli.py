"""The command: verbs, help made from the configuration, errors a person can mend, and the demo's questions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from glocal import cli
from glocal.cli.pretrain import PretrainSettings
from glocal.cli.settings import split_words
from glocal.data import open_source
from glocal.errors import ConfigError
from glocal.report import demo

FAST = [
    "preset=small", "backbone.embed_dim=32", "backbone.depth=2", "backbone.num_heads=2", "backbone.patch_size=8",
    "backbone.image_size=16", "views.global.size=16", "views.local.size=8", "training.batch_size=8", "training.steps=3",
    "objectives.image.head.prototypes=32", "objectives.patch.head.prototypes=32", "speed.workers=0", "speed.precision=fp32", "training.log_every=1",
    "report=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twelve noisy pictures, in train and test folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    for split in ("train", "test"):
        for number in range(24):
            path = root / split / ("red" if number % 2 else "blue") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 80, (24, 30, 3), dtype=np.uint8)
            pixels[..., 0 if number % 2 else 2] += 150
            Image.fromarray(pixels).save(path)
    return root


def run(*words: str) -> Result:
    return CliRunner().invoke(cli.app, list(words))


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    result = run("pretrain", "pw-self", f"data={photos}", f"out={out}", *FAST)
    assert result.exit_code == 0, result.output
    return out


def test_pretrain_with_labels_records_the_probe(trained: Path) -> None:
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    probes = [r for r in records if any(k.startswith("knn") for k in r)]
    assert [probes[0]["step"], probes[-1]["step"]] == [0, 3]


def test_evaluate_prints_and_records(trained: Path, photos: Path, tmp_path: Path) -> None:
    result = run("evaluate", "knn", f"model={trained}", f"data={photos}", f"out={tmp_path}", "ks=[5]")
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "results.json").read_text())["results"][0]
    assert found["protocol"] == "knn" and "k5_top1" in found["numbers"]
    again = run(
        "evaluate", "knn", f"model={trained}", f"train={photos}/train", f"test={photos}/test", "ks=[5]"
    )
    assert again.exit_code == 0, again.output
    compared = run("compare", str(tmp_path))
    assert compared.exit_code == 0 and "k5_top1" in compared.output


def test_embed_writes_one_row_an_image(trained: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "e.parquet"
    assert (
        run(
            "embed", f"model={trained}", f"data={photos}", "split=test", f"out={out}", "what=cls,mean_patches"
        ).exit_code
        == 0
    )
    table = pq.read_table(out)
    assert table.column_names == ["key", "index", "label", "cls", "mean_patches"] and table.num_rows == 24
    assert len(table["cls"][0].as_py()) == 32


def test_embed_counts_what_is_no_image(trained: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, picture in enumerate(sorted(photos.rglob("*.png"))[:3]):
        (folder / f"{number}.png").write_bytes(picture.read_bytes())
    (folder / "film.mov").write_bytes(b"x")
    (folder / "broken.jpg").write_bytes(b"no picture")
    told = run("embed", f"model={trained}", f"data={folder}", f"out={tmp_path / 'e'}").output
    assert "left out: 1 .mov." in told and "broken.jpg" in told
    manifest = json.loads((tmp_path / "e/manifest.json").read_text())
    assert manifest["left_out"] == {".mov": 1} and list(manifest["unreadable"]) == ["broken.jpg"]


@pytest.mark.parametrize("what", ["views", "matches"])
def test_show_draws_a_picture(photos: Path, tmp_path: Path, what: str) -> None:
    out = tmp_path / f"{what}.png"
    result = run("show", what, str(photos / "train"), "preset=small", f"out={out}")
    assert result.exit_code == 0, result.output
    with Image.open(out) as picture:
        assert min(picture.size) > 100
    one = run("show", what, str(photos / "train" / "red" / "1.png"), f"out={out}")
    assert one.exit_code == 0, one.output
    sheet = run("show", what, str(photos / "train"), "preset=small", f"out={out}", "images=2")
    assert sheet.exit_code == 0


@pytest.mark.parametrize("what", ["attention", "pca", "neighbours", "correspondences", "map"])
def test_show_draws_what_a_model_makes_of_images(
    trained: Path, photos: Path, tmp_path: Path, what: str
) -> None:
    out = tmp_path / f"{what}.png"
    shown = run("show", what, str(photos / "train"), f"model={trained}", f"out={out}", "images=2")
    assert shown.exit_code == 0, shown.output
    with Image.open(out) as picture:
        assert min(picture.size) > 200


def test_show_puts_a_second_image_beside_the_first(trained: Path, photos: Path, tmp_path: Path) -> None:
    first, second = (str(photos / "train" / "red" / f"{n}.png") for n in (1, 3))
    words = [
        "show",
        "correspondences",
        first,
        f"other={second}",
        f"model={trained}",
        f"out={tmp_path / 'c.png'}",
    ]
    assert run(*words).exit_code == 0
    assert isinstance(run("show", "pca", first).exception, ConfigError)
    assert isinstance(run("show", "pcb", first, f"model={trained}").exception, ConfigError)


def test_doctor_tells_what_a_run_learnt(trained: Path) -> None:
    shown = run("doctor", str(trained))
    assert shown.exit_code == 0, shown.output
    assert "without labels" in shown.output and "retrieval" in shown.output
    assert run("doctor", str(trained / "nothing")).exit_code != 0


def test_report_writes_one_page(trained: Path, tmp_path: Path) -> None:
    shown = run("report", str(trained), f"out={tmp_path / 'page.html'}", "images=8", "samples=4")
    assert shown.exit_code == 0, shown.output
    assert "Click a patch" in (tmp_path / "page.html").read_text()
    live = run("report", str(trained), f"out={tmp_path / 'page.html'}", "images=8", "samples=4", "live=true")
    assert live.exit_code == 0, live.output  # the run is over, so one page is all
    assert run("report", "data=x").exit_code != 0


def test_recipes_are_listed_and_resolved() -> None:
    assert "pw-self" in run("recipes").output
    shown = run("recipes", "dino", "preset=small", "training.epochs=7").output
    assert "epochs: 7.0" in shown and "preset=small" in shown


def test_help_is_made_from_the_configuration() -> None:
    shown = run("pretrain", "--help").output
    assert "optimiser.learning_rate" in shown and "views.NAME.area" in shown and "init" in shown
    assert "[recipe=pw-self]" in run("show", "--help").output
    assert "ks" in run("evaluate", "knn", "--help").output
    listed = run("evaluate", "--help").output
    assert "[out=FOLDER]" in listed and "hummingbird" in listed
    assert "[preset=...]" in run("recipes").output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["pretrain", "pwself", "data=digits", "out=x"], "Did you mean 'pw-self'"),
        (["pretrain", "dino", "data=digits", "out=x", "trainin.epochs=1"], "Did you mean 'training'"),
        (["pretrain", "dino", "data=digits"], "Missing: out="),
        (["pretrain", "dino", "out=x"], "Missing: data="),
        (["pretrain", "dino", "data=nowhere/at/all", "out=x"], "nowhere/at/all"),
        (["pretrain", "dino", "out=x", "resume=maybe"], "resume: got 'maybe'"),
        (["pretrain", "dino", "data=digits", "out=x", "word"], "Write key=value"),
        (["evaluate", "knnn", "model=x", "data=y"], "Did you mean 'knn'"),
        (["embed", "model=x", "data=y", "out=z.parquet", "wat=cls"], "There is no setting 'wat'"),
        (["export", "nowhere", "to=timm", "out=z"], "There is no model at 'nowhere'"),
        (["export", "nowhere", "to=tensorflow", "out=z"], "to: got 'tensorflow'"),
        (["show", "nothing", "digits"], "Allowed: views, matches"),
    ],
)
def test_errors_name_what_is_wrong(
    words: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["glocal", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_settings_split() -> None:
    own, rest = split_words(PretrainSettings, ["data=a=b", "x.y=1", "out=2024"])
    assert (own.data, own.out, rest) == ("a=b", "2024", ["x.y=1"])
    with pytest.raises(ConfigError, match="no setting"):
        split_words(PretrainSettings, ["oops"])
    with pytest.raises(ConfigError, match="data is given twice"):
        split_words(PretrainSettings, ["data=a", "data=b", "out=c"])


def test_skip_reasons_are_whole_in_pipes(trained: Path, photos: Path) -> None:
    result = run("evaluate", "all", f"model={trained}", f"data={photos}/train/red", "workers=0")
    assert result.exit_code == 0, result.output
    skipped = [line for line in result.output.splitlines() if "skipped:" in line]
    assert skipped and not any(line.endswith("...") for line in skipped)
    assert max(map(len, skipped)) > 100


def test_the_demo_asks_fair_questions() -> None:
    """A perfect embedding answers all, a constant one answers by chance; raw pixels find undistorted tiles."""
    source = open_source("digits").subset(np.arange(60))
    assert source.labels is not None
    tiles = demo.gallery(source, 16)
    assert tiles.shape == (60, 3, 16, 16) and tiles.dtype == torch.uint8
    same = demo.retrieve(demo.raw_pixels, tiles, tiles, source.labels)
    assert same.accuracy == 1.0 and torch.equal(same.nearest[:, 0], torch.arange(60))
    queries = demo.distorted(source, 16)
    assert not torch.equal(queries, tiles)
    assert demo.retrieve_patches(demo.raw_patches(4), tiles, tiles, source.labels) > 0.2


def test_help_is_fast() -> None:
    best = min(_seconds(sys.executable, "-m", "glocal.cli", "--help") for _ in range(3))
    assert best < 2.0


def _seconds(*command: str) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def test_a_run_shows_what_it_is_about_to_see(trained: Path) -> None:
    assert {p.name for p in (trained / "pictures").iterdir()} == {"views.png", "matches.png", "data.png"}


def test_unreadable_images_stop_neither_the_choice_of_preset_nor_the_first_pictures(
    photos: Path, tmp_path: Path
) -> None:
    """The first image, which the choice and the pictures look at, is broken."""
    data = tmp_path / "data"
    shutil.copytree(photos / "train", data)
    (data / "blue" / "000.png").write_bytes(b"no picture")
    out = tmp_path / "run"
    words = [w for w in FAST if not w.startswith(("preset", "objectives.patch", "views.local"))]
    result = run("pretrain", "dino", f"data={data}", f"out={out}", "probe.enabled=false", *words)
    assert result.exit_code == 0, result.output
    assert {p.name for p in (out / "pictures").iterdir()} == {"views.png", "matches.png", "data.png"}
    assert "blue/000.png" in (out / "unreadable.txt").read_text()


def test_protocols_run_during_training_and_leave_the_weights_alone(photos: Path, tmp_path: Path) -> None:
    weights = []
    for name, more in (
        ("with", [f"probe.evaluations={{logistic: {photos}}}"]),
        ("without", ["probe.enabled=false"]),
    ):
        out = tmp_path / name
        more = [*more, "backbone.drop_path=0.2"]
        result = run(
            "pretrain",
            "dino",
            f"data={photos}",
            f"out={out}",
            *[w for w in FAST if "patch.head" not in w],
            *more,
        )
        assert result.exit_code == 0, result.output
        weights.append(torch.load(out / "checkpoints" / "last.pt", weights_only=True)["student"])
    records = [json.loads(line) for line in (tmp_path / "with" / "metrics.jsonl").read_text().splitlines()]
    assert any(key.startswith("logistic.") for key in records[-1])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_python_m_glocal_and_completion() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "glocal", "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "pretrain" in said and "--install-completion" in said

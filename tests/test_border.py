"""What comes from outside is refused in one sentence: never a traceback, never a half-made folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from glocal import cli
from glocal.errors import ConfigError
from glocal.models.backbone import BackboneConfig
from glocal.models.export import export_backbone
from glocal.models.vit import VisionTransformer
from glocal.outside import given_path, new_file, new_folder

TINY = BackboneConfig(size="micro", embed_dim=32, depth=1, num_heads=2, patch_size=8, image_size=16)
PRETRAIN = ["pretrain", "dino", "data=imgs", "out=run", "preset=small"]
EVALUATE = ["evaluate", "knn", "model=model", "data=imgs"]
EMBED = ["embed", "model=model", "data=imgs", "out=e.parquet"]
SHOW = ["show", "views", "imgs", "preset=small", "out=v.png"]
LONG = "x" * 5000


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four photographs of two classes, a model, and things that are not what they are given for."""
    return make_place(tmp_path_factory.mktemp("border"))


def make_place(root: Path) -> Path:
    """Fill a folder as `place` says."""
    rng = np.random.default_rng(0)
    for number in range(4):
        path = root / "imgs" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(path)
    torch.manual_seed(0)
    export_backbone(VisionTransformer(TINY), root / "model", mean=(0.5,) * 3, std=(0.5,) * 3, image_size=16)
    (root / "foreign.json").write_text('{"format": 1, "results": [{"a": 1}]}')
    (root / "list.json").write_text("[1, 2]")
    (root / "broken.yaml").write_text("a: [")
    (root / "latin.yaml").write_bytes("größe: 1".encode("latin-1"))
    (root / "binary.yaml").write_bytes(bytes(range(256)))
    (root / "recursive.yaml").write_text("&a [*a]")
    (root / "file").write_text("nothing")
    return root


def refused(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Run the command on bad input; return the one thing it says."""
    monkeypatch.chdir(place)
    monkeypatch.setattr("sys.argv", ["glocal", *words])
    before = sorted(os.walk(place))
    with pytest.raises(SystemExit) as end:
        cli.main()
    said: str = capsys.readouterr().err.strip()
    assert end.value.code == 2 and said, words
    assert "Traceback" not in said and len(said) < 1500, said
    assert sorted(os.walk(place)) == before, f"{words} left something behind"
    return said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([*PRETRAIN, "speed.workers=x"], "speed.workers: got 'x'"),
        ([*PRETRAIN, "seed=x"], "seed: got 'x'"),
        ([*PRETRAIN, f"seed={10**30}"], "seed"),
        ([*PRETRAIN, "speed.device=foo"], "speed.device: got 'foo'"),
        ([*PRETRAIN, "config=broken.yaml"], "broken.yaml"),
        ([*PRETRAIN, "config=latin.yaml"], "no UTF-8 text"),
        ([*PRETRAIN, "config=binary.yaml"], "binary.yaml"),
        ([*PRETRAIN, "config=recursive.yaml"], "references"),
        ([*PRETRAIN, "config=imgs"], "directory"),
        ([*PRETRAIN, "config=nowhere.yaml"], "no such file"),
        (["pretrain", "dino", "data=imgs", "out=/proc/x"], "out=/proc/x: '/proc' can't be written to"),
        (["pretrain", "dino", "data=imgs", "out=file"], "is a file, not a folder"),
        (["pretrain", "dino", "data=imgs", f"out={LONG}"], "is no path"),
        (["pretrain", "dino", "data=imgs", "out="], "out= is empty"),
        (["pretrain", "dino", f"data={LONG}", "out=run"], "is no path"),
        (["pretrain", "dino", "data=~nobodyhere/x", "out=run"], "is no path"),
        (["pretrain", "dino", "out=run", "data=imgs:nonsense=3", "preset=small"], "no column 'nonsense'"),
        ([*PRETRAIN, "training.batch_size=4", "init=nowhere"], "no model at 'nowhere'"),
        ([*PRETRAIN, "training.batch_size=4", "init=file"], "no weight file"),
        (["pretrain", "dino", "out=nowhere", "resume=true"], "no run to continue"),
        ([*PRETRAIN, "training.epochs=nan"], "training.epochs"),
        ([*PRETRAIN, "data=other"], "data is given twice"),
        ([*EVALUATE, "workers=x"], "workers: got 'x'"),
        ([*EVALUATE, "workers=-1"], "greater than or equal to 0"),
        ([*EVALUATE, "device=foo"], "device=foo: this machine has no such device"),
        ([*EVALUATE, "quick=perhaps"], "quick: got 'perhaps'"),
        ([*EVALUATE, "out=file"], "is a file, not a folder"),
        ([*EVALUATE, "out=/proc/x"], "can't be written to"),
        ([*EVALUATE, "ks=x"], "ks: got 'x'"),
        ([*EVALUATE, "kss=[3]"], "Did you mean 'ks'"),
        (["evaluate", "knn", "model=file", "data=imgs"], "no weight file"),
        (["evaluate", "knn", f"model={LONG}", "data=imgs"], "is no path"),
        (["evaluate", "knn", "model=model", f"test={LONG}", "train=imgs"], "is no path"),
        (["evaluate", "all", "model=model", "data=imgs", "nonsense.x=3"], "names no protocol"),
        ([*EMBED, "workers=x"], "workers: got 'x'"),
        ([*EMBED, "size=abc"], "size: got 'abc'"),
        ([*EMBED, "size=-3"], "size: got -3"),
        (["embed", "model=model", "data=imgs", "out=e.npz"], "ending .npz is not known"),
        (["embed", "model=model", "data=imgs", "out=imgs"], "holds something else"),
        (["embed", "model=model", "data=imgs", "out=e", "what=patchs"], "Did you mean 'patches'?"),
        (["embed", "model=model", "data=imgs", "out=e", "device=tpu"], "no such device"),
        (["embed", "model=model", "data=imgs", "out=/proc/e"], "can't be written to"),
        (["embed", "model=model", "data=imgs", f"out={LONG}"], "is no path"),
        (["embed", "model=model", "data=imgs", "out=file/e"], "'file' is a file"),
        ([*SHOW, "seed=x"], "seed: got 'x'"),
        ([*SHOW, "index=x"], "index: got 'x'"),
        ([*SHOW, "index=99"], "has images 0 to 3"),
        ([*SHOW, "images=0"], "images: got 0"),
        ([*SHOW, "rule=wat"], "rule: got 'wat'"),
        (["show", "views", "imgs", "out=v.wat"], "ending .wat is not known"),
        (["show", "views", "imgs", "out=nowhere/v.wat"], "ending .wat is not known"),
        (["show", "views", LONG], "is no path"),
        (["show", "views", "model"], "No images"),
        (["compare", "foreign.json"], "foreign.json"),
        (["compare", "list.json"], "list.json"),
        (["compare", "imgs"], "has no results"),
        (["compare", LONG], "is no path"),
        (["compare", "binary.yaml"], "has no results"),
        (["recipes", "dino", "preset=wat"], "no such preset"),
        (["recipes", "dino", "seed=x"], "seed: got 'x'"),
        (["demo", "out=/proc/x"], "can't be written to"),
        (["demo", "out=file"], "is a file, not a folder"),
        (["demo", "seed=x"], "seed: got 'x'"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_bad_input_is_refused_in_one_sentence(
    words: list[str],
    says: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert says in refused(words, place, monkeypatch, capsys)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("words", [[*PRETRAIN, "speed.device=cuda"], [*EVALUATE, "device=cuda"]])
def test_a_gpu_that_is_not_there(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "device=cuda: this machine has no such device. Here: auto, cpu" in refused(
        words, place, monkeypatch, capsys
    )


def test_names_are_no_markup(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class `[/]` and a run `[red]` are printed as they are."""
    result = {
        "protocol": "knn", "version": 1, "settings": {}, "numbers": {"[/] top1": 50.0}, "rows": [{"[/]": "[bold]"}],
        "notes": ["lacks [/]"], "model": {"name": "[red]", "fingerprint": "f"}, "data": {"test: [/]": "d"},
    }  # fmt: skip
    folder = tmp_path / "[red]"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"format": 1, "results": [result], "skipped": []}))
    monkeypatch.setattr("sys.argv", ["glocal", "compare", str(folder)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "[/] top1" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "a\0b", LONG, "~nobodyhere/x"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(ConfigError, match="out="):
        given_path(text, "out")


def test_places_to_write(tmp_path: Path) -> None:
    assert new_file(tmp_path / "deep" / "er.png", "out", (".png",)) == tmp_path / "deep" / "er.png"
    assert new_folder(tmp_path, "out") == tmp_path and list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match=r"is a folder; give a file in it"):
        new_file(tmp_path, "out")
    with pytest.raises(ConfigError, match=r"Did you mean '.png'"):
        new_file("a.pgn", "out", (".png", ".jpg"))

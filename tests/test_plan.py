"""What is said before the first step: images, labels, what is left out, time and memory; and `glocal doctor data=`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cli import FAST, run

from glocal.data import open_source
from glocal.data.inspection import inspect
from glocal.errors import DataError
from glocal.recipes import configure
from glocal.recipes.plan import plan, rehearse

TINY = [word for word in FAST if word.startswith(("backbone", "views", "training", "objectives.image"))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Folders of years with six photographs, a copy, a re-encoded copy, a grey one, a broken one, and junk."""
    rng = np.random.default_rng(3)
    for number in range(6):
        path = tmp_path / "photos" / ("2015" if number % 2 else "2016") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        blocks = rng.integers(0, 255, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((60, 48)).save(path)
    folder = tmp_path / "photos" / "2016"
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    Image.open(folder / "2.png").resize((50, 40)).save(folder / "smaller.jpg", quality=80)
    Image.open(folder / "4.png").rotate(180).convert("L").save(folder / "grey.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "film.mov").write_bytes(b"x")
    (folder / "notes").write_bytes(b"x")
    return tmp_path / "photos"


def test_what_a_set_is_like(photos: Path) -> None:
    found = inspect(open_source(str(photos)))
    assert (found.images, found.looked_at, found.sides) == (10, 10, (40, 48, 48))
    assert len(found.unreadable) == 1 and "broken.jpg" in found.unreadable[0]
    assert (found.grey, found.exact_duplicates, found.near_duplicates) == (1, 1, 1)
    assert found.images_per_second > 0


def test_nothing_readable_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no")
    with pytest.raises(DataError, match="None of 1 images"):
        inspect(open_source(str(tmp_path)))


def test_the_plan_names_labels_and_what_is_left_out(photos: Path) -> None:
    config = configure("dino", data=str(photos), out="x", preset="small", overrides=TINY)
    told = "\n".join(plan(config, open_source(str(photos))))
    assert "10 images in photos" in told and "2 classes (2015, 2016)" in told and "labels=false" in told
    assert "1 .mov" in told and "1 no ending" in told
    assert "GiB" in told and "training.steps=" in told
    assert "No labels." in plan(config, open_source(f"{photos}:labels=false"))[0]


def test_a_larger_batch_takes_more(photos: Path) -> None:
    config = configure("dino", data=str(photos), out="x", preset="small", overrides=TINY)
    found = rehearse(config, open_source(str(photos)))
    assert found.seconds_per_image > 0 and found.parameters > 1000
    assert found.memory(1000) >= found.memory(100)


def test_doctor_looks_at_data(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("glocal.recipes.plan.REHEARSED", 2)
    said = run("doctor", f"data={photos}", "recipe=dino")
    assert said.exit_code == 0, said.output
    assert "readable: 9 of 10" in said.output and "duplicates: 1 exact, 1 near" in said.output
    assert (
        "glocal pretrain dino" in said.output
        and "training.batch_size: 4, because there are 10 images" in said.output
    )

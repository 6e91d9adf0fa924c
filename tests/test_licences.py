"""What is said of the licence of starting weights, and what of it and of the data goes into the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_starting_weights import SETTINGS, start, weights

from glocal.data import open_source
from glocal.models.layouts import CONVENTIONS
from glocal.models.licences import PUBLISHED, in_words, presumed_licence, restriction
from glocal.recipes import continue_run
from glocal.training.loop import pretrain


@pytest.mark.parametrize(
    ("licence", "limit"),
    [
        ("apache-2.0", None), ("mit", None), ("bsd-3-clause", None), ("cc-by-4.0", None), ("cc0-1.0", None),
        ("cc-by-nc-4.0", "no commercial use"), ("CC BY-NC-SA 4.0", "no commercial use; what is built"),
        ("dinov3-license", "terms of its own"), ("fair-noncommercial-research", "no commercial use; research only"),
        ("gpl-3.0", "same licence"), ("other", "terms of its own"),
    ],
)  # fmt: skip
def test_what_a_licence_restricts(licence: str, limit: str | None) -> None:
    assert restriction(licence) is None if limit is None else limit in str(restriction(licence))


def test_layouts_that_several_families_share_stand_for_no_licence() -> None:
    assert set(PUBLISHED) <= set(CONVENTIONS)
    assert [presumed_licence(layout) for layout in ("dino", "timm", "vit", "selfpatch")] == [None] * 4


def test_what_a_file_says_goes_before_what_is_presumed() -> None:
    assert in_words("mit", "mae") == "weights under the licence 'mit'"
    assert "as far as files of the mae layout" in in_words(None, "mae") and "no commercial use" in in_words(
        None, "mae"
    )
    assert in_words(None, "timm") == ""


def licensed(folder: Path, licence: str) -> Path:
    """Exported weights whose provenance names a licence."""
    path = weights(folder) / "config.json"
    config = json.loads(path.read_text())
    config["glocal"]["extra"] = {"licence": licence}
    path.write_text(json.dumps(config))
    return folder


def test_a_restrictive_licence_is_said_at_the_start_and_goes_with_the_export(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also after a resume, when the starting weights are gone."""
    folder = licensed(tmp_path / "w", "cc-by-nc-4.0")
    run = pretrain(start(folder, "training.steps=2", out=tmp_path / "run"))
    assert "'cc-by-nc-4.0': no commercial use; the model that comes out" in " ".join(
        capfd.readouterr().err.split()
    )
    extra = json.loads((run / "export" / "config.json").read_text())["glocal"]["extra"]
    assert extra["licence"] == "cc-by-nc-4.0"
    assert extra["data_fingerprint"] == open_source("digits").fingerprint()
    (run / "export" / "config.json").unlink()
    pretrain(continue_run(str(run), []), resume=True)
    again = json.loads((run / "export" / "config.json").read_text())["glocal"]["extra"]
    assert again == extra


def test_a_run_from_nothing_names_its_data_and_no_licence(tmp_path: Path) -> None:
    from glocal.recipes import configure

    run = pretrain(
        configure("dino", data="digits", out=str(tmp_path / "r"), preset="cifar", overrides=SETTINGS)
    )
    extra = json.loads((run / "export" / "config.json").read_text())["glocal"]["extra"]
    assert extra["licence"] is None and extra["data_fingerprint"]

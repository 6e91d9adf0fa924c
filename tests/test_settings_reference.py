"""The reference of settings: whole, up to date, and shown by the command."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from glocal import cli
from glocal.cli.reference import Section, as_markdown, sections

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def reference() -> list[Section]:
    return sections()


def test_the_page_of_settings_is_up_to_date(reference: list[Section]) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    assert page == as_markdown(reference), "run: glocal settings out=docs/settings.md"


def test_every_setting_says_what_it_means(reference: list[Section]) -> None:
    silent = [
        f"{section.title}: {row.key}" for section in reference for row in section.settings if not row.meaning
    ]
    assert silent == []
    keys = {row.key for section in reference for row in section.settings}
    assert {
        "backbone.embed_dim",
        "objectives.NAME.head.prototypes",
        "views.NAME.area",
        "knn.ks",
        "seed",
    } <= keys
    assert len([section for section in reference if section.title.startswith("Objective")]) >= 6


def test_the_command_shows_a_part() -> None:
    shown = CliRunner().invoke(cli.app, ["settings", "optimiser"])
    assert shown.exit_code == 0 and "optimiser.learning_rate" in shown.output and "speed." not in shown.output
    missing = CliRunner().invoke(cli.app, ["settings", "optimizer.learning_rate"])
    assert "Did you mean 'optimiser.learning_rate'" in str(missing.exception)

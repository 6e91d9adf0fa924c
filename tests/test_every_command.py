"""Every verb with bad words in every place: it works or says one thing that is wrong, and a refusal leaves nothing behind.

The verbs and their settings are read from the command itself, so that a verb that is added is asked for here.
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_border import LONG, make_place

from glocal import cli
from glocal.cli.reference import describe
from glocal.config import Config
from glocal.errors import GlocalError, TrainingError
from glocal.lookup.index import index
from glocal.recipes import configure
from glocal.training import loop
from glocal.training.config import RunConfig

HOSTILE = (
    "", "x", "-1", "nan", "/proc/x", "binary.yaml", "0", "9" * 30, "file", "[1, x]", "null", "~nobodyhere/x", "imgs",
    "1e400", "&a [*a]", "file/x", "foreign.json", "a\0b", "nowhere", "[/]", LONG, "1.5", "{a: 1}", "nowhere/x.png", "\udcff",
)  # fmt: skip
"""No numbers, numbers that don't fit, broken YAML, paths that are none, are something else or can't be written."""
AT_ONCE = 7
"""How many of them each setting is given; neighbours get others."""


class Verb(NamedTuple):
    """A command line that works or, where that would take long, is refused in the end whatever a setting says."""

    words: tuple[str, ...]
    given: dict[str, str]
    settings: str | None = None


MODEL = {"model": "model", "data": "imgs"}
VERBS = (
    Verb(
        ("pretrain", "dino"), {"data": "imgs", "out": "run", "preset": "small"}, "pretrain.PretrainSettings"
    ),
    Verb(("recipes", "dino"), {}, "recipes.RecipesSettings"),
    Verb(("evaluate", "knn"), MODEL | {"ks": "[1]"}, "evaluate.EvaluateSettings"),
    Verb(("evaluate", "all"), MODEL | {"retrieval.ks": "[1]", "knn.ks": "[x]"}),
    Verb(("compare", "foreign.json"), {"to": "table.md"}),
    Verb(("cache", "clear", "nowhere"), {}),
    Verb(("reproduce", "glocal"), {"records": "nowhere", "out": "new/run"}, "reproduce.ReproduceSettings"),
    Verb(("ladder",), {"records": "new.jsonl", "out": "new/runs", "page": "new"}, "ladder.LadderSettings"),
    Verb(("embed",), MODEL | {"out": "e.parquet"}, "embed.EmbedSettings"),
    Verb(("index", "model"), {"data": "imgs", "out": "new"}, "index.IndexSettings"),
    Verb(
        ("search", "indexed", "imgs/a/0.png"), {"patch": "0,1", "out": "found.json"}, "search.SearchSettings"
    ),
    Verb(("duplicates", "model"), {"data": "imgs", "out": "new"}, "duplicates.DuplicatesSettings"),
    Verb(("curate", "model"), {"data": "imgs", "out": "new", "clusters": "2"}, "curate.CurateSettings"),
    Verb(("check", "nowhere.py:Own"), {"data": "imgs"}),
    Verb(("export", "model"), {"to": "timm", "out": "export"}, "export.ExportSettings"),
    Verb(("show", "views", "imgs"), {"preset": "small", "out": "v.png"}, "show.ShowSettings"),
    Verb(("show", "pca", "imgs"), {"model": "model", "out": "p.png"}, "show.ShowSettings"),
    Verb(("report", "nowhere"), {}, "report.ReportSettings"),
    Verb(("doctor", "nowhere"), {}),
    Verb(("doctor",), {"data": "imgs", "look_at": "4"}, "doctor.DoctorSettings"),
    Verb(("demo",), {"out": "new"}, "demo.DemoSettings"),
    Verb(("settings", "objectives.contrast"), {"out": "all.md"}),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("border"))
    index(str(root / "model"), str(root / "imgs"), root / "indexed", patches=True)
    return root


def settings_of(verb: Verb) -> list[str]:
    """Names of a verb's own settings."""
    if verb.settings is None:
        return list(verb.given)
    module, _, name = verb.settings.rpartition(".")
    kind: type[Config] = getattr(importlib.import_module(f"glocal.cli.{module}"), name)
    return list(kind.model_fields)


def bad_lines(verb: Verb) -> Iterator[list[str]]:
    """Command lines of a verb with one bad word: in place of each positional word, and of each setting's value."""
    given = [f"{key}={value}" for key, value in verb.given.items()]
    turn = 0
    for place in range(1, len(verb.words)):
        for value in HOSTILE:
            yield [*verb.words[:place], value, *verb.words[place + 1 :], *given]
    for key in settings_of(verb):
        others = [word for word in given if not word.startswith(f"{key}=")]
        for _ in range(AT_ONCE):
            yield [*verb.words, *others, f"{key}={HOSTILE[turn % len(HOSTILE)]}"]
            turn += 1
    for more in (["nonsense.x=3"], ["=3"], given[:1], ["--nonsense"]):
        yield [*verb.words, *given, *more]


def test_every_verb_is_asked() -> None:
    registered = {command.name or command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]
    assert registered == {verb.words[0] for verb in VERBS}, (
        "give every verb a line in VERBS, with its settings"
    )


def never_starts(*_: Any, **__: Any) -> None:
    raise TrainingError("Training would begin here. It does not, in this test.")


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb.words))
def test_bad_words_are_refused_in_one_sentence(
    verb: Verb, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(loop, "pretrain", never_starts)
    monkeypatch.setenv("COLUMNS", "100000")
    problems = [told for words in bad_lines(verb) if (told := problem(words, place, monkeypatch, capsys))]
    assert not problems, "\n".join(problems)


def problem(
    words: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """What is wrong with how a command line ends; empty when nothing is. What a good one leaves is taken away."""
    before = entries(place)
    monkeypatch.setattr("sys.argv", ["glocal", *words])
    shown = f"{[word if len(word) < 200 else word[:20] for word in words]}: "
    try:
        cli.main()
    except SystemExit as end:
        code = end.code
    except Exception as error:
        return f"{shown}{type(error).__name__}: {error}"
    said, left = capsys.readouterr().err, entries(place) - before
    for path in sorted(left, reverse=True):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if code not in (0, 2, None):
        return f"{shown}exit {code}"
    if code == 2 and (not said.strip() or "Traceback" in said or len(said) > 3000):
        return f"{shown}{said[:3000]}"
    return f"{shown}left {left} behind" if code == 2 and left else ""


def entries(root: Path) -> set[Path]:
    return {Path(folder, name) for folder, folders, files in os.walk(root) for name in (*folders, *files)}


def test_every_setting_of_a_run_takes_bad_words(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    for number, row in enumerate(describe(RunConfig)):
        for value in HOSTILE[number % 6 :: 6]:
            try:
                configure("dino", data="imgs", out="run", preset="small", overrides=[f"{row.key}={value}"])
            except GlocalError as error:
                assert 10 < len(str(error)) < 3000
            except Exception as error:
                raise AssertionError(f"{row.key}={value[:40]}: {type(error).__name__}: {error}") from error

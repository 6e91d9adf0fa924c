"""glocal pretrain RECIPE data=... out=... [a.b=c ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from glocal.cli.screen import say, screen, settings_table
from glocal.cli.settings import split_words
from glocal.config import Config
from glocal.errors import ConfigError, GlocalError
from glocal.outside import given_path, new_folder

if TYPE_CHECKING:
    from glocal.recipes import Resolved


class PretrainSettings(Config):
    """What `glocal pretrain` takes beside the settings of a run."""

    out: str
    """The run folder; a new one, or with resume=true that of the run to continue."""
    data: str | None = None
    """Images: a folder, a list file, parquet, or a built-in name."""
    labels: bool = True
    """False: class folders and label columns are left alone, so that no probe reads them."""
    preset: str = "auto"
    """auto: settled from the images, the machine and the length asked for; or one of the recipe's by name."""
    config: str | None = None
    """A YAML file of settings, or a run's config.yaml; what the command says beats it."""
    init: str | None = None
    """Weights to start the backbone from: anything `glocal.load` reads."""
    resume: bool | str = False
    """Continue the run in out=: true from its last checkpoint, or the path of one that was kept."""
    report: bool = True
    """Write report.html, one page to look at, into the run folder at the end."""


def run(recipe: str | None, words: Sequence[str], help: bool) -> None:
    """Resolve the configuration, then train. Everything that can be refused is refused before training starts."""
    if help or recipe is None:
        _print_help()
        return
    options, overrides = split_words(PretrainSettings, words)
    from glocal.recipes import resolve
    from glocal.report.views import draw_start
    from glocal.training.loop import pretrain

    out = str(new_folder(options.out, "out"))
    data = f"{options.data}:labels=false" if options.data is not None and not options.labels else options.data
    if options.resume:
        _continue(recipe, options.model_copy(update={"data": data, "out": out}), overrides)
        return
    resolved = resolve(
        recipe,
        data=data,
        out=out,
        preset=options.preset,
        init=options.init,
        file=options.config,
        overrides=overrides,
    )
    _say_plan(resolved)
    pretrain(resolved.config, at_start=draw_start)
    if options.report:
        write_page(out)


def _say_plan(resolved: Resolved) -> None:
    """What is about to be done, and why; in the first process only."""
    from glocal.data import open_source
    from glocal.recipes.plan import plan
    from glocal.training.processes import is_first

    if not is_first():
        return
    console, source = Console(stderr=True, highlight=False), open_source(resolved.config.data)
    say(console, *settled_in_words(resolved))
    say(console, *plan(resolved.config, source))
    if resolved.settled is not None:
        from glocal.ladder.expectation import expectations, records_of_this_version
        from glocal.ladder.study import read_records

        recorded = read_records(records_of_this_version())
        say(console, *expectations(resolved.config, resolved.settled.flops, recorded))


def settled_in_words(resolved: Resolved) -> list[str]:
    """What `preset=auto` settled, a line each with its reason; nothing where a preset was named."""
    if resolved.settled is None:
        return []
    first = f"preset: auto, from '{resolved.settled.preset.value}', because {resolved.settled.preset.why}"
    return [f"{first}; preset= names another", *(f"  {choice}" for choice in resolved.reasons)]


def _continue(recipe: str, options: PretrainSettings, overrides: Sequence[str]) -> None:
    from glocal.recipes import continue_run
    from glocal.training.loop import pretrain

    for name in ("preset", "config", "init"):
        if getattr(options, name) != PretrainSettings.model_fields[name].default:
            raise ConfigError(
                f"{name}= can't go with resume=true: a continued run keeps the configuration it was started with."
            )
    if isinstance(options.resume, str) and not given_path(options.resume, "resume").is_file():
        raise ConfigError(f"resume: got '{options.resume}'. Give true, false or the path of a checkpoint.")
    data = [] if options.data is None else [f"data={options.data}"]
    pretrain(continue_run(options.out, [*overrides, *data], recipe), resume=options.resume)
    if options.report:
        write_page(options.out)


def write_page(folder: str) -> None:
    """Write a finished run's page and say where; what can't be shown is said and spoils nothing."""
    from glocal.report.page import write_report
    from glocal.training.processes import is_first

    if not is_first():
        return

    try:
        say(screen(), f"page: {write_report(folder)}")
    except GlocalError as error:
        say(screen(), f"no page of this run was written: {error}")


def _print_help() -> None:
    from glocal.cli.reference import describe
    from glocal.recipes import RECIPES
    from glocal.training.config import RunConfig
    from glocal.views.groups import ViewGroup

    console = screen()
    say(console, "glocal pretrain RECIPE data=DATA out=FOLDER [key=value ...] [a.b=c ...]", style="bold")
    say(
        console, f"\nRecipes: {', '.join(RECIPES)}. `glocal recipes RECIPE` shows one resolved, with reasons."
    )
    rows = [*describe(PretrainSettings), *describe(RunConfig), *describe(ViewGroup, "views.NAME.")]
    console.print(settings_table(rows))
    say(console, "\n`glocal settings` lists every setting, those of each objective and protocol included.")

"""The `glocal` command: one verb a file; this one only names them, so that `glocal --help` imports no torch."""

from __future__ import annotations

import io
import logging
import re
import sys
from typing import Annotated, NoReturn

import typer

from glocal import __version__
from glocal.errors import GlocalError
from glocal.freed_memory import keep_freed_memory
from glocal.outside import reason

app = typer.Typer(
    name="glocal",
    help="Pretrain Vision Transformers on your own unlabelled images, and evaluate, show, search and export what was learnt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # help texts hold [optional=settings], which are no markup
)

Settings = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings.")]
# The verbs below print their own help, made from the typed configuration.
_OWN_HELP: dict[str, list[str]] = {"help_option_names": []}
Help = Annotated[bool, typer.Option("--help", "-h", help="Show this verb's settings.")]


@app.command(context_settings=_OWN_HELP)
def pretrain(
    recipe: Annotated[str | None, typer.Argument()] = None, settings: Settings = None, help: Help = False
) -> None:
    """Pretrain on your own images.

    glocal pretrain RECIPE data=FOLDER out=RUN [a.b=c ...]
    """
    from glocal.cli.pretrain import run

    run(recipe, settings or [], help)


@app.command()
def recipes(recipe: Annotated[str | None, typer.Argument()] = None, settings: Settings = None) -> None:
    """List the recipes, or show one resolved.

    glocal recipes RECIPE [preset=...] [data=...]
    """
    from glocal.cli.recipes import run

    run(recipe, settings or [])


@app.command(context_settings=_OWN_HELP)
def evaluate(
    protocol: Annotated[str | None, typer.Argument()] = None, settings: Settings = None, help: Help = False
) -> None:
    """Evaluate a model by one protocol, or by all.

    glocal evaluate PROTOCOL model=RUN data=DATA [out=FOLDER] [key=value ...]
    """
    from glocal.cli.evaluate import run

    run(protocol, settings or [], help)


@app.command()
def compare(runs: Annotated[list[str], typer.Argument(help="Folders that hold results.json.")]) -> None:
    """Set evaluated models side by side.

    glocal compare FOLDER FOLDER ... [to=FILE.csv|FILE.md|FILE.tex]
    """
    from glocal.cli.compare import run

    run(runs)


@app.command()
def cache(action: Annotated[str, typer.Argument(help="clear")], folder: str) -> None:
    """Remove the features that evaluations kept in a folder; results stay.

    glocal cache clear FOLDER
    """
    from glocal.cli.cache import run

    run(action, folder)


@app.command()
def reproduce(row: Annotated[str, typer.Argument()], settings: Settings = None) -> None:
    """Run one row of the ladder and hold it against the record.

    glocal reproduce ROW data=FOLDER [scale=short] [ground=cifar10]
    """
    from glocal.cli.reproduce import run

    run(row, settings or [])


@app.command()
def ladder(settings: Settings = None) -> None:
    """Run what is missing of the ladder, then write its page.

    glocal ladder data=FOLDER [scale=cpu] ["rows=[dino, glocal]"] ["grounds=[cifar10]"] ["seeds=[0, 1, 2]"]
    """
    from glocal.cli.ladder import run

    run(settings or [])


@app.command()
def embed(settings: Settings = None) -> None:
    """Write the embeddings of images, or of their patches, to files; the same command goes on after a kill.

    glocal embed model=RUN data=DATA out=FOLDER|FILE.parquet [what=cls,patches] [stored=float16] [form=npy]
    """
    from glocal.cli.embed import run

    run(settings or [])


@app.command()
def index(
    model: Annotated[
        str, typer.Argument(help="A run folder, an exported folder, a weight file or timm:NAME.")
    ],
    settings: Settings = None,
) -> None:
    """Make an index of a collection to search in, or bring one up to date: only what changed is computed.

    glocal index MODEL data=DATA out=INDEX [patches=true]
    """
    from glocal.cli.index import run

    run(model, settings or [])


@app.command()
def search(
    index: Annotated[str, typer.Argument(metavar="INDEX")],
    words: Annotated[list[str] | None, typer.Argument(metavar="IMAGE... [KEY=VALUE]...")] = None,
) -> None:
    """Find images of an index by an image, several, a box in one or a single patch.

    glocal search INDEX IMAGE [IMAGE ...] [box=x0,y0,x1,y1] [patch=row,column] [out=FILE.html|FILE.json]
    """
    from glocal.cli.search import run

    run(index, words or [])


@app.command()
def duplicates(
    model: Annotated[
        str, typer.Argument(help="A run folder, an exported folder, a weight file or timm:NAME.")
    ],
    settings: Settings = None,
) -> None:
    """Find groups of near-duplicates and edited copies, at a stated false-match rate, with their evidence.

    glocal duplicates MODEL data=DATA out=FOLDER [rate=0.001]
    """
    from glocal.cli.duplicates import run

    run(model, settings or [])


@app.command()
def curate(
    model: Annotated[
        str, typer.Argument(help="A run folder, an exported folder, a weight file or timm:NAME.")
    ],
    settings: Settings = None,
) -> None:
    """Cluster a collection, so that pretraining can see every cluster alike (balance=FOLDER); nothing is copied.

    glocal curate MODEL data=DATA out=FOLDER [clusters=...]
    """
    from glocal.cli.curate import run

    run(model, settings or [])


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="A run folder, an exported folder, a weight file or timm:NAME.")
    ],
    settings: Settings = None,
) -> None:
    """Write a model for another library, read it back and compare.

    glocal export MODEL to=timm|transformers|onnx|program out=FOLDER [size=...]
    """
    from glocal.cli.export import run

    run(model, settings or [])


@app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="PICTURE")], image: str, settings: Settings = None
) -> None:
    """Draw one picture: what training sees of images, or what a model makes of them.

    glocal show views|matches IMAGE [recipe=pw-self] [out=FILE.png]
    glocal show attention|pca|neighbours|correspondences|map IMAGE|DATA model=RUN [other=IMAGE] [out=FILE.png]
    """
    from glocal.cli.show import run

    run(what, image, settings or [])


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN")],
    words: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]... [KEY=VALUE]...")] = None,
) -> None:
    """Write one page that shows a run and what it learnt, beside other models.

    glocal report RUN [MODEL ...] [data=...] [out=FILE.html] [live=true]
    """
    from glocal.cli.report import run as write

    write([run, *(words or [])])


@app.command()
def doctor(words: Annotated[list[str], typer.Argument(metavar="RUN | data=DATA")]) -> None:
    """Say in plain words whether a run is learning, what is wrong and what to change; or what images are like.

    glocal doctor RUN
    glocal doctor data=FOLDER [recipe=pw-self] [look_at=400]
    """
    from glocal.cli.doctor import run as examine

    examine(words)


@app.command()
def check(words: Annotated[str, typer.Argument(metavar="FILE.py:NAME")], settings: Settings = None) -> None:
    """Check a term, operation, source, protocol, backbone or recipe of your own.

    glocal check my_terms.py:MyTerm
    """
    from glocal.cli.check import run

    run(words, settings or [])


@app.command()
def demo(settings: Settings = None) -> None:
    """Pretrain for two minutes and show what was learnt.

    glocal demo [out=runs/demo]
    """
    from glocal.cli.demo import run

    run(settings or [])


@app.command()
def settings(
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]")] = "",
    out: Annotated[str | None, typer.Argument(metavar="[out=FILE.md]")] = None,
) -> None:
    """List every setting of every part, or those that begin with a prefix.

    glocal settings [PREFIX] [out=FILE.md]
    """
    from glocal.cli.all_settings import run

    run(prefix, out)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command; an error that a person can mend is printed as its text, without a traceback."""
    keep_freed_memory()
    # Where no terminal can show a bar, long work says how far it is by log lines.
    said = logging.getLogger("glocal")
    said.setLevel(logging.INFO)
    said.addHandler(logging.StreamHandler())
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may be no text at all
    try:
        app()
    except GlocalError as error:
        _end(f"error: {error}")
    except OSError as error:
        # Every file that a verb reads or writes is checked where its name comes in; a disk may still fail under it.
        place = f"'{error.filename}': " if error.filename else ""
        _end(
            f"error: {place}{reason(error)}. Check the disk and the permissions, then run the same command again."
        )
    except MemoryError:
        _end("error: not enough memory. Make batches, images or workers smaller.")
    except KeyboardInterrupt:
        _end("interrupted", 130)


def _end(text: str, code: int = 2) -> NoReturn:
    # What a person gave is shown as it is, but not pages of it.
    short = re.sub(r"\S{300,}", lambda word: f"{word[0][:60]}... ({len(word[0])} characters)", text)
    typer.echo(short, err=True)
    sys.exit(code)

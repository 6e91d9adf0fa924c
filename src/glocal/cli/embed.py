"""glocal embed model=... data=... out=FOLDER|FILE.parquet [what=cls,patches] [stored=float16] [key=value ...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from glocal.cli.screen import say, screen
from glocal.cli.settings import CollectionSettings, read_words
from glocal.errors import ConfigError, DataError
from glocal.outside import new_file, new_folder


class EmbedSettings(CollectionSettings):
    """What `glocal embed` takes."""

    model: str
    """A run folder, an exported folder, a weight file or timm:NAME."""
    out: str
    """A folder for parts and manifest.json, or one file that ends in .parquet. The same command goes on after a kill."""
    what: str = "cls"
    """With commas between them: cls, mean_patches, gem_patches, patches; each with @-2 for the block before the last."""
    stored: Literal["float32", "float16", "int8"] = "float32"
    """The numbers in the files; the manifest states the measured error."""
    form: Literal["parquet", "npy"] = "parquet"
    """Of the parts in a folder."""
    unit: bool = False
    """Bring every vector to length 1, as search by cosine takes them."""
    resize: Literal["crop", "squash"] = "crop"
    """The central square, or all of the image squashed into it."""
    features: str | None = None
    """The out= of an evaluation, whose class and pooled embeddings are taken where it kept them."""


def run(words: Sequence[str]) -> None:
    """Embed every image of a source into files."""
    settings = read_words(EmbedSettings, words)
    ending = settings.out.rpartition(".")[2].lower()
    if ending in ("npz", "npy", "csv", "json", "h5"):
        raise ConfigError(
            f"out={settings.out}: the ending .{ending} is not known. Give a folder (form=npy for .npy files), or FILE.parquet."
        )
    check = new_file if ending == "parquet" else new_folder
    out = check(settings.out, "out")
    from glocal.extraction.embedding_file import embed
    from glocal.recipes.plan import left_out_in_words

    store = embed(
        settings.model, settings.data, out, what=settings.what.split(","),
        **settings.model_dump(exclude={"model", "data", "out", "what"}),
    )  # fmt: skip
    console, manifest = screen(), store.manifest
    say(console, f"{len(store)} embeddings in {out}")
    for name, error in manifest.error.items() if manifest.stored != "float32" else ():
        say(
            console,
            f"{name} as {manifest.stored}: error {error['root_mean_square']:.2%} of its length, {error['largest']:.2%} at most",
        )
    if manifest.unreadable:
        say(console, f"{len(manifest.unreadable)} unreadable, named in the manifest:")
        say(console, *list(manifest.unreadable.values())[:5])
    if manifest.left_out:
        say(console, left_out_in_words(manifest.left_out))
    if not len(store):
        raise DataError(f"{settings.data}: none of its {manifest.images} images could be read.")

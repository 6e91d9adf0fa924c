"""glocal export MODEL to=timm|transformers|onnx|program out=FOLDER [size=...]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from glocal.cli.screen import say, screen
from glocal.cli.settings import Side, read_words
from glocal.config import Config


class ExportSettings(Config):
    """What `glocal export` takes beside the model."""

    to: Literal["timm", "transformers", "onnx", "program"]
    """The library that is to read it; program: torch.export."""
    out: str
    """The folder to write, empty or not there yet."""
    size: Side | None = None
    """For onnx and program: one fixed side in pixels; null: any multiple of the patch."""


def run(model: str, words: Sequence[str]) -> None:
    """Export, compare, and say how far the export is from the model."""
    settings = read_words(ExportSettings, words)
    from glocal.models.export_forms import export_model

    exported = export_model(model, settings.to, settings.out, settings.size)
    sizes = ", ".join(dict.fromkeys(f"{d.size[0]}x{d.size[1]}" for d in exported.differences))
    worst = max(d.value for d in exported.differences)
    say(
        screen(),
        f"{exported.folder}: read back and compared on random images and photographs of {sizes} pixels.",
    )
    say(screen(), f"Largest difference {worst:.1e} of the embeddings. README.md says how to use it.")

"""`export_model`: a model in the form that another library reads, compared with itself before it counts as written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from torch import Tensor

from glocal.errors import ConfigError, ModelError
from glocal.models.backbone import Backbone
from glocal.models.encoder import Encoder
from glocal.models.export import export_backbone
from glocal.models.export_check import Difference, Embeddings, compare, refuse_differences, three_sizes
from glocal.models.loading import load
from glocal.models.model_card import write_card, write_preprocessing
from glocal.models.portable import save_onnx, save_program
from glocal.models.transformers_folder import save_transformers
from glocal.outside import new_folder

Form = Literal["timm", "transformers", "onnx", "program"]
FORMS: tuple[Form, ...] = get_args(Form)


class Exported(NamedTuple):
    """Where a model was written, and how far it is from the original."""

    folder: Path
    differences: list[Difference]


def export_model(model: str | Encoder, to: Form, out: str | Path, size: int | None = None) -> Exported:
    """Write a model to a folder in another library's form, with a model card; then read it back and compare.

    Class and patch embeddings are compared on random images and on photographs, at the model's own side, a smaller one
    and one that is no square (`size`: at that side only).

    Args:
        model: anything `glocal.load` reads, or a loaded model.
        to: `timm` (also glocal's own form), `transformers`, `onnx`, or `program` (torch.export).
        out: a folder that is empty or not there yet.
        size: for `onnx` and `program`, one fixed side in pixels; None: any multiple of the patch.

    Raises:
        ConfigError: for a folder in use, or a size that the form or the patch doesn't allow.
        ModelError: when the form has no place for this model, an extra is missing, or the result differs.

    >>> export_model("runs/a", "onnx", "exports/a")  # doctest: +SKIP
    """
    folder = new_folder(out, "out")
    encoder = model if isinstance(model, Encoder) else load(model)
    _check(encoder, to, folder, size)
    try:
        with _whole_or_not_at_all(folder) as partial:
            run = _write(encoder, to, partial, size)
            sizes = [(size, size)] if size is not None else three_sizes(encoder)
            differences = compare(encoder, run, sizes)
            native = [d for d in differences if d.size == sizes[0]]
            refuse_differences(
                native if _other_positions(encoder, to) else differences, f"The export to {folder}"
            )
            write_card(encoder, to, folder, partial / "README.md", differences)
            write_preprocessing(encoder, partial)
    except OSError as error:
        raise ModelError(
            f"The export to {folder} failed: {error}. Free space or choose another out=."
        ) from error
    return Exported(folder, differences)


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, which takes its place when the body succeeds."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check(encoder: Encoder, to: Form, folder: Path, size: int | None) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"out={folder} exists and is not empty; nothing in it was touched. Choose another out=."
        )
    if size is not None and to not in ("onnx", "program"):
        raise ConfigError(
            f"size={size} fixes the side of onnx and program exports; to={to} takes any size. Leave it out."
        )
    if size is not None and size % encoder.patch_size:
        raise ConfigError(
            f"size={size} is no multiple of the patch ({encoder.patch_size} pixels). Choose "
            f"{max(1, round(size / encoder.patch_size)) * encoder.patch_size}."
        )


def _write(encoder: Encoder, to: Form, folder: Path, size: int | None) -> Callable[[Tensor], Embeddings]:
    if to == "transformers":
        return save_transformers(encoder, folder)
    if to == "onnx":
        return save_onnx(encoder, folder, size)
    if to == "program":
        return save_program(encoder, folder, size)
    backbone = encoder.backbone
    if not isinstance(backbone, Backbone):
        raise ModelError(
            f"{type(backbone).__name__} is no backbone that timm or glocal rebuild. Export to=program."
        )
    export_backbone(
        backbone,
        folder,
        mean=encoder.mean,
        std=encoder.std,
        image_size=encoder.image_size,
        extra=encoder.provenance,
    )
    reloaded = load(folder)

    def run(pixels: Tensor) -> Embeddings:
        features = reloaded.features(pixels)
        return features.cls, features.patches

    return run


def _other_positions(encoder: Encoder, to: Form) -> bool:
    """Whether the form resizes position tables a little differently, as transformers does for the first DINO weights."""
    config = getattr(encoder.backbone, "config", None)
    return to == "transformers" and getattr(config, "position_offset", 0.0) > 0

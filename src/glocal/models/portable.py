"""Models that run without glocal: a program of torch.export, and ONNX. Any number of images, any size or one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from glocal.errors import ModelError
from glocal.models.encoder import Encoder
from glocal.models.export_check import Embeddings

PROGRAM, ONNX = "model.pt2", "model.onnx"


class _Embeddings(nn.Module):
    """A backbone with plain outputs."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixels: Tensor) -> Embeddings:
        """Class and patch embeddings of normalised pixels."""
        features = self.backbone(pixels)
        return features.cls, features.patches


def trace(encoder: Encoder, size: int | None = None) -> ExportedProgram:
    """The model as a graph of torch operations: pixels (batch, 3, height, width) to class and patch embeddings.

    Sides are any multiples of the patch, or with `size` this one. Positions are computed from the size in the graph,
    rotary ones included.

    Raises:
        ModelError: when the architecture can't be traced.
    """
    patch, batch = encoder.patch_size, Dim("batch", min=1, max=2**16)
    rows, columns = (Dim(name, min=2, max=2**12) for name in ("rows", "columns"))
    sides = {} if size else {2: patch * rows, 3: patch * columns}
    example = (size, size) if size else (4 * patch, 5 * patch)
    pixels = torch.randn(2, 3, *example)
    try:
        with torch.no_grad(), _quiet():
            return torch.export.export(
                _Embeddings(encoder.backbone).eval(), (pixels,), dynamic_shapes=({0: batch, **sides},)
            )
    except Exception as error:  # torch raises many kinds here, for architectures that decide by numbers
        kind = type(getattr(encoder.backbone, "model", encoder.backbone)).__name__
        cure = "Give size= for one fixed size." if size is None else "Export to=timm instead."
        raise ModelError(f"{kind} can't be traced ({type(error).__name__}). {cure}") from error


def save_program(encoder: Encoder, folder: Path, size: int | None) -> Callable[[Tensor], Embeddings]:
    """Write `model.pt2`; return the reloaded program."""
    torch.export.save(trace(encoder, size), folder / PROGRAM)
    run: Callable[[Tensor], Embeddings] = torch.export.load(folder / PROGRAM).module()
    return run


def save_onnx(encoder: Encoder, folder: Path, size: int | None) -> Callable[[Tensor], Embeddings]:
    """Write `model.onnx`, input `pixels`, outputs `cls` and `patches`; return it run by onnxruntime.

    Raises:
        ModelError: when an extra is missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"to=onnx needs onnx, onnxscript and onnxruntime ({error.name} is missing). Install them: "
            "pip install 'glocal[onnx]'."
        ) from error
    names: dict[str, Any] = {"input_names": ["pixels"], "output_names": ["cls", "patches"]}
    with _quiet():
        program = torch.onnx.export(trace(encoder, size), dynamo=True, verbose=False, **names)
    assert program is not None
    program.save(folder / ONNX)
    session = onnxruntime.InferenceSession(folder / ONNX, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> Embeddings:
        cls, patches = session.run(None, {"pixels": pixels.numpy()})
        return torch.from_numpy(cls), torch.from_numpy(patches)

    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own exporter."""
    import warnings

    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)

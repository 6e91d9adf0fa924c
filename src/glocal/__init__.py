"""glocal: Vision Transformers from your own unlabelled images, good for the whole image and for every patch.

>>> import glocal                                                        # doctest: +SKIP
>>> glocal.pretrain("pw-self", data="photos/", out="runs/a")             # doctest: +SKIP
>>> encoder = glocal.load("runs/a")                                      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from glocal.errors import ConfigError, DataError, GlocalError, ModelError, TrainingError
    from glocal.evaluation.compare import compare
    from glocal.evaluation.interface import evaluate
    from glocal.extraction.embedding_file import embed
    from glocal.models.loading import load
    from glocal.recipes import configure, pretrain

# Looked up on first use: `import glocal` must not import torch, which takes more than a second.
_PUBLIC = {
    "load": "glocal.models.loading",
    "pretrain": "glocal.recipes",
    "configure": "glocal.recipes",
    "embed": "glocal.extraction.embedding_file",
    "evaluate": "glocal.evaluation.interface",
    "compare": "glocal.evaluation.compare",
    "GlocalError": "glocal.errors",
    "ConfigError": "glocal.errors",
    "DataError": "glocal.errors",
    "ModelError": "glocal.errors",
    "TrainingError": "glocal.errors",
}

__all__ = [
    "ConfigError",
    "DataError",
    "GlocalError",
    "ModelError",
    "TrainingError",
    "compare",
    "configure",
    "embed",
    "evaluate",
    "load",
    "pretrain",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'glocal' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

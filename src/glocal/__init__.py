"""glocal: Vision Transformers from your own unlabelled images, good for the whole image and for every patch.

>>> import glocal                                                        # doctest: +SKIP
>>> glocal.pretrain("pw-self", data="photos/", out="runs/a")             # doctest: +SKIP
>>> encoder = glocal.load("runs/a")                                      # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:  # for type checkers; `_ROOMS` below is what Python sees
    from glocal.curation.clusters import curate as curate
    from glocal.curation.duplicates import duplicates as duplicates
    from glocal.errors import ConfigError as ConfigError
    from glocal.errors import DataError as DataError
    from glocal.errors import GlocalError as GlocalError
    from glocal.errors import ModelError as ModelError
    from glocal.errors import TrainingError as TrainingError
    from glocal.evaluation.compare import compare as compare
    from glocal.evaluation.interface import evaluate as evaluate
    from glocal.extraction.embedding_file import embed as embed
    from glocal.extraction.embedding_store import EmbeddingStore as EmbeddingStore
    from glocal.extraction.embedding_stream import iterate_embeddings as iterate_embeddings
    from glocal.lookup.answers import search as search
    from glocal.lookup.index import Index as Index
    from glocal.lookup.index import index as index
    from glocal.models.loading import load as load
    from glocal.recipes import configure as configure
    from glocal.recipes import pretrain as pretrain

# Looked up on first use: `import glocal` must not import torch, which takes more than a second.
_ROOMS = {
    "glocal.models.loading": ("load",),
    "glocal.recipes": ("configure", "pretrain"),
    "glocal.extraction.embedding_file": ("embed",),
    "glocal.extraction.embedding_store": ("EmbeddingStore",),
    "glocal.extraction.embedding_stream": ("iterate_embeddings",),
    "glocal.curation.clusters": ("curate",),
    "glocal.curation.duplicates": ("duplicates",),
    "glocal.lookup.answers": ("search",),
    "glocal.lookup.index": ("Index", "index"),
    "glocal.evaluation.compare": ("compare",),
    "glocal.evaluation.interface": ("evaluate",),
    "glocal.errors": ("ConfigError", "DataError", "GlocalError", "ModelError", "TrainingError"),
}
_PUBLIC = {name: room for room, names in _ROOMS.items() for name in names}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'glocal' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])

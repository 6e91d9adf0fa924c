"""Evaluation: every protocol a file, `evaluate` to run one by name, `compare.compare` to set results side by side.

Names are imported when asked for, so that `import glocal.evaluation` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glocal.evaluation.base import PROTOCOLS as PROTOCOLS
    from glocal.evaluation.base import ProtocolConfig as ProtocolConfig
    from glocal.evaluation.base import Work as Work
    from glocal.evaluation.base import evaluate as evaluate
    from glocal.evaluation.embedding import embed as embed
    from glocal.evaluation.embeddings import extract_embeddings as extract_embeddings
    from glocal.evaluation.extraction import FeatureTransform as FeatureTransform
    from glocal.evaluation.extraction import iterate_features as iterate_features
    from glocal.evaluation.knn import KnnProbe as KnnProbe
    from glocal.evaluation.knn import knn_classify as knn_classify
    from glocal.evaluation.results import Result as Result
    from glocal.evaluation.statistics import effective_rank as effective_rank

_HOMES = {
    "PROTOCOLS": "base",
    "ProtocolConfig": "base",
    "Result": "results",
    "Work": "base",
    "evaluate": "base",
    "embed": "embedding",
    "extract_embeddings": "embeddings",
    "FeatureTransform": "extraction",
    "iterate_features": "extraction",
    "KnnProbe": "knn",
    "knn_classify": "knn",
    "effective_rank": "statistics",
}

__all__ = [
    "PROTOCOLS",
    "FeatureTransform",
    "KnnProbe",
    "ProtocolConfig",
    "Result",
    "Work",
    "effective_rank",
    "embed",
    "evaluate",
    "extract_embeddings",
    "iterate_features",
    "knn_classify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glocal.evaluation' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"glocal.evaluation.{_HOMES[name]}"), name)

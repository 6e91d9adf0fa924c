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
    from glocal.evaluation.classification.knn import KnnProbe as KnnProbe
    from glocal.evaluation.classification.knn import knn_classify as knn_classify
    from glocal.evaluation.features.embedding import embed as embed
    from glocal.evaluation.features.embeddings import extract_embeddings as extract_embeddings
    from glocal.evaluation.features.extraction import FeatureTransform as FeatureTransform
    from glocal.evaluation.features.extraction import iterate_features as iterate_features
    from glocal.evaluation.results import Result as Result
    from glocal.evaluation.statistics import effective_rank as effective_rank

_HOMES = {
    "PROTOCOLS": "base",
    "ProtocolConfig": "base",
    "Result": "results",
    "Work": "base",
    "evaluate": "base",
    "embed": "features.embedding",
    "extract_embeddings": "features.embeddings",
    "FeatureTransform": "features.extraction",
    "iterate_features": "features.extraction",
    "KnnProbe": "classification.knn",
    "knn_classify": "classification.knn",
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

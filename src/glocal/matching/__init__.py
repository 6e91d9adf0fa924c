"""Which patches belong together: by geometry across views, by similarity within one."""

from glocal.matching.geometric import (
    BilinearTargets,
    Matches,
    TeacherIndex,
    bilinear_targets,
    match_patches,
    teacher_index,
)
from glocal.matching.similar_patches import SimilarPatches, similar_patches

__all__ = [
    "BilinearTargets",
    "Matches",
    "SimilarPatches",
    "TeacherIndex",
    "bilinear_targets",
    "match_patches",
    "similar_patches",
    "teacher_index",
]

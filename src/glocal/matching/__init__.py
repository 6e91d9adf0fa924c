"""Which patches belong together: by geometry across views, by similarity within one."""

from glocal.matching.geometric import (
    BilinearTargets,
    Matches,
    TeacherIndex,
    bilinear_targets,
    match_patches,
    teacher_index,
)
from glocal.matching.neighbours import Neighbours, neighbours

__all__ = [
    "BilinearTargets",
    "Matches",
    "Neighbours",
    "TeacherIndex",
    "bilinear_targets",
    "match_patches",
    "neighbours",
    "teacher_index",
]

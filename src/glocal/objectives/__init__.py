"""One file a term of the loss. Importing a term's configuration here is all it takes to make it a term of every recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from glocal.config import imported_kinds, open_union
from glocal.objectives.base import ObjectiveConfig
from glocal.objectives.by_contrast.contrast import ContrastConfig as ContrastConfig
from glocal.objectives.by_contrast.instance import InstanceConfig as InstanceConfig
from glocal.objectives.by_contrast.local_group import LocalGroupConfig as LocalGroupConfig
from glocal.objectives.by_contrast.matched_contrast import MatchedContrastConfig as MatchedContrastConfig
from glocal.objectives.by_regression.distil import DistilConfig as DistilConfig
from glocal.objectives.by_relation.relations import RelationsConfig as RelationsConfig
from glocal.objectives.by_spread.characteristic import CharacteristicConfig as CharacteristicConfig
from glocal.objectives.by_spread.coding_rate import CodingRateConfig as CodingRateConfig
from glocal.objectives.by_spread.masked_alignment import MaskedAlignmentConfig as MaskedAlignmentConfig
from glocal.objectives.by_spread.spread import SpreadConfig as SpreadConfig
from glocal.objectives.over_prototypes.image_level import ImageLevelConfig as ImageLevelConfig
from glocal.objectives.over_prototypes.local_global_reference import (
    LocalGlobalReferenceConfig as LocalGlobalReferenceConfig,
)
from glocal.objectives.over_prototypes.masked_patches import MaskedPatchesConfig as MaskedPatchesConfig
from glocal.objectives.over_prototypes.matched_patches import MatchedPatchesConfig as MatchedPatchesConfig
from glocal.objectives.over_prototypes.prototype_term import HeadConfig as HeadConfig
from glocal.objectives.over_prototypes.self_patch import SelfPatchConfig as SelfPatchConfig

KINDS = imported_kinds(globals(), ObjectiveConfig, "kind")
"""The terms by their `kind`."""

if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:
    # What a configuration's `objectives` may hold: one of the terms above, chosen by its `kind`, or one of one's own.
    AnyObjective = open_union(KINDS, ObjectiveConfig, "kind", needs=("build",))

"""One file a term of the loss. `AnyObjective` is what a configuration's `objectives` may hold, chosen by `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.by_contrast.contrast import Contrast, ContrastConfig
from glocal.objectives.by_contrast.instance import Instance, InstanceConfig
from glocal.objectives.by_contrast.local_group import LocalGroup, LocalGroupConfig
from glocal.objectives.by_contrast.matched_contrast import MatchedContrast, MatchedContrastConfig
from glocal.objectives.by_regression.distil import Distil, DistilConfig
from glocal.objectives.by_relation.relations import Relations, RelationsConfig
from glocal.objectives.by_spread.characteristic import Characteristic, CharacteristicConfig
from glocal.objectives.by_spread.coding_rate import CodingRate, CodingRateConfig
from glocal.objectives.by_spread.masked_alignment import MaskedAlignment, MaskedAlignmentConfig
from glocal.objectives.by_spread.spread import Spread, SpreadConfig
from glocal.objectives.over_prototypes.image_level import ImageLevel, ImageLevelConfig
from glocal.objectives.over_prototypes.local_global_reference import (
    LocalGlobalReference,
    LocalGlobalReferenceConfig,
)
from glocal.objectives.over_prototypes.masked_patches import MaskedPatches, MaskedPatchesConfig
from glocal.objectives.over_prototypes.matched_patches import MatchedPatches, MatchedPatchesConfig
from glocal.objectives.over_prototypes.prototype_term import HeadConfig
from glocal.objectives.over_prototypes.self_patch import SelfPatch, SelfPatchConfig

AnyObjective = Annotated[
    ImageLevelConfig
    | MatchedPatchesConfig
    | LocalGlobalReferenceConfig
    | SelfPatchConfig
    | InstanceConfig
    | LocalGroupConfig
    | ContrastConfig
    | MatchedContrastConfig
    | RelationsConfig
    | DistilConfig
    | CodingRateConfig
    | SpreadConfig
    | CharacteristicConfig
    | MaskedPatchesConfig
    | MaskedAlignmentConfig,
    Field(discriminator="kind"),
]

__all__ = [
    "AnyObjective",
    "Branch",
    "Characteristic",
    "CharacteristicConfig",
    "CodingRate",
    "CodingRateConfig",
    "Contrast",
    "ContrastConfig",
    "Distil",
    "DistilConfig",
    "HeadConfig",
    "ImageLevel",
    "ImageLevelConfig",
    "Instance",
    "InstanceConfig",
    "LocalGlobalReference",
    "LocalGlobalReferenceConfig",
    "LocalGroup",
    "LocalGroupConfig",
    "MaskedAlignment",
    "MaskedAlignmentConfig",
    "MaskedPatches",
    "MaskedPatchesConfig",
    "MatchedContrast",
    "MatchedContrastConfig",
    "MatchedPatches",
    "MatchedPatchesConfig",
    "Objective",
    "ObjectiveConfig",
    "Relations",
    "RelationsConfig",
    "Role",
    "SelfPatch",
    "SelfPatchConfig",
    "Spread",
    "SpreadConfig",
    "Term",
]

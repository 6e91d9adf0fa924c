"""One file a term of the loss. Importing a term's configuration here is all it takes to make it a term of every recipe."""

from __future__ import annotations

import functools
import operator
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from glocal.config import OwnKinds
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

KINDS: dict[str, type[ObjectiveConfig]] = {
    term.model_fields["kind"].default: term
    for term in list(globals().values())
    if isinstance(term, type) and issubclass(term, ObjectiveConfig) and "kind" in term.model_fields
}
"""The terms by their `kind`."""

if TYPE_CHECKING:
    AnyObjective = ObjectiveConfig
else:
    # What a configuration's `objectives` may hold: one of the terms above, chosen by its `kind`, or one of one's own.
    AnyObjective = Annotated[
        functools.reduce(operator.or_, KINDS.values()),
        Field(discriminator="kind"),
        OwnKinds(ObjectiveConfig, "kind", needs=("build",)),
    ]

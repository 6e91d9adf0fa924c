"""Today's recipes beside DINO's: iBOT, DINOv2's short one, SimDINO and SimDINOv2, with our views and scales.

iBOT: Zhou et al. 2022, arXiv 2111.07832; ViT-S/16, 800 epochs, k-NN 75.2 and linear 77.9. DINOv2: Oquab et al. 2023,
arXiv 2304.07193; ViT-L/16 on ImageNet-1k, 81.6 and 82.9. SimDINO: Wu et al. 2025, arXiv 2502.10385; ViT-B/16, 100
epochs, 74.9 and 77.3, SimDINOv2 78.1 and 79.7. The authors' figures; never run here at that scale.

    glocal pretrain ibot data=photos/ out=runs/ibot
    glocal pretrain simdinov2 data=photos/ out=runs/simdinov2
"""

from __future__ import annotations

from collections.abc import Mapping

from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_spread.coding_rate import CodingRateConfig
from glocal.objectives.by_spread.masked_alignment import MaskedAlignmentConfig
from glocal.objectives.by_spread.spread import SpreadConfig
from glocal.objectives.over_prototypes.masked_patches import MaskedPatchesConfig
from glocal.objectives.over_prototypes.prototype_term import CentringConfig
from glocal.recipes.dino import dino, image_term
from glocal.recipes.scales import Scale
from glocal.training.config import RunConfig
from glocal.views.groups import ViewGroup


def ibot(scale: Scale, data: str, out: str) -> RunConfig:
    """iBOT: DINO's term, and masked patches over the same prototypes by the same head.

    Never run here at published scale.
    """
    objectives = {"image": image_term(scale), "masked": masked_term(scale, head_of="image")}
    update = {"recipe": "ibot", "views": unmasked_views(scale.views), "objectives": objectives}
    return dino(scale, data, out).model_copy(update=update)


def dinov2_short(scale: Scale, data: str, out: str) -> RunConfig:
    """DINOv2's terms: iBOT's two with heads of their own and Sinkhorn-Knopp, and KoLeo on the image embeddings.

    Never run here at published scale.
    """
    sinkhorn = CentringConfig(method="sinkhorn")
    objectives = {
        "image": image_term(scale).model_copy(update={"centring": sinkhorn}),
        "masked": masked_term(scale, head_of=None).model_copy(update={"centring": sinkhorn}),
        "koleo": SpreadConfig(form="koleo", weight=0.1),
    }
    update = {"recipe": "dinov2-short", "views": unmasked_views(scale.views), "objectives": objectives}
    return dino(scale, data, out).model_copy(update=update)


def simdino(scale: Scale, data: str, out: str) -> RunConfig:
    """SimDINO: alignment of views and the coding rate of images, without prototypes, temperatures and centres.

    Never run here at published scale.
    """
    objectives = {"image": CodingRateConfig(head=sphere(scale))}
    return dino(scale, data, out).model_copy(update={"recipe": "simdino", "objectives": objectives})


def simdinov2(scale: Scale, data: str, out: str) -> RunConfig:
    """SimDINOv2: SimDINO, and alignment of masked patches by the same head.

    Never run here at published scale.
    """
    head = sphere(scale)
    objectives = {
        "image": CodingRateConfig(head=head),
        "masked": MaskedAlignmentConfig(head=head, head_of="image"),
    }
    update = {"recipe": "simdinov2", "views": unmasked_views(scale.views), "objectives": objectives}
    return dino(scale, data, out).model_copy(update=update)


def masked_term(scale: Scale, head_of: str | None) -> MaskedPatchesConfig:
    """IBOT's patch term with the scale's head and temperatures."""
    return MaskedPatchesConfig(
        head=scale.image_head,
        head_of=head_of,
        teacher_temperature=scale.teacher_temperature,
        centring=scale.centring,
    )


def sphere(scale: Scale) -> ProjectionConfig:
    """A projection as wide as the scale's prototype head, onto the sphere of its bottleneck."""
    head = scale.image_head
    return ProjectionConfig(hidden=head.hidden, layers=head.layers, out_dim=head.bottleneck, init=head.init)


def unmasked_views(views: Mapping[str, ViewGroup]) -> dict[str, ViewGroup]:
    """Views of which the student keeps all patches: a masked patch is one that it is asked about, not one left out."""
    return {name: group.model_copy(update={"keep_patches": 1.0}) for name, group in views.items()}

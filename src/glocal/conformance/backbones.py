"""What every backbone must do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from glocal.conformance.small_runs import PROGRESS, make_views, small_config
from glocal.conformance.suite import require
from glocal.errors import ModelError
from glocal.models.backbone import Backbone, BackboneConfig
from glocal.models.build import build_backbone
from glocal.models.export import export_backbone
from glocal.models.features import Features
from glocal.training.network import StepInput, build_distillation

SMALL = BackboneConfig(size="micro", embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32)
"""What a backbone of one's own is asked to be; it may take what it likes of it."""


def gives_features_of_any_size(config: BackboneConfig) -> None:
    """Images of any height and width that the patches divide give an embedding of the image and one of every patch."""
    backbone = _built(config)
    side, dim = backbone.patch_size, backbone.embed_dim
    for rows, columns in ((4, 4), (2, 5)):
        features = backbone(_pixels(side, rows, columns))
        require(isinstance(features, Features), f"forward gave {type(features).__name__}, not Features")
        for name, shape in (("cls", (3, dim)), ("patches", (3, rows * columns, dim))):
            seen = tuple(getattr(features, name).shape)
            require(seen == shape, f"{name} of {rows}x{columns} patches is {seen}, expected {shape}")
        grid = tuple(features.grid)
        require(grid == (rows, columns), f"the grid is {grid}, expected {(rows, columns)}")
        before = features.tokens_before_norm
        require(
            before.shape[0] == 3 and before.shape[-1] == dim, f"tokens_before_norm is {tuple(before.shape)}"
        )


def refuses_what_patches_do_not_divide(config: BackboneConfig) -> None:
    """Pixels that the patches don't divide are a ModelError."""
    backbone = _built(config)
    if backbone.patch_size == 1:
        return
    try:
        backbone(torch.zeros(1, 3, backbone.patch_size + 1, 2 * backbone.patch_size))
    except ModelError:
        return
    raise AssertionError(f"an image of height {backbone.patch_size + 1} was taken")


def treats_images_alone(config: BackboneConfig) -> None:
    """In eval mode an image's features don't depend on its batch, nor on when they are asked for."""
    backbone = _built(config)
    pixels = _pixels(backbone.patch_size, 4, 4)
    whole, again, alone = backbone(pixels), backbone(pixels), backbone(pixels[:1])
    require(torch.equal(whole.cls, again.cls), "a second pass gives other features")
    torch.testing.assert_close(whole.cls[:1], alone.cls, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.patches[:1], alone.patches, rtol=1e-4, atol=1e-5)
    running = [n for n, m in backbone.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    require(
        not running,
        f"{', '.join(running)}: running statistics, which a moving average doesn't follow; use LayerNorm",
    )


def the_last_layer_is_the_output(config: BackboneConfig) -> None:
    """`intermediate` gives the layers asked for, -1 being what `forward` gives."""
    backbone = _built(config)
    pixels = _pixels(backbone.patch_size, 4, 4)
    layers = backbone.intermediate(pixels, [0, -1])
    require(len(layers) == 2, f"asked for 2 layers, got {len(layers)}")
    torch.testing.assert_close(layers[1].patches, backbone(pixels).patches, rtol=1e-4, atol=1e-5)


def drops_patches_or_says_no(config: BackboneConfig) -> None:
    """Asked for some of the patches only, it gives these, or raises a ModelError."""
    backbone = _built(config)
    kept = torch.tensor([[0, 3, 5]]).expand(3, 3)
    try:
        features = backbone(_pixels(backbone.patch_size, 4, 4), kept)
    except ModelError:
        return
    seen = tuple(features.patches.shape[:2])
    require(
        seen == (3, 3) and features.kept is not None,
        f"asked for 3 patches of 16, got {seen} and kept={features.kept}",
    )


def trains_with_both_kinds_of_term(config: BackboneConfig) -> None:
    """An image and a patch term reach every parameter of it."""
    small = small_config(backbone=config, views=_views_for(config))
    model = build_distillation(small)
    loss, _ = model(StepInput(make_views(4, small.views), PROGRESS, False))
    loss.backward()
    without = [n for n, p in model.student.backbone.named_parameters() if p.requires_grad and p.grad is None]
    require(
        bool(loss.isfinite()) and not without,
        f"loss {float(loss.detach()):.4g}; no gradient: {', '.join(without)}",
    )


def comes_back_from_disk(config: BackboneConfig) -> None:
    """Exported and loaded again it gives the same features."""
    with tempfile.TemporaryDirectory() as folder:
        export_backbone(_built(config), folder, image_size=4 * _built(config).patch_size)


CHECKS: Sequence[Callable[[BackboneConfig], None]] = (
    gives_features_of_any_size,
    refuses_what_patches_do_not_divide,
    treats_images_alone,
    the_last_layer_is_the_output,
    drops_patches_or_says_no,
    trains_with_both_kinds_of_term,
    comes_back_from_disk,
)


def _built(config: BackboneConfig) -> Backbone:
    torch.manual_seed(0)
    return build_backbone(config).eval()


def _pixels(side: int, rows: int, columns: int) -> Tensor:
    return torch.randn(3, 3, rows * side, columns * side, generator=torch.Generator().manual_seed(0))


def _views_for(config: BackboneConfig) -> dict[str, object]:
    sides = {"global": 4, "local": 2}
    side = _built(config).patch_size
    return {
        name: group.model_copy(update={"size": sides[name] * side})
        for name, group in small_config().views.items()
    }

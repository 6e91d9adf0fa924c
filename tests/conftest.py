"""What tests share: where real data is, a small configuration, and views without any files."""

from __future__ import annotations

import os

# One thread, before torch is imported: the tensors are tiny, and sums cut over threads round differently.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
import torch
from hypothesis import settings

# All annotations are checked at every call: types, and shapes by name. Before anything of the package is imported.
jaxtyping.install_import_hook(
    ["glocal.views", "glocal.matching", "glocal.objectives", "glocal.models"], "checked_annotations.check"
)

from glocal.models.backbone import BackboneConfig
from glocal.objectives import HeadConfig, ImageLevelConfig, MatchedPatchesConfig
from glocal.training.config import RunConfig
from glocal.views.batch import ViewBatch, Views
from glocal.views.groups import ViewGroup

# The same examples on every machine and no time limit for one: a loaded machine must not fail a test.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")

SMALL_HEAD = HeadConfig(hidden=32, layers=2, bottleneck=16, prototypes=24, frozen_epochs=0)
GROUPS = {
    "global": ViewGroup(count=2, size=32, area=(0.4, 1.0)),
    "local": ViewGroup(count=3, size=16, area=(0.1, 0.4), seen_by="student"),
}


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    """A run sets torch's global precision of float32 products; no test may depend on which ran before it."""
    torch.set_float32_matmul_precision("highest")


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the check of annotations, which refuses bad input before our own errors can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real image sets, or a skip that says what is missing."""
    folder = Path(os.environ.get("GLOCAL_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("no real image sets here; set GLOCAL_TEST_DATA to a folder that has them")
    return folder


def small_config(**update: object) -> RunConfig:
    """A run of a 32-wide, 2-deep ViT on digits with an image and a patch term."""
    config = RunConfig(
        recipe="test",
        data="digits",
        out="unused",
        views=GROUPS,
        backbone=BackboneConfig(
            size="micro", embed_dim=32, depth=2, num_heads=2, patch_size=8, image_size=32
        ),
        objectives={
            "image": ImageLevelConfig(head=SMALL_HEAD),
            "patch": MatchedPatchesConfig(head=SMALL_HEAD),
        },
    )
    return config.model_copy(update=update)


def make_views(batch: int, groups: dict[str, ViewGroup] = GROUPS, seed: int = 0, source: int = 64) -> Views:
    """Random pixels with boxes and flips that lie in a square source."""
    generator = torch.Generator().manual_seed(seed)

    def group(settings: ViewGroup) -> ViewBatch:
        height, width = settings.height_width
        shape = (batch, settings.count)
        low, high = (source * area**0.5 for area in settings.area)
        sides = (low + (high - low) * torch.rand(*shape, 2, generator=generator)).floor()
        corner = ((source - sides) * torch.rand(*shape, 2, generator=generator)).floor()
        return ViewBatch(
            pixels=torch.randn(*shape, 3, height, width, generator=generator),
            box=torch.cat([corner, sides], dim=-1),
            flip=torch.rand(shape, generator=generator) < 0.5,
            strong=torch.rand(shape, generator=generator) < 0.5,
        )

    return Views(
        groups={name: group(settings) for name, settings in groups.items()},
        seed=torch.randint(2**62, (batch,), generator=generator),
        index=torch.arange(batch),
        source_size=torch.full((batch, 2), source),
    )

"""glocal's pieces, each by itself, in a loop and a network that know nothing of glocal: python examples/own_loop.py."""

import copy
import sys

import torch
from torch import nn

from glocal.data import open_source
from glocal.matching.geometric import match_patches
from glocal.models.features import Features
from glocal.models.heads import ProjectionHead
from glocal.models.teacher import MovingAverage, freeze
from glocal.objectives import ContrastConfig
from glocal.objectives.base import Branch
from glocal.schedules import Progress
from glocal.views.augment import augment
from glocal.views.groups import ViewGroup
from glocal.views.loader import make_loader
from glocal.views.photometric.presets import dino_global_2

PATCH, DIM = 8, 64


class Network(nn.Module):
    """Anybody's network, with a projection of its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.mix = nn.Sequential(nn.GELU(), nn.Conv2d(DIM, DIM, 3, padding=1), nn.GELU())
        self.project = ProjectionHead(DIM, hidden=64, out_dim=16, fan_in=True)

    def forward(self, pixels: torch.Tensor) -> Features:
        """(batch, views, 3, height, width) to the embeddings of views and patches."""
        maps = self.mix(self.embed(pixels.flatten(0, 1)))
        patches = maps.flatten(2).transpose(1, 2)
        features = Features(patches.mean(dim=1), patches, tuple(maps.shape[2:]), patches)
        return features.unflatten(pixels.shape[1])


torch.manual_seed(0)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 100
groups = {"large": ViewGroup(count=2, size=32, area=(0.5, 1.0), photometric=(dino_global_2(),))}
loader = make_loader(open_source("digits"), groups, batch_size=64, seed=0, workers=0, total_steps=steps)
student = Network()
teacher = freeze(copy.deepcopy(student))
contrast = ContrastConfig().build(DIM, groups)
heads = contrast.build_heads("student")
average = MovingAverage(teacher, student)
optimiser = torch.optim.AdamW([*student.parameters(), *heads.parameters()], lr=1e-3)

for step, batch in enumerate(loader):
    views = augment(batch.views, groups, PATCH)  # boxes, flips and seeds travel with the pixels
    large = views.groups["large"]
    seen, target = student(large.pixels), teacher(large.pixels)
    # A term of glocal's on features of anybody's: images told apart.
    branches = (Branch(student, heads, {"large": seen}), Branch(teacher, heads, {"large": target}))
    image_loss = contrast(*branches, views, Progress(step, steps, 28), watch=False).loss
    # The matcher alone: patches that show the same place in both views agree.
    (box, other_box), (flip, other_flip) = large.box.unbind(1), large.flip.unbind(1)
    pairs = match_patches(box, flip, seen.grid, other_box, other_flip, seen.grid)
    there = teacher.project(target.patches[:, 0])[pairs.image, pairs.patch_a]
    here = student.project(seen.patches[:, 1])[pairs.image, pairs.patch_b]
    patch_loss = 1 - (here * there).sum(dim=-1).mean()

    optimiser.zero_grad()
    (image_loss + 0.5 * patch_loss).backward()
    optimiser.step()
    average.update(0.99)
    if step % 20 == 0 or step == steps - 1:
        print(f"step {step}: image {image_loss.detach():.3f}, patch {patch_loss.detach():.3f}")

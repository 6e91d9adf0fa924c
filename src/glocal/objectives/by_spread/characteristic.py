"""SIGReg: embeddings kept like samples of a standard Gaussian, by their characteristic function along random lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from glocal.distributed import sum_over_processes, world_size
from glocal.models.heads import unit_length
from glocal.objectives.base import Branch, Objective, ObjectiveConfig, Role, Term
from glocal.objectives.view_pairs import largest_views, views_seen_by
from glocal.schedules import Progress, Schedule
from glocal.views.batch import Views
from glocal.views.groups import ViewGroup
from glocal.views.randomness import hash_seed

_SALT = sum(b"characteristic")


class CharacteristicConfig(ObjectiveConfig):
    """Which embeddings are held against a Gaussian, and how finely."""

    kind: Literal["characteristic"] = "characteristic"
    weight: float | Schedule = 0.05
    tokens: Literal["class", "patches"] = "class"
    """The image embeddings of the student's large views, or all their patch embeddings."""
    projections: Annotated[int, Field(ge=1)] = 256
    """Random lines a step. New ones at every step: many steps see many lines, so few a step suffice."""
    reach: Annotated[float, Field(gt=0)] = 5.0
    """Frequencies run from -reach to reach."""
    points: Annotated[int, Field(ge=3)] = 17
    """Of the trapezoid rule; odd, so that one of them is 0."""

    def build(self, embed_dim: int, groups: Mapping[str, ViewGroup]) -> Characteristic:
        """Make the term."""
        return Characteristic(self, embed_dim, groups)


class Characteristic(Objective):
    """Mean over views and random lines of the Epps-Pulley statistic of the student's embeddings against N(0, 1).

    Balestriero & LeCun 2025, LeJEPA (arXiv 2511.08544), sketched isotropic Gaussian regularisation: by Cramer and Wold
    a distribution is an isotropic Gaussian when all its projections are, and a projection y_1..y_n is held against it by

        n * integral |1/n sum_j exp(i t y_j) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) dt,

    whose gradient is bounded. From the paper's formula alone. Both functions are conjugate-symmetric in t, so only t >= 0
    is computed. Lines are a pure function of the step, the same on every process; sums run over all processes.
    Departures: on embeddings behind the final norm instead of a projector's output; large views only; fewer lines.
    Cost: (tokens x embedding x lines) products and as many x points / 2 sines and cosines a view.
    """

    frequency: Float[Tensor, " half"]
    quadrature: Float[Tensor, " half"]

    def __init__(self, config: CharacteristicConfig, embed_dim: int, groups: Mapping[str, ViewGroup]) -> None:
        super().__init__()
        self.config, self.embed_dim = config, embed_dim
        self.views = largest_views(views_seen_by("student", groups), groups)
        half = config.points // 2
        frequency = torch.linspace(0.0, config.reach, half + 1)
        quadrature = torch.full((half + 1,), 2.0 * config.reach / half)
        quadrature[[0, -1]] /= 2.0
        self.register_buffer("frequency", frequency, persistent=False)
        self.register_buffer("quadrature", quadrature, persistent=False)

    @property
    def needs_teacher(self) -> bool:
        """It is the student's embeddings that are shaped."""
        return False

    def build_heads(self, role: Role) -> nn.Module:
        """None: embeddings are shaped as they are."""
        return nn.Identity()

    def forward(
        self, student: Branch, teacher: Branch, views: Views, progress: Progress, watch: bool
    ) -> Term:
        """Project every view's embeddings onto this step's lines and compare characteristic functions."""
        lines = random_lines(self.embed_dim, self.config.projections, progress.step)
        lines = lines.to(views.device, non_blocking=True)
        statistics = []
        for name, number in self.views:
            features = student.features[name]
            tokens = (
                features.cls[:, number]
                if self.config.tokens == "class"
                else features.patches[:, number].flatten(0, 1)
            )
            with torch.autocast(views.device.type, enabled=False):
                statistics.append(self.statistic(tokens.float() @ lines))
        return Term(torch.stack(statistics).mean(), {})

    def statistic(self, projected: Float[Tensor, "tokens lines"]) -> Float[Tensor, ""]:
        """Mean over lines of the Epps-Pulley statistic of all processes' tokens."""
        count = projected.shape[0] * world_size()
        angle = projected[..., None] * self.frequency
        sums = sum_over_processes(torch.stack([angle.cos().sum(dim=0), angle.sin().sum(dim=0)]))
        real, imaginary = sums / count
        gaussian = (-self.frequency.square() / 2).exp()
        squared: Tensor = (real - gaussian).square() + imaginary.square()
        return (squared * gaussian * self.quadrature).sum(dim=1).mean() * count


def random_lines(dim: int, count: int, step: int) -> Float[Tensor, "dim lines"]:
    """Unit vectors, uniformly on the sphere, drawn on the CPU so that every device has the same.

    >>> random_lines(3, 5, step=0).norm(dim=0)
    tensor([1., 1., 1., 1., 1.])
    """
    generator = torch.Generator().manual_seed(hash_seed(_SALT, step))
    return unit_length(torch.randn(count, dim, generator=generator)).T

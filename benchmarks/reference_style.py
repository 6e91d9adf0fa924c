"""A DINO step as the published code style writes it, for comparison: eager, everything held, loops in Python.

Attention as two products and a softmax, one forward pass a resolution, a head on every class token up to all logits, the
cross-entropy pair by pair, gradients clipped and the teacher averaged parameter by parameter with a wait for each norm. The
arithmetic is that of Caron et al. 2021; written anew, not copied.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = {"micro": (64, 4, 4), "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}
"""Width, depth and heads."""


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) to tokens."""
        batch, count, dim = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, count, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) * (dim // self.heads) ** -0.5).softmax(dim=-1)
        x = x + self.proj((weights @ value).transpose(1, 2).reshape(batch, count, dim))
        return x + torch.as_tensor(self.mlp(self.norm2(x)))


class PlainNetwork(nn.Module):
    """ViT with patches of 16, and DINO's head behind its class token."""

    def __init__(self, size: str, prototypes: int) -> None:
        super().__init__()
        dim, depth, heads = WIDTHS[size]
        self.patch_embed = nn.Conv2d(3, dim, 16, 16)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 1 + 14 * 14, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, 256) * 0.02)

    def forward(self, views: list[Tensor]) -> Tensor:
        """Logits (views x batch, prototypes): a backbone pass for every resolution, then the head on all."""
        sizes = dict.fromkeys(view.shape[-1] for view in views)
        cls = [self.backbone(torch.cat([v for v in views if v.shape[-1] == side])) for side in sizes]
        bottleneck = functional.normalize(self.mlp(torch.cat(cls)), dim=-1)
        return bottleneck @ functional.normalize(self.prototypes, dim=-1).t()

    def backbone(self, pixels: Tensor) -> Tensor:
        """Class tokens (B, D)."""
        patches = self.patch_embed(pixels)
        rows, columns = patches.shape[-2:]
        table = self.positions[:, 1:].reshape(1, 14, 14, -1).permute(0, 3, 1, 2)
        if (rows, columns) != (14, 14):
            table = functional.interpolate(table, (rows, columns), mode="bicubic")
        tokens = patches.flatten(2).transpose(1, 2) + table.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1) + self.positions[:, :1], tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        return torch.as_tensor(self.norm(x))[:, 0]


class PlainStep:
    """Student, teacher, centre, AdamW; one step on views that are drawn already."""

    def __init__(self, size: str, prototypes: int, device: torch.device, autocast: bool) -> None:
        self.student = PlainNetwork(size, prototypes).to(device)
        self.teacher = PlainNetwork(size, prototypes).to(device).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())
        self.centre = torch.zeros(1, prototypes, device=device)
        self.optimiser = torch.optim.AdamW(self.student.parameters(), lr=1e-4, weight_decay=0.04)
        self.device, self.autocast = device, autocast

    def step(self, views: list[Tensor]) -> float:
        """Two large views first; returns the loss, as the published loop reads it every step."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            with torch.no_grad():
                targets = self.teacher(views[:2]).float()
            online = self.student(views).float() / 0.1
        loss = self.loss(online.chunk(len(views)), targets)
        value = loss.item()
        self.optimiser.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                share = 3.0 / (parameter.grad.norm(2).item() + 1e-6)
                if share < 1:
                    parameter.grad.mul_(share)
        self.optimiser.step()
        with torch.no_grad():
            for student, teacher in zip(self.student.parameters(), self.teacher.parameters(), strict=True):
                teacher.mul_(0.996).add_((1 - 0.996) * student.detach())
            self.centre = self.centre * 0.9 + targets.mean(dim=0, keepdim=True) * 0.1
        return value

    def loss(self, online: tuple[Tensor, ...], targets: Tensor) -> Tensor:
        """The mean cross-entropy over pairs of a teacher's view and another view of the student."""
        total, pairs = torch.zeros((), device=self.device), 0
        for number, target in enumerate(((targets - self.centre) / 0.04).softmax(dim=-1).chunk(2)):
            for other, logits in enumerate(online):
                if other != number:
                    total = total + (-target * logits.log_softmax(dim=-1)).sum(dim=-1).mean()
                    pairs += 1
        return total / pairs

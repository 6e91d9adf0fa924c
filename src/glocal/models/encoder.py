"""A frozen backbone with its preprocessing: what evaluation, embedding and pictures work with."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Shaped
from PIL import Image
from torch import Tensor, nn

from glocal.data.decoding import decode_image
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.errors import ModelError
from glocal.models.features import Features
from glocal.models.precision import Precision, computing
from glocal.models.preprocessing import FeatureTransform

ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class LoadReport:
    """Which names of a checkpoint found their place. `ignored` are known not to belong to a backbone."""

    layout: str
    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    network: str = ""
    """Which of a file's networks was taken ('teacher'), when it holds several."""
    note: str = ""
    """What a person must know of how these weights are used, such as a part that the file lacks."""
    licence: str | None = None
    """Under which the weights are, as far as known."""

    def summary(self) -> str:
        """One line for people.

        >>> LoadReport("dino", ("cls_token",), ignored=("head.mlp.0.weight",)).summary()
        'dino layout: 1 matched, 0 missing, 0 unexpected, 1 ignored (head.mlp.0.weight)'
        """
        network = f", {self.network}" if self.network else ""
        counts = [
            f"{len(names)} {label}{f' ({shorten(names)})' if label != 'matched' and names else ''}"
            for label, names in (
                ("matched", self.matched), ("missing", self.missing),
                ("unexpected", self.unexpected), ("ignored", self.ignored),
            )
        ]  # fmt: skip
        note = f"; {self.note}" if self.note else ""
        return f"{self.layout} layout{network}: {', '.join(counts)}{note}"


def shorten(names: Sequence[str], most: int = 4) -> str:
    """The first few of a list of names and how many more there are.

    >>> shorten(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


@dataclass
class Encoder:
    """A backbone in eval mode, without gradients, and how its input is prepared.

    `backbone` maps normalised pixels (batch, 3, height, width) to `Features`; `image_size` is the side at which it is
    evaluated by default. A backbone that is being trained may be wrapped too: its mode is restored after each call.

    >>> from glocal.models.backbone import BackboneConfig
    >>> from glocal.models.vit import VisionTransformer
    >>> backbone = VisionTransformer(BackboneConfig(size="micro", patch_size=8, image_size=32))
    >>> encoder = Encoder("random", backbone, 64, 8, 32)
    >>> encoder.features(encoder.normalise(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))).cls.shape
    torch.Size([1, 64])
    """

    name: str
    backbone: nn.Module
    embed_dim: int
    patch_size: int
    image_size: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    report: LoadReport | None = field(default=None, repr=False)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)
    """What its file says of where it comes from: recipe, step, starting weights, licence."""
    precision: Precision = "float32"
    """How it computes when features are taken. Decides every figure in its last digits."""

    def fingerprint(self) -> str:
        """A short hash of architecture, preprocessing and every weight: changes when any feature may."""
        digest = hashlib.blake2b(digest_size=12)
        settings = getattr(self.backbone, "config", self.name)
        digest.update(f"{settings!r} {self.mean} {self.std} {self.image_size}".encode())
        for name, tensor in sorted(self.backbone.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
        return digest.hexdigest()

    def normalise(
        self, pixels: Shaped[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Bring uint8 or float pixels in [0, 1] to the range the backbone was trained on."""
        scaled = pixels.float() / 255.0 if pixels.dtype == torch.uint8 else pixels
        mean, std = (scaled.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (scaled - mean) / std

    def transform(
        self, image: Image.Image | str | Path, settings: FeatureTransform | None = None
    ) -> Float[Tensor, "1 channels height width"]:
        """Bring one image, or the file it is in, to this model's input, as every evaluation does: resized, cut, normalised.

        Args:
            image: a picture of any mode, or its path.
            settings: how it is placed; null: the shorter side at the model's size, central crop.

        Raises:
            UnreadableImageError: when the file can't be decoded.

        >>> encoder.features(encoder.transform("cat.jpg")).cls  # doctest: +SKIP
        """
        opened = image.convert("RGB") if isinstance(image, Image.Image) else decode_image(Path(image))
        placed = (settings or FeatureTransform()).resolve(self).image(opened, self.patch_size)
        return self.normalise(placed[None].to(self.device))

    def features(self, pixels: Float[Tensor, "batch channels height width"]) -> Features:
        """Features of normalised pixels."""
        features: Features = self._run(self.backbone, pixels)
        return features

    def intermediate(
        self, pixels: Float[Tensor, "batch channels height width"], layers: Sequence[int]
    ) -> list[Features]:
        """Features of several layers through the final norm, counted from the end: -1 is the last."""
        outputs: list[Features] = self._run(
            self._method("intermediate", "intermediate layers"), pixels, layers
        )
        return outputs

    def last_keys(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Keys of the last block's attention, patches only."""
        keys: Tensor = self._run(self._method("last_keys", "attention keys"), pixels)
        return keys

    def attention(
        self, pixels: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch heads patches"]:
        """The last block's attention from the class token to the patches."""
        maps: Tensor = self._run(self._method("last_attention", "attention maps"), pixels)
        return maps

    def to(self, device: torch.device | str) -> Encoder:
        """Move the backbone; returns this encoder."""
        self.backbone.to(device)
        return self

    @property
    def depth(self) -> int | None:
        """Number of blocks; None where the backbone doesn't say."""
        depth: int | None = getattr(self.backbone, "depth", None)
        return depth

    @property
    def device(self) -> torch.device:
        """Where the backbone lives."""
        parameter = next(self.backbone.parameters(), None)
        return parameter.device if parameter is not None else torch.device("cpu")

    def _method(self, name: str, what: str) -> Callable[..., Any]:
        method = getattr(self.backbone, name, None)
        if method is None:
            kind = type(self.backbone).__name__
            raise ModelError(f"{self.name} ({kind}) gives no {what}. Use a glocal ViT for this.")
        return method  # type: ignore[no-any-return]

    def _run(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        # Not inference mode: probes train on these features, and inference tensors can't be saved for backward.
        training = self.backbone.training
        if training:
            self.backbone.eval()
        try:
            with torch.no_grad(), computing(self.precision, self.device):
                return function(*arguments)
        finally:
            if training:
                self.backbone.train()

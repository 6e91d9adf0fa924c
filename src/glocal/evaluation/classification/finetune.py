"""Fine-tuning: the whole backbone trained on labels, deeper layers more gently than later ones."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from glocal.atomic_files import write_atomically
from glocal.data.source import ImageSource
from glocal.errors import DataError, ModelError, TrainingError
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.classification.labelled import TOP, Answers
from glocal.evaluation.classification.labels import LabelPair, align_labels, open_labelled
from glocal.evaluation.results import Result
from glocal.extraction.feature_stream import Skipped, iterate_features, iterate_pixels
from glocal.extraction.progress import progress_bar
from glocal.extraction.random_crops import RandomCrops
from glocal.extraction.work import Work
from glocal.models.depth_groups import depth_of
from glocal.models.encoder import Encoder
from glocal.models.export import export_backbone
from glocal.models.preprocessing import FeatureTransform
from glocal.models.vit import VisionTransformer
from glocal.schedules import warmup_cosine

Positive = Annotated[int, Field(ge=1)]


class FineTune(ProtocolConfig):
    """Fine-tuning with AdamW, layer-wise decay, warm-up and cosine; random resized crops, mirroring, label smoothing.

    After BEiT's recipe (Bao et al. 2021), which Mugs follows. Departures: no mixup, cutmix, random augmentation or
    added drop path, so figures on large sets lie below published ones; the last epoch's weights are tested, once, where
    published scripts report the best test epoch.
    """

    protocol: ClassVar[str] = "finetune"
    version: ClassVar[int] = 2
    only_by_name: ClassVar[str | None] = (
        "it trains the whole model; run `glocal evaluate finetune` by its name"
    )
    epochs: Positive = 50
    """Passes over the training images."""
    batch_size: Positive = 128
    """Images a step. Changes results."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    """Of the head, for a batch of 256; scaled linearly."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 0.65
    """A block's rate is the next one's times this."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Of matrices."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5.0
    """Epochs of a rising rate."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the target that all classes get."""
    crop_area: tuple[float, float] = (0.25, 1.0)
    """Area of a training crop as a share of the image."""
    mirror: bool = True
    """Mirror half of the training crops; wrong for text and digits."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of all gradients."""
    seed: int = 0
    """Of the order of images, crops and weights."""
    save: str | None = None
    """Folder for the tuned backbone, which `glocal.load` reads, and its head; null: nothing is kept."""
    transform: FeatureTransform = FeatureTransform()

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Train a copy of the backbone, test it once. The encoder itself is left as it is.

        Raises:
            DataError: without labels or with one class.
            TrainingError: when the loss stops being a number.
        """
        train, test, told = open_labelled(data)
        labels = align_labels(train, test)
        skipped = Skipped()
        tuned, head = self._train(encoder, train, labels, work, skipped)
        if self.save is not None:
            _save(Path(self.save), tuned, head, labels)
        answers, places = _classify(tuned, head, test, labels, self.transform, work, skipped)
        transform = self.transform.resolve(encoder)
        return self.result(
            encoder,
            {"train": train, "test": test},
            {},
            notes=[*told, *labels.notes, *skipped.notes()],
            transform=transform.model_dump(),
            resolution=transform.size,
            layer="-1",
            norm="final norm",
            samples=answers.samples(),
            predictions=answers.predictions(places),
        )

    def _train(
        self, encoder: Encoder, source: ImageSource, labels: LabelPair, work: Work, skipped: Skipped
    ) -> tuple[Encoder, nn.Linear]:
        device = encoder.device
        tuned = replace(encoder, backbone=copy.deepcopy(encoder.backbone).requires_grad_(True))
        places = np.flatnonzero(labels.train >= 0)
        steps = self.epochs * -(-len(places) // self.batch_size)
        step = 0
        with (
            torch.random.fork_rng(),
            progress_bar("fine-tuning", steps, work.progress, unit="steps") as advance,
        ):
            torch.manual_seed(self.seed)
            head = nn.Linear(encoder.embed_dim, labels.classes)
            nn.init.trunc_normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
            head.to(device)
            optimiser = torch.optim.AdamW(parameter_groups(tuned.backbone, head, self), lr=0.0)
            parameters = [p for group in optimiser.param_groups for p in group["params"]]
            for pixels, targets in self._batches(tuned, source, labels, places, work, skipped):
                self._set_rate(optimiser, step, steps)
                tuned.backbone.train()
                logits = head(tuned.backbone(tuned.normalise(pixels)).cls)
                loss = cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
                if not bool(loss.isfinite()):
                    raise TrainingError(
                        f"The loss is {loss.item()} at step {step} of {steps}. Lower learning_rate."
                    )
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(parameters, self.clip)
                optimiser.step()
                step += 1
                advance(1)
        tuned.backbone.eval()
        return tuned, head

    def _batches(
        self,
        encoder: Encoder,
        source: ImageSource,
        labels: LabelPair,
        places: np.ndarray[Any, np.dtype[np.int64]],
        work: Work,
        skipped: Skipped,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled batches of random crops, a new crop and order each epoch, as a function of seed and epoch alone."""
        transform = self.transform.model_copy(update={"resize": "squash"}).resolve(encoder)
        device = encoder.device
        targets = torch.from_numpy(labels.train)
        for epoch in range(self.epochs):
            crops = RandomCrops(source, self.seed, epoch, self.crop_area, relative=False, mirror=self.mirror)
            order = np.random.default_rng([self.seed, epoch]).permutation(places)
            for batch in iterate_pixels(
                crops, transform, encoder.patch_size, workers=work.workers, indices=order, skipped=skipped,
                batch_size=self.batch_size,
            ):  # fmt: skip
                if len(batch.indices):
                    yield batch.pixels.to(device), targets[torch.from_numpy(batch.indices)].to(device)

    def _set_rate(self, optimiser: torch.optim.Optimizer, step: int, steps: int) -> None:
        """Linear warm-up over at most a fifth of the run, then cosine to 0."""
        warmup = min(round(self.warmup_epochs * steps / self.epochs), steps // 5)
        factor = warmup_cosine(warmup, steps)(step)
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rate * self.batch_size / 256 * group["factor"] * factor


class _Place(NamedTuple):
    layer: int
    decays: bool


def parameter_groups(backbone: nn.Module, head: nn.Module, config: FineTune) -> list[dict[str, Any]]:
    """Parameters by layer, with `factor` = layer_decay ** (layers above). Biases and norms have no weight decay.

    The final norm, class attention and whatever else lies above the blocks go with the head (`depth_of`).
    """
    names = dict(backbone.named_parameters())
    depth = len(getattr(backbone, "blocks", ()))
    top = depth + 1
    groups: dict[_Place, list[nn.Parameter]] = {}
    for name, parameter in names.items():
        groups.setdefault(_Place(depth_of(name, depth), parameter.ndim > 1), []).append(parameter)
    for parameter in head.parameters():
        groups.setdefault(_Place(top, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": members,
            "factor": config.layer_decay ** (top - place.layer),
            "weight_decay": config.weight_decay if place.decays else 0.0,
        }
        for place, members in sorted(groups.items())
    ]


def _save(folder: Path, tuned: Encoder, head: nn.Linear, labels: LabelPair) -> None:
    """Export the backbone, and write `head.safetensors` (weight, bias: one row a class) beside it."""
    if not isinstance(tuned.backbone, VisionTransformer):
        raise ModelError(f"{tuned.name} can't be saved: only glocal's Vision Transformers are exported.")
    export_backbone(
        tuned.backbone, folder, mean=tuned.mean, std=tuned.std, image_size=tuned.image_size,
        extra={"finetuned_classes": labels.classes},
    )  # fmt: skip
    content = save_tensors({name: tensor.cpu().contiguous() for name, tensor in head.state_dict().items()})
    write_atomically(folder / "head.safetensors", lambda file: file.write(content))


def _classify(
    encoder: Encoder,
    head: nn.Linear,
    source: ImageSource,
    labels: LabelPair,
    transform: FeatureTransform,
    work: Work,
    skipped: Skipped,
) -> tuple[Answers, np.ndarray[Any, np.dtype[np.int64]]]:
    """The best classes of each labelled, readable image, its class, and where it is in the source."""
    places = np.flatnonzero(labels.test >= 0)
    ranked: list[Tensor] = []
    seen: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    with torch.no_grad():
        for batch in iterate_features(
            encoder, source, transform, work.batch_size, work.workers, places, skipped=skipped
        ):
            if len(batch.indices):
                logits = head(batch.features[0].cls)
                ranked.append(logits.topk(min(TOP, logits.shape[1]), dim=1).indices.cpu())
                seen.append(batch.indices)
    if not seen:
        raise DataError(f"{source.name}: none of its labelled images could be read.")
    indices = np.concatenate(seen)
    return Answers({"": torch.cat(ranked)}, torch.from_numpy(labels.test[indices])), indices

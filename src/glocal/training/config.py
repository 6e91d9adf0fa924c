"""The one configuration of a run. A recipe returns it; the run folder holds it; nothing else decides anything."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from glocal.config import Config
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.models.adaptation import AdaptConfig
from glocal.models.backbone import BackboneConfig
from glocal.objectives import AnyObjective
from glocal.objectives.base import ObjectiveConfig
from glocal.schedules import Schedule
from glocal.training.recorders import RecorderName
from glocal.verdict.config import VerdictConfig
from glocal.views.groups import ViewGroup

Positive = Annotated[int, Field(ge=1)]
Above0 = Annotated[float, Field(gt=0)]


class OptimiserConfig(Config):
    """AdamW or Muon, with schedules evaluated at every step. Changes results."""

    kind: Literal["adamw", "muon"] = "adamw"
    """`muon`: the matrices of blocks and heads move by their orthogonalised momentum (Jordan et al. 2024), all else by
    AdamW. Its cost grows with the cube of a layer's width: keep heads narrow (256)."""
    muon_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    """Peak rate of Muon's matrices, whatever the batch; it follows the course of `learning_rate`. 0.01 is the safer one."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """Peak rate for a batch of `reference_batch` images."""
    scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the rate grows with the batch."""
    reference_batch: Positive = 256
    """Images a step that `learning_rate` is meant for."""
    final_learning_rate: Annotated[float, Field(ge=0)] = 1e-6
    """Rate at the last step."""
    warmup_epochs: Annotated[float, Field(ge=0)] | None = 10.0
    """Linear warm-up from 0; at most a tenth of the run, which null stands for."""
    weight_decay: float | Schedule = Schedule(start=0.04, end=0.4)
    """Of matrices, the class token and the position table; biases and norms have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's two averages."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Rate of a block as a power of this, counted from the top."""
    patch_embed_factor: Annotated[float, Field(gt=0)] = 1.0
    """Rate of the patch embedding relative to its layer's."""
    clip: Annotated[float, Field(gt=0)] | Schedule | None = 3.0
    """Largest gradient norm, a number or a schedule; null for none."""
    clip_by: Literal["parameter", "global"] = "parameter"
    """Every tensor by its own norm (DINO), or all by the norm of all."""


class TeacherConfig(Config):
    """The moving average that makes the targets, and a frozen model beside it. Changes results."""

    momentum: float | Schedule = Schedule(start=0.996, end=1.0)
    """Share of the teacher that stays at a step."""
    frozen: str | None = None
    """A model that `distil` terms learn from: anything `glocal.load` reads, of any width and patch size."""
    frozen_size: Positive | None = None
    """Pixels of a view's longer side as the frozen model sees it; null: the view's own, or near it."""


class TrainingConfig(Config):
    """How long and in what portions. Changes results, but for the intervals."""

    batch_size: Positive = 256
    """Source images an optimiser step, over all processes and micro-batches."""
    epochs: Annotated[float, Field(gt=0)] = 100.0
    """How long, in passes over the images, unless one of the next four says it otherwise."""
    steps: Positive | None = None
    """How long, in optimiser steps."""
    images: Positive | None = None
    """How long, in source images seen."""
    flops: Annotated[float, Field(gt=0)] | None = None
    """How long, in floating-point operations: all products of both networks, heads, losses and optimiser."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """How long, by the clock, from the start to the last step. Schedules follow the time, so that they end with it; how
    many steps that is depends on the machine and what else it does, so two such runs are not equal bit for bit."""
    stop: Literal["never", "auto"] = "never"
    """auto: end the run when its label-free score has stood still for a quarter of it."""
    blocks: Schedule | None = None
    """How many blocks compute at a step, rounded; from `start` up to the backbone's depth. Those that join later begin as
    the identity. null: all, from the first step on."""
    accumulate: Positive = 1
    """Micro-batches that the backbone works in: far less memory, the same step, one more forward pass of the student."""
    heads_first: bool = False
    """Hold the backbone still until the heads follow it, a tenth of the run at most: for a start from trained weights."""
    log_every: Positive = 20
    """Steps between records; the device is waited for only there."""
    recorders: tuple[RecorderName, ...] | None = None
    """Where records go besides metrics.jsonl: tensorboard, wandb, mlflow. null: TensorBoard where it is installed."""
    checkpoint_every: Positive = 500
    """Steps between writes of `checkpoints/last.pt`; also written at the end and on SIGTERM."""
    keep_every: Positive | None = None
    """Steps between checkpoints that stay."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingConfig:
        given = [n for n in ("steps", "images", "flops", "minutes") if getattr(self, n) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given)} both say how long the run is; give one, and set the other to null"
            )
        return self


class ProbeConfig(Config):
    """The k-NN probe during training. Never changes results."""

    every: Positive | None = None
    """Steps between probes; null: at the start and the end, and ten times in between. Needs labels."""
    bank: Positive = 10_000
    """Most labelled images to look neighbours up in."""
    queries: Positive = 2_000
    """Most labelled images to classify."""
    data: str | None = None
    """Labelled images for the probe; null: those of the run's own data, held-out part and rest."""
    neighbours: Positive = 20
    """K of the k-NN."""
    enabled: bool = True
    """Whether the k-NN probe runs."""
    evaluations: dict[str, str] = Field(default_factory=dict)
    """Protocols to run at the same steps, by name, and their data: `probe.evaluations={knn-seg: camvid/}`."""


class SpeedConfig(Config):
    """Where and how fast. Changes rounding at most, never what is computed, but for `decode_at_least`."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: the first GPU, or the CPU where there is none."""
    devices: Positive = 1
    """Processes on this machine, one a device; ignored under torchrun, which decides."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16: matrix products in bfloat16 under autocast; weights, norms, softmax and averages stay float32. auto: that where
    the processor has the instructions and a short measurement before the run shows it faster; a continued run keeps it."""
    matmul: Literal["highest", "high", "medium"] = "medium"
    """Float32 matrix products. On CPUs without bfloat16 matrix units, `medium` picks a faster true-float32 kernel;
    with such units, and on GPUs, it may round inputs (TF32 or bfloat16). `highest` never rounds."""
    workers: Annotated[int, Field(ge=0)] | None = None
    """Processes that decode and crop; null: all cores but one on a GPU machine, one on a small CPU machine."""
    compile: bool = False
    """Compile both networks' passes, one graph for each view group. For GPUs, not measured there yet; on a CPU it costs
    two minutes and brings nothing."""
    checkpoint_blocks: bool = False
    """Recompute block activations in the backward pass: about a third more time, far less memory."""
    keep_decoded_mb: Annotated[int, Field(ge=0)] = 2048
    """Memory, in megabytes a process, for decoded images of small sets: each is decoded once. 0 decodes every time."""
    decode_at_least: Positive | None = 512
    """JPEGs much larger than this are decoded at 1/2, 1/4 or 1/8, the shorter side at or above it, or above what the
    views' smallest boxes need where that is more. Changes views by 1 level of 255 in the mean, 26 at most, on two
    photographs decoded at 1/2: the decoder's averaging comes before the crop's. null: always whole."""


class RunConfig(Config):
    """Everything about a run."""

    recipe: str
    """The recipe that made this configuration."""
    data: str
    """Images: a folder, a list file, parquet, or a built-in name."""
    out: str
    """The run folder."""
    balance: str | None = None
    """A folder that `glocal curate` wrote for these images: every cluster is seen equally often. null: every image."""
    seed: Annotated[int, Field(ge=0, lt=2**53)] = 0
    """Everything random follows from it."""
    init: str | None = None
    """Weights to start the backbone from: anything `glocal.load` reads. They decide `backbone`, `mean` and `std`."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """What is subtracted from each channel of the pixels (0 to 1)."""
    std: tuple[Above0, Above0, Above0] = IMAGENET_STD
    """What they are then divided by."""
    adapt: AdaptConfig = AdaptConfig()
    """Which of the weights of `init` training moves: full, last:N, norms, lora or lora:RANK."""
    crops: Literal["image", "batch"] = "image"
    """Crops, flips and colours drawn for every image, or once a batch (the PW-Self reference)."""
    views: dict[str, ViewGroup]
    """Groups of crops by name."""
    backbone: BackboneConfig
    objectives: dict[str, AnyObjective]
    """The terms of the loss by name; null drops one."""
    optimiser: OptimiserConfig = OptimiserConfig()
    teacher: TeacherConfig = TeacherConfig()
    training: TrainingConfig = TrainingConfig()
    probe: ProbeConfig = ProbeConfig()
    verdict: VerdictConfig = VerdictConfig()
    speed: SpeedConfig = SpeedConfig()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if not self.views or not self.active_objectives():
            raise ValueError("a run needs at least one view group and one objective with a weight above 0")
        if not self.backbone.is_ours:
            whole_only = self.backbone.timm is not None
            cures = [
                f"views.{name}.keep_patches=1"
                for name, g in self.views.items()
                if g.keep_patches < 1 and whole_only
            ]
            cures += ["backbone.patch_embed_init=drawn"] * (self.backbone.patch_embed_init == "whitened")
            if cures:
                name = f"timm's {self.backbone.timm}" if whole_only else self.backbone.own
                raise ValueError(
                    f"{name} is no Vision Transformer of ours and can't do all of theirs; set {', '.join(cures)}"
                )
        if self.adapt.method != "full" and self.init is None:
            raise ValueError(
                f"adapt={self.adapt.method} keeps most weights as they are, so it needs trained ones: give init=MODEL"
            )
        self._check_growth()
        for name, group in self.views.items():
            height, width = group.height_width
            if height % self.backbone.patch_size or width % self.backbone.patch_size:
                side = self.backbone.patch_size
                near = max(side, round(height / side) * side)
                cure = (
                    f"init={self.init} has such patches: set views.{name}.size={near}"
                    if self.init
                    else f"set views.{name}.size={near}, or backbone.patch_size"
                )
                raise ValueError(
                    f"views.{name}.size is {height}x{width}, which patches of {side} do not divide; {cure}"
                )
        if self.training.batch_size % self.training.accumulate:
            raise ValueError(
                f"training.batch_size={self.training.batch_size} is not divisible by training.accumulate={self.training.accumulate}"
            )
        for name, term in self.active_objectives().items():
            term.check_batch(f"objectives.{name}", self.training.batch_size, self.views)
        return self

    def _check_growth(self) -> None:
        blocks, depth = self.training.blocks, self.backbone.dimensions.depth
        growing = [f"views.{n}.size" for n, group in self.views.items() if isinstance(group.size, Schedule)]
        growing += ["training.blocks"] * (blocks is not None)
        if growing and self.training.minutes is not None:
            raise ValueError(
                f"{' and '.join(growing)} grow with the share of a run, and by the clock (training.minutes="
                f"{self.training.minutes:g}) that is not known; give training.flops, images, steps or epochs"
            )
        if blocks is not None and not (self.backbone.timm is None and self.init is None):
            raise ValueError(
                "training.blocks lets blocks join that begin as the identity; trained weights and timm's models have none: leave it out"
            )
        if blocks is not None and not (1 <= blocks.start <= depth and blocks.end == depth):
            raise ValueError(
                f"training.blocks goes from {blocks.start:g} to {blocks.end:g}; start within 1 to {depth} and end at the "
                f"backbone's depth, {depth}"
            )

    def active_objectives(self) -> dict[str, ObjectiveConfig]:
        """The terms that count: a constant weight of 0 leaves a term out altogether, heads and cost included."""
        return {name: term for name, term in self.objectives.items() if term.weight != 0}

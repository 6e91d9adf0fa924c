"""Speed of the evaluation room on this machine: k-NN, extraction against the bare forward pass, the linear grid.

Run `python benchmarks/bench_evaluation.py [knn] [extraction] [linear] [linear-at-224]`; figures are printed with what
they are held to. What is compared takes turns, and medians are compared. `OMP_NUM_THREADS=1` in front gives one thread,
which is steadier where other work runs on the machine. All but the last are measured when none is named.
"""

from __future__ import annotations

import io
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from glocal.data.decoding import decode_image
from glocal.data.source import ImageSource
from glocal.evaluation.classification.knn import knn_classify
from glocal.evaluation.classification.labelled import Task
from glocal.evaluation.classification.labels import LabelPair
from glocal.evaluation.classification.linear import LinearProbe, readouts_for
from glocal.extraction.feature_stream import iterate_features, iterate_pixels
from glocal.extraction.image_embeddings import Embeddings, extract_embeddings
from glocal.extraction.work import Work
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform
from glocal.models.vit import VisionTransformer


def take_turns(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each case. They take turns, so that other work on the machine disturbs all alike."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(taken) for name, taken in times.items()}


def bench_knn(rows: int = 50_000, queries: int = 10_000, dim: int = 384) -> None:
    """Held to 10 s and 1 GB beyond the features on two cores."""
    for name, order in (("random", False), ("sorted by similarity, the worst case for selection", True)):
        generator = torch.Generator().manual_seed(0)
        bank, asked = (
            torch.randn(rows, dim, generator=generator),
            torch.randn(queries, dim, generator=generator),
        )
        if order:
            bank = bank[(bank @ asked[0]).argsort()]
            asked = asked[0] + 0.01 * asked
        labels = torch.randint(10, (rows,), generator=generator)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start, used = time.perf_counter(), time.process_time()
        knn_classify(bank, labels, asked, [10, 20, 100, 200])
        taken, used = time.perf_counter() - start, time.process_time() - used
        extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
        print(f"k-NN {rows} x {queries} x {dim}, {name}: {taken:.2f} s ({used:.1f} of CPU), +{extra:.2f} GiB")


class Photos(ImageSource):
    """Smooth random images, decoded from JPEG at each reading as photographs are; 256 of them, repeated."""

    def __init__(self, images: int, side: int = 375, labels: int | None = None) -> None:
        self.name, self.images, self.files = "photos", images, []
        generator = np.random.default_rng(0)
        self.labels = None if labels is None else generator.integers(0, labels, images)
        for _ in range(min(images, 256)):
            coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return self.images

    def key(self, index: int) -> str:
        """Its number."""
        return str(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode from memory, as a folder decodes its files."""
        return decode_image(self.files[index % len(self.files)], at_least, str(index))

    def fingerprint(self) -> str:
        """One for all."""
        return "photos"


def small_vit(device: str) -> Encoder:
    """A random ViT-S/16."""
    torch.manual_seed(0)
    backbone = (
        VisionTransformer(BackboneConfig(size="small", patch_size=16, image_size=224)).eval().to(device)
    )
    return Encoder("random ViT-S/16", backbone, embed_dim=384, patch_size=16, image_size=224)


def bench_extraction(images: int = 128, workers: tuple[int, ...] = (0, 1), rounds: int = 3) -> None:
    """Held to within 10 % of the bare forward pass over the same images, already decoded and in the same tiles.

    Decoding alone is what `workers=0` adds by necessity; with workers it costs only what the first tile waits for,
    where a core is free for it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = images * 32 if device == "cuda" else images
    encoder, source = small_vit(device), Photos(images)
    transform = FeatureTransform().resolve(encoder)
    decoded = iterate_pixels(source, transform, encoder.patch_size, batch_size=transform.tile(encoder))
    tiles = [batch.pixels.to(device) for batch in decoded]

    def bare() -> None:
        for tile in tiles:
            encoder.features(encoder.normalise(tile)).cls.float().cpu()

    def decode() -> None:
        for _ in iterate_pixels(source, transform, encoder.patch_size):
            pass

    def stream(count: int) -> None:
        for batch in iterate_features(encoder, source, transform, workers=count):
            batch.features[0].cls.float().cpu()

    bare()
    cases: dict[str, Callable[[], object]] = {"bare forward pass": bare, "decoding alone": decode}
    for count in workers if device == "cpu" else (8, 14):
        work = Work(workers=count, progress=False)
        cases[f"iterate_features, {count} workers"] = partial(stream, count)
        cases[f"extract_embeddings, {count} workers"] = partial(
            extract_embeddings, encoder, source, work=work
        )
    times = take_turns(cases, rounds)
    reference = times["bare forward pass"]
    for name, taken in times.items():
        print(
            f"{device}: {name}: {images / taken:.1f} images/s, {taken / reference:.2f} of the bare forward pass"
        )


ONE_PROBE = LinearProbe(inputs=("cls",), learning_rates=(1e-2,))


def bench_linear(rows: int = 20_000, test_rows: int = 2_000, classes: int = 10, rounds: int = 3) -> None:
    """Held to 1.5 times one probe, everything counted; the heads alone are shown beside.

    A head of `4cls+mean` is 5 times as wide as one of `cls`, so 52 heads are 156 times the arithmetic of one.
    """
    generator = np.random.default_rng(0)

    def embedded(count: int, what: list[str]) -> Embeddings:
        vectors = {
            name: torch.from_numpy(generator.normal(size=(count, 384)).astype(np.float32)) for name in what
        }
        return Embeddings(vectors, np.arange(count), None)

    labels = LabelPair(
        generator.integers(0, classes, rows), generator.integers(0, classes, test_rows), classes
    )
    cases: dict[str, Callable[[], object]] = {}
    for name, setting in (("one probe", ONE_PROBE), ("the whole grid", LinearProbe())):
        train, test = (embedded(count, readouts_for(setting.inputs)) for count in (rows, test_rows))
        cases[name] = partial(setting.answer, Task(train, test, labels, torch.device("cpu")))
    times = take_turns(cases, rounds)
    one, grid = times.values()
    print(
        f"linear, heads alone, {rows} rows: one probe {one:.2f} s, the whole grid {grid:.1f} s, ratio {grid / one:.1f}"
    )
    bench_linear_end_to_end(112, rounds)


def bench_linear_end_to_end(size: int, rounds: int = 1, images: int = 2_000, test_images: int = 200) -> None:
    """`LinearProbe.run` from JPEG to accuracy with a random ViT-S/16, nothing cached, nothing extrapolated."""
    encoder = small_vit("cpu")
    data = {"train": Photos(images, labels=10), "test": Photos(test_images, labels=10)}
    cases: dict[str, Callable[[], object]] = {}
    for name, setting in (("one probe", ONE_PROBE), ("the whole grid", LinearProbe())):
        own = setting.model_copy(update={"transform": FeatureTransform(size=size)})
        cases[name] = partial(own.run, encoder, data, Work(progress=False))
    one, grid = take_turns(cases, rounds).values()
    print(
        f"linear, end to end, {images} + {test_images} JPEGs at {size} px: one probe {one:.1f} s, "
        f"the whole grid {grid:.1f} s, ratio {grid / one:.2f}"
    )


BENCHES: dict[str, Callable[[], None]] = {
    "knn": bench_knn,
    "extraction": bench_extraction,
    "linear": bench_linear,
    "linear-at-224": partial(bench_linear_end_to_end, 224, images=1_000),
}

if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, {'GPU' if torch.cuda.is_available() else 'CPU'}")
    for chosen in sys.argv[1:] or list(BENCHES)[:-1]:
        BENCHES[chosen]()

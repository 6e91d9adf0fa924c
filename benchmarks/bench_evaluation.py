"""Speed of the evaluation room on this machine: k-NN, extraction against the bare forward pass, the linear grid.

Run `python -m benchmarks.bench_evaluation [knn] [extraction] [linear] [linear-at-224]`; figures are printed with what
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
from typing import Literal

import numpy as np
import torch
from PIL import Image

from benchmarks.ratios import Ratio, Size, device, ratio, take_turns
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


def small_vit(device: str, size: Literal["micro", "small"] = "small") -> Encoder:
    """A random ViT with patches of 16."""
    torch.manual_seed(0)
    backbone = VisionTransformer(BackboneConfig(size=size, patch_size=16, image_size=224)).eval().to(device)
    return Encoder(f"random ViT-{size}/16", backbone, backbone.embed_dim, patch_size=16, image_size=224)


def extraction_times(
    images: int, workers: tuple[int, ...], rounds: int, encoder: Encoder
) -> dict[str, list[float]]:
    """Held to within 10 % of the bare forward pass over the same images, already decoded and in the same tiles.

    Decoding alone is what `workers=0` adds by necessity; with workers it costs only what the first tile waits for,
    where a core is free for it.
    """
    source, device = Photos(images), encoder.device
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
    for count in workers:
        work = Work(workers=count, progress=False)
        cases[f"iterate_features, {count} workers"] = partial(stream, count)
        cases[f"extract_embeddings, {count} workers"] = partial(
            extract_embeddings, encoder, source, work=work
        )
    return take_turns(cases, rounds)


def bench_extraction(images: int = 128, rounds: int = 3) -> None:
    gpu = device().type == "cuda"
    images, workers = (images * 32, (8, 14)) if gpu else (images, (0, 1))
    times = extraction_times(images, workers, rounds, small_vit(str(device())))
    reference = statistics.median(times["bare forward pass"])
    for name, rounds_taken in times.items():
        taken = statistics.median(rounds_taken)
        print(f"{name}: {images / taken:.1f} images/s, {taken / reference:.2f} of the bare forward pass")


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
    one, grid = (statistics.median(taken) for taken in times.values())
    print(
        f"linear, heads alone, {rows} rows: one probe {one:.2f} s, the whole grid {grid:.1f} s, ratio {grid / one:.1f}"
    )
    bench_linear_end_to_end(112, rounds)


def linear_cases(
    size: int, images: int, test_images: int, encoder: Encoder, least_steps: int = 1000
) -> dict[str, Callable[[], object]]:
    """`LinearProbe.run` from JPEG to accuracy, nothing cached, nothing extrapolated."""
    data = {"train": Photos(images, labels=10), "test": Photos(test_images, labels=10)}
    cases: dict[str, Callable[[], object]] = {}
    for name, setting in (("one probe", ONE_PROBE), ("the whole grid", LinearProbe())):
        own = setting.model_copy(
            update={"transform": FeatureTransform(size=size), "least_steps": least_steps}
        )
        cases[name] = partial(own.run, encoder, data, Work(progress=False))
    return cases


def bench_linear_end_to_end(size: int, rounds: int = 1, images: int = 2_000, test_images: int = 200) -> None:
    cases = linear_cases(size, images, test_images, small_vit("cpu"))
    one, grid = (statistics.median(taken) for taken in take_turns(cases, rounds).values())
    print(
        f"linear, end to end, {images} + {test_images} JPEGs at {size} px: one probe {one:.1f} s, "
        f"the whole grid {grid:.1f} s, ratio {grid / one:.2f}"
    )


def ratios(size: Size) -> list[Ratio]:
    """Extraction against the bare forward pass, and the linear probe's grid against one probe, JPEG to accuracy."""
    full = size == "full"
    encoder = small_vit(str(device()), "small" if full else "micro")
    streamed = extraction_times(64 if full else 4, (0,), 3 if full else 1, encoder)
    linear = take_turns(
        (linear_cases(112, 400, 40, encoder) if full else linear_cases(32, 20, 10, encoder, 4)),
        2 if full else 1,
    )
    bare = "bare forward pass"
    return [
        ratio(
            "embeddings of JPEGs / bare forward pass", streamed, "extract_embeddings, 0 workers", bare, 1.1
        ),
        ratio("linear grid / one probe, JPEG to accuracy", linear, "the whole grid", "one probe", 1.5),
    ]


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

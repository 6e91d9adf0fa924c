"""Speed of the evaluation room on this machine: k-NN, extraction against the bare forward pass, the linear grid.

Run `python benchmarks/bench_evaluation.py [knn] [extraction] [linear]`; figures are printed with what they are held to.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from PIL import Image

from glocal.data.source import ImageSource
from glocal.evaluation.base import Work
from glocal.evaluation.embeddings import Embeddings, extract_embeddings
from glocal.evaluation.extraction import FeatureTransform, iterate_pixels
from glocal.evaluation.knn import knn_classify
from glocal.evaluation.labels import LabelPair
from glocal.evaluation.linear import LinearProbe, readouts_for
from glocal.models.encoder import Encoder
from glocal.models.vit import BackboneConfig, VisionTransformer


def bench_knn(rows: int = 50_000, queries: int = 10_000, dim: int = 384) -> None:
    """Held to 10 s and 1 GB beyond the features on two cores."""
    for name, order in (("random", False), ("sorted by similarity, the worst case for selection", True)):
        generator = torch.Generator().manual_seed(0)
        bank, asked = torch.randn(rows, dim, generator=generator), torch.randn(queries, dim, generator=generator)
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
    """Smooth random images, decoded from JPEG at each reading as photographs are."""

    def __init__(self, images: int, side: int) -> None:
        import io

        self.name, self.files = "photos", []
        generator = np.random.default_rng(0)
        for _ in range(images):
            coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            file = io.BytesIO()
            coarse.resize((side * 4 // 3, side), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def key(self, index: int) -> str:
        """Its number."""
        return str(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode from memory."""
        import io

        return Image.open(io.BytesIO(self.files[index])).convert("RGB")

    def fingerprint(self) -> str:
        """One for all."""
        return "photos"


def small_vit(device: str) -> Encoder:
    """A random ViT-S/16."""
    torch.manual_seed(0)
    backbone = VisionTransformer(BackboneConfig(size="small", patch_size=16, image_size=224)).eval().to(device)
    return Encoder("random ViT-S/16", backbone, embed_dim=384, patch_size=16, image_size=224)


def bench_extraction(images: int = 256, workers: tuple[int, ...] = (0, 1)) -> None:
    """Held to within 10 % of the bare forward pass over the same images, already decoded and in tiles."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images = images * 32 if device == "cuda" else images
    encoder, source = small_vit(device), Photos(images, 375)
    transform = FeatureTransform().resolve(encoder)
    tiles = [batch.pixels.to(device) for batch in iterate_pixels(source, transform, 16)]

    def bare() -> None:
        for tile in tiles:
            encoder.features(encoder.normalise(tile)).cls.float().cpu()

    bare()
    cases: dict[str, Callable[[], object]] = {"bare forward pass": bare}
    for count in workers if device == "cpu" else (8, 14):
        work = Work(workers=count, progress=False)
        cases[f"extraction, {count} workers"] = partial(extract_embeddings, encoder, source, work=work)
    times: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(3):  # in turn, and the best of each: other work on the machine then disturbs all alike
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - start)
    reference = min(times["bare forward pass"])
    for name, taken in times.items():
        print(f"{device}: {name}: {images / min(taken):.1f} images/s, {min(taken) / reference - 1:+.1%}")


def bench_linear(rows: int = 20_000, test_rows: int = 2_000, classes: int = 10, rate: float = 20.0) -> None:
    """Held to 1.5 times one probe. Extraction is counted at a measured rate, since every probe needs it once."""
    generator = np.random.default_rng(0)
    config = LinearProbe()

    def embedded(count: int, what: list[str]) -> Embeddings:
        vectors = {name: torch.from_numpy(generator.normal(size=(count, 384)).astype(np.float32)) for name in what}
        return Embeddings(vectors, np.arange(count), None)

    labels = LabelPair(generator.integers(0, classes, rows), generator.integers(0, classes, test_rows), classes)
    times: dict[str, float] = {}
    for name, setting in (
        ("one probe", config.model_copy(update={"inputs": ("cls",), "learning_rates": (1e-2,)})),
        ("all of the grid", config),
    ):
        what = readouts_for(setting.inputs)
        train, test = embedded(rows, what), embedded(test_rows, what)
        start = time.perf_counter()
        setting.measure(train, test, labels, torch.device("cpu"))
        times[name] = time.perf_counter() - start
        heads = len(setting.inputs) * len(setting.learning_rates)
        print(f"linear, {rows} rows, {name} ({heads} heads): {times[name]:.1f} s without extraction")
    extraction = (rows + test_rows) / rate
    ratio = (times["all of the grid"] + extraction) / (times["one probe"] + extraction)
    print(f"linear with extraction at {rate} images/s: the grid costs {ratio:.2f} times one probe")


if __name__ == "__main__":
    chosen = sys.argv[1:] or ["knn", "extraction", "linear"]
    print(f"{torch.get_num_threads()} threads, {'GPU' if torch.cuda.is_available() else 'CPU'}")
    for name in chosen:
        {"knn": bench_knn, "extraction": bench_extraction, "linear": bench_linear}[name]()

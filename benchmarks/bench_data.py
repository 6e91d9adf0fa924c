"""The CPU side of one image: decode a 500x400 JPEG, 2x224 + 8x96 views, DINO's photometric operations, normalise.

Ours against the per-view Pillow pipeline of DINO, written out below, on one thread, alternating in one run; then the
loader's images per second by number of workers. Run it alone on the machine:

    python -m benchmarks.bench_data            # about two minutes
    python -m benchmarks.bench_data --quick    # about 20 seconds

Both run as the command `glocal` does, which keeps freed memory: fresh memory costs page faults, dear on virtual machines.
"""

from __future__ import annotations

import argparse
import functools
import io
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images
from torch import Tensor

from benchmarks.ratios import Ratio, Size, ratio
from glocal.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from glocal.data.source import ImageSource
from glocal.freed_memory import keep_freed_memory
from glocal.recipes.scales import cifar
from glocal.views.augment import augment
from glocal.views.batch import Views
from glocal.views.decoded import KEEP_BYTES
from glocal.views.groups import ViewGroup
from glocal.views.loader import ViewDataset, make_loader
from glocal.views.photometric.presets import dino_global_1, dino_global_2, dino_local
from glocal.views.sampling import EpochSampler

GROUPS = {
    "global": ViewGroup(count=2, size=224, area=(0.4, 1.0), photometric=(dino_global_1(), dino_global_2())),
    "local": ViewGroup(count=8, size=96, area=(0.05, 0.4), photometric=(dino_local(),), seen_by="student"),
}
PATCH_SIZE = 16


class EncodedImages(ImageSource):
    """A few photographs as JPEGs in memory, over and over."""

    name = "photographs"

    def __init__(self, length: int, size: tuple[int, int]) -> None:
        self.length = length
        self.encoded = []
        for picture in load_sample_images().images:
            buffer = io.BytesIO()
            Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=90)
            self.encoded.append(buffer.getvalue())

    def __len__(self) -> int:
        return self.length

    def fingerprint(self) -> str:
        """Say which images these are."""
        return f"{self.name}-{self.length}"

    def key(self, index: int) -> str:
        """Number the images."""
        return str(index)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        """Decode one of the photographs."""
        return Image.open(io.BytesIO(self.encoded[index % len(self.encoded)])).convert("RGB")


# ------------------------------------------------------------------------------------- DINO's pipeline, view by view


def pil_views(image: Image.Image, rng: random.Random) -> list[Tensor]:
    """DINO's ten views of one image as published: every operation on a Pillow image."""
    views = [
        _pil_view(image, rng, 224, (0.4, 1.0), blur=1.0),
        _pil_view(image, rng, 224, (0.4, 1.0), 0.1, 0.2),
    ]
    return views + [_pil_view(image, rng, 96, (0.05, 0.4), blur=0.5) for _ in range(8)]


def _pil_view(
    image: Image.Image,
    rng: random.Random,
    side: int,
    area: tuple[float, float],
    blur: float,
    solarise: float = 0.0,
) -> Tensor:
    image = _random_resized_crop(image, rng, side, area)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = _color_jitter(image, rng)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.uniform(0.1, 2.0)))
    if rng.random() < solarise:
        image = ImageOps.solarize(image)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
    return pixels.sub_(torch.tensor(IMAGENET_MEAN)[:, None, None]).div_(
        torch.tensor(IMAGENET_STD)[:, None, None]
    )


def _random_resized_crop(
    image: Image.Image, rng: random.Random, side: int, area: tuple[float, float]
) -> Image.Image:
    width, height = image.size
    for _ in range(10):
        pixels, aspect = (
            width * height * rng.uniform(*area),
            np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3))),
        )
        wide, tall = round((pixels * aspect) ** 0.5), round((pixels / aspect) ** 0.5)
        if 0 < wide <= width and 0 < tall <= height:
            top, left = rng.randint(0, height - tall), rng.randint(0, width - wide)
            return image.crop((left, top, left + wide, top + tall)).resize(
                (side, side), Image.Resampling.BICUBIC
            )
    return image.resize((side, side), Image.Resampling.BICUBIC)


def _color_jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    for step in rng.sample(range(4), 4):
        if step == 3:
            hue, saturation, value = image.convert("HSV").split()
            turned = np.array(hue, dtype=np.uint8) + np.uint8(round(rng.uniform(-0.1, 0.1) * 255) % 256)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        else:
            enhance, strength = (
                (ImageEnhance.Brightness, 0.4),
                (ImageEnhance.Contrast, 0.4),
                (ImageEnhance.Color, 0.2),
            )[step]
            image = enhance(image).enhance(rng.uniform(1 - strength, 1 + strength))
    return image


# --------------------------------------------------------------------------------------------------------- measuring


def measure(candidates: dict[str, Callable[[], object]], repeats: int, images: int) -> dict[str, list[float]]:
    """Run the candidates in turn, `repeats` times; return each one's milliseconds of CPU time an image."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for run in range(repeats + 1):
        for name, candidate in candidates.items():
            start = time.process_time()
            candidate()
            if run:  # the first is warm-up
                times[name].append((time.process_time() - start) * 1e3 / images)
    return times


def image_times(size: tuple[int, int], batch: int, repeats: int) -> dict[str, list[float]]:
    """Milliseconds an image: Pillow's pipeline, ours, and the pieces of ours."""
    source, rng = EncodedImages(batch, size), random.Random(0)
    dataset, sampler = ViewDataset(source, GROUPS), EpochSampler(batch, batch, 0, total_steps=10**6)
    steps = iter(range(10**6))
    views: list[Views] = [dataset.render(sampler.at(0)).views]

    def render() -> None:
        views[0] = dataset.render(sampler.at(next(steps))).views

    def photometric() -> None:
        augment(views[0], GROUPS, PATCH_SIZE)

    def ours() -> None:
        render()
        photometric()

    def pillow() -> None:
        for index in range(batch):
            pil_views(source.read(index), rng)

    def decode() -> None:
        for index in range(batch):
            np.array(source.read(index))

    candidates: dict[str, Callable[[], object]] = {
        "Pillow": pillow,
        "ours": ours,
        "decode": decode,
        "decode, draw, crop": render,
        "rest": photometric,
    }
    return measure(candidates, repeats, batch)


def bench_image(size: tuple[int, int], batch: int, repeats: int) -> None:
    found = {name: statistics.median(values) for name, values in image_times(size, batch, repeats).items()}
    print(f"\n{size[0]}x{size[1]} JPEG, batch {batch}, ms of CPU time an image, one thread")
    print(f"  Pillow, view by view         {found['Pillow']:6.2f}")
    print(f"  ours                         {found['ours']:6.2f}   {found['Pillow'] / found['ours']:.2f}x")
    print(f"    decode                     {found['decode']:6.2f}")
    print(f"    draw, crop, resize, flip   {found['decode, draw, crop'] - found['decode']:6.2f}")
    print(f"    photometric, normalise     {found['rest']:6.2f}")


def kept_times(batch: int, repeats: int) -> dict[str, list[float]]:
    """Two 32-pixel views of 32-pixel JPEGs (the `cifar` preset): decoded at every visit, and decoded once and kept."""
    groups, source = cifar().views, EncodedImages(50 * batch, (32, 32))
    sampler = EpochSampler(len(source), batch, 0, total_steps=10**6)
    datasets = {
        "decoded each time": ViewDataset(source, groups),
        "kept": ViewDataset(source, groups, None, KEEP_BYTES),
    }
    for step in range(50):
        datasets["kept"].render(sampler.at(step))
    steps = {name: iter(range(50, 10**6)) for name in datasets}

    def views(name: str) -> None:
        augment(datasets[name].render(sampler.at(next(steps[name]))).views, groups, 4)

    return measure({name: functools.partial(views, name) for name in datasets}, repeats, batch)


def bench_kept(batch: int, repeats: int) -> None:
    found = {name: statistics.median(values) for name, values in kept_times(batch, repeats).items()}
    print(f"\nCIFAR preset, 2 views of 32 px, batch {batch}: draw, crop, colours, normalise; one thread")
    for name, milliseconds in found.items():
        print(
            f"  {name:<20} {milliseconds * 1e3:6.0f} us an image   {1e3 / milliseconds:7.0f} images/s of CPU time"
        )


def bench_loader(size: tuple[int, int], batch: int, steps: int) -> None:
    print(f"\nloader, {size[0]}x{size[1]} JPEG, batch {batch}, images/s (views arrive as uint8)")
    for workers in (0, 1, 2):
        loader = make_loader(
            EncodedImages(batch, size),
            GROUPS,
            batch_size=batch,
            seed=0,
            workers=workers,
            total_steps=steps + 2,
        )
        batches = iter(loader)
        for _ in range(2):
            next(batches)
        start = time.perf_counter()
        for _ in batches:
            pass
        print(f"  workers {workers}   {steps * batch / (time.perf_counter() - start):7.0f}")


def ratios(size: Size) -> list[Ratio]:
    """On one thread, in CPU time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batch, repeats = (16, 11) if size == "full" else (2, 1)
    views, kept = image_times((500, 400), batch, repeats), kept_times(4 * batch, repeats)
    torch.set_num_threads(threads)
    return [
        ratio("CPU side of one image / Pillow's", views, "ours", "Pillow", 0.2),
        ratio("CIFAR image: kept / decoded each time", kept, "kept", "decoded each time"),
    ]


def main() -> None:
    """Read the options and run both parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    repeats = 5 if options.quick else 21
    bench_image((500, 400), options.batch, repeats)
    bench_image((32, 32), options.batch, repeats)
    bench_kept(128, repeats)
    bench_loader((500, 400), 32, 10 if options.quick else 40)


if __name__ == "__main__":
    main()

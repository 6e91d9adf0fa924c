"""Times of the photometric operations per source image (2 views of 224 and 8 of 96 pixels), and what fusing changes.

    python -m benchmarks.bench_photometric [--threads 1] [--batch 16] [--device cpu]

Views come in as uint8, eight megabytes of floats at a time, and leave as floats in [0, 1]; drawing the parameters is
part of the time. The ratio sets operations drawn per patch against the same operations drawn per view. The last lines
compare the fused colour jitter with torchvision's definition on the two photographs that scikit-learn bundles.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.ratios import Ratio, Size
from glocal.views.photometric import OperationBase, apply_pipeline, presets
from glocal.views.photometric.blur import GaussianBlur, Sharpness
from glocal.views.photometric.colour import ColorJitter, Grayscale
from glocal.views.photometric.composite import SomeOf
from glocal.views.photometric.tone import Posterise, Solarise
from glocal.views.randomness import uniforms

Pipeline = Sequence[OperationBase]
PATCH = 16
LOCALS = 8
PORTION_BYTES = 8_000_000
"""Small enough for the allocator to recycle the results."""


def milliseconds(
    calls: Sequence[Callable[[], object]], device: torch.device, repeats: int = 11
) -> list[float]:
    """Fastest time of each call; the calls take turns, so that other load on the machine meets all of them."""
    times = torch.zeros(repeats + 1, len(calls))
    for repeat in range(repeats + 1):
        for number, call in enumerate(calls):
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[repeat, number] = 1000 * (time.perf_counter() - start)
    return times[1:].amin(0).tolist()  # the first turn warms up


def times_of_image(
    views: dict[str, Tensor], variants: Sequence[tuple[Pipeline, Pipeline, Pipeline]]
) -> list[float]:
    """Milliseconds an image for its first global, second global and local views, for each variant."""
    batch = len(views["global"])
    totals = [0.0] * len(variants)
    for place, name in enumerate(("global", "global", "local")):
        pixels = views[name]
        seeds = torch.arange(len(pixels), device=pixels.device)
        portion = (
            max(1, PORTION_BYTES // (4 * pixels[0].numel())) if pixels.device.type == "cpu" else len(pixels)
        )
        parts = list(zip(pixels.split(portion), seeds.split(portion), strict=True))

        def run(pipeline: Pipeline, parts: list[tuple[Tensor, Tensor]] = parts) -> None:
            for part, part_seeds in parts:
                apply_pipeline(part, pipeline, part_seeds, PATCH)

        calls = [partial(run, variant[place]) for variant in variants]
        for number, milli in enumerate(milliseconds(calls, pixels.device)):
            totals[number] += milli / batch
    return totals


def drawn_per(unit: str, pipeline: Pipeline) -> Pipeline:
    """The same operations with another unit."""
    return tuple(operation.model_copy(update={"unit": unit}) for operation in pipeline)


def compare_units(views: dict[str, Tensor]) -> None:
    """Print each set of operations per view and per patch."""
    rows: dict[str, Pipeline] = {
        "patch-literal": presets.patch_literal(),
        "patch-code, 4 of 4": presets.patch_code(),
        "patch-code, 2 of 4": presets.patch_code(2),
        "jitter, affine": (ColorJitter(),),
        "jitter, exact": (ColorJitter(form="exact"),),
        "jitter and grayscale, fused": (ColorJitter(), Grayscale(probability=0.2)),
        "blur": (GaussianBlur(),),
        "blur, five rows": (GaussianBlur(kernel=(5, 1)),),
        "sharpness": (Sharpness(),),
        "solarise": (Solarise(),),
        "posterise": (Posterise(),),
    }
    print(f"{'operations (probability 1 when alone)':40s} {'per view':>9s} {'per patch':>10s} {'ratio':>6s}")
    for name, pipeline in rows.items():
        image, patch = times_of_image(
            views, [(drawn_per(unit, pipeline),) * 3 for unit in ("image", "patch")]
        )
        print(f"{name:40s} {image:9.2f} {patch:10.2f} {patch / image:6.2f}", flush=True)


def compare_forms() -> None:
    """Print how far the fused colour jitter is from the exact one."""
    from sklearn.datasets import load_sample_images

    some = presets.patch_code()[0]
    assert isinstance(some, SomeOf)
    for name, jitter in {"DINO": ColorJitter(), "patch-code": some.pool[0]}.items():
        differences = []
        for photo in load_sample_images().images:
            pixels = (
                torch.from_numpy(photo.copy())
                .permute(2, 0, 1)[None, :, ::4, ::4]
                .float()
                .div(255)
                .repeat(128, 1, 1, 1)
            )
            draws = uniforms(torch.arange(128), jitter.draws)
            exact = jitter.model_copy(update={"form": "exact"}).transform(pixels, draws)
            differences.append((jitter.transform(pixels, draws) - exact).abs().mul(255))
        everything = torch.cat([d.flatten() for d in differences])
        above = (everything > 16).float().mean() * 100
        print(
            f"affine against exact jitter, {name}: {everything.mean():.2f} levels in the mean, {above:.1f} % above 16"
        )


def noise_views(batch: int) -> dict[str, Tensor]:
    """Random bytes in the shapes of one global and eight local views an image."""
    sizes = {"global": (batch, 224), "local": (batch * LOCALS, 96)}
    return {
        name: torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
        for name, (n, side) in sizes.items()
    }


def ratios(size: Size) -> list[Ratio]:
    """Operations drawn per patch against the same ones per view, in fastest times; on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    views, rounds = noise_views(26 if size == "full" else 1), 3 if size == "full" else 1
    found = []
    for name, pipeline in {"literal": presets.patch_literal(), "code": presets.patch_code()}.items():
        variants = [(drawn_per(unit, pipeline),) * 3 for unit in ("image", "patch")]
        turns = [times_of_image(views, variants) for _ in range(rounds)]
        found.append(Ratio(f"{name} operations per patch / per view", tuple(p / v for v, p in turns), 1.5))
    torch.set_num_threads(threads)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=26)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    views = {name: pixels.to(device) for name, pixels in noise_views(options.batch).items()}
    print(f"{device}, {options.threads} thread(s), batch {options.batch}; milliseconds per source image")
    pipelines = presets.dino_global_1(), presets.dino_global_2(), presets.dino_local()
    dino, mugs = times_of_image(views, [pipelines, (presets.mugs_strong(),) * 3])
    print(f"{'dino (limit 0.8 on one core)':40s} {dino:9.2f}")
    print(f"{'mugs strong, on all views':40s} {mugs:9.2f}")
    compare_units(views)
    compare_forms()


if __name__ == "__main__":
    main()

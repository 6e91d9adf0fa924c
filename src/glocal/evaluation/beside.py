"""What a model must beat, beside its own figures: raw pixels and random weights, where that costs little; paid once.

`baselines` makes them; here the cheap ones are measured with a protocol's own settings, kept in the cache, and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from glocal.config import apply_overrides
from glocal.errors import GlocalError
from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.baselines import pixels, random_weights
from glocal.evaluation.results import Result, format_number
from glocal.extraction.journal import Journal
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder
from glocal.models.vit import VisionTransformer

MOST_IMAGES = 100_000
"""Images of which pixels are still decoded once more."""
MOST_OPERATIONS = {"cpu": 1e13, "cuda": 1e15}
"""Of the forward passes with random weights: two minutes of a core, some of a GPU."""
# Pixels are seen at their own small size, except where the grid of patches must be the model's.
_AT_OWN_SIZE = {
    "knn": "transform.size=null",
    "retrieval": "descriptor.size=null",
    "copy_detection": "descriptor.size=null",
    "correspondence": "size={resolution}",
}


def measure_beside(
    config: ProtocolConfig, encoder: Encoder, data: DataLike, result: Result, work: Work
) -> None:
    """Add to a result what raw pixels and random weights reach at its settings, and a note where the model is below.

    For protocols of embeddings without training (k-NN, retrieval, copy detection, correspondence), up to 100,000 images
    and, for random weights, two minutes of a core. Kept under `work.cache` by settings, data and baseline.
    """
    for name, make, setting in _cheap(config, encoder, result):
        baseline = make(encoder)
        deciding = [config.protocol, config.version, result.data, baseline.fingerprint(), baseline.precision,
                    baseline.device.type, config.model_dump(mode="json"), setting]  # fmt: skip
        journal = Journal(work.cache, ["beside", *deciding])
        numbers = journal.get(name)
        if numbers is None:
            settled = apply_overrides(config, [setting] if setting else [])
            try:
                numbers = settled.run(baseline, data, work).numbers
            except GlocalError as error:  # such as a readout of blocks that pixels lack
                result.notes.append(f"{name} left out: {error}")
                continue
            journal.add(name, numbers)
        result.baselines[name] = numbers
    result.notes += _told(result)


def _cheap(
    config: ProtocolConfig, encoder: Encoder, result: Result
) -> Iterator[tuple[str, Callable[[Encoder], Encoder], str]]:
    """Names, makers and settings of what is worth measuring beside this result."""
    setting = _AT_OWN_SIZE.get(config.protocol)
    images = sum(source["images"] for source in result.sources.values())
    if setting is None or images > MOST_IMAGES or encoder.name.startswith("baseline"):
        return
    resolution = result.settings.get("resolution") or encoder.image_size
    yield "raw pixels", lambda like: pixels(like, centred=True), setting.format(resolution=resolution)
    if isinstance(encoder.backbone, VisionTransformer):
        side = int(np.max(resolution)) // encoder.patch_size
        operations = 24 * encoder.embed_dim**2 * (encoder.depth or 1) * side**2 * images
        if operations <= MOST_OPERATIONS["cpu" if encoder.device.type == "cpu" else "cuda"]:
            yield "random weights", random_weights, ""


def _told(result: Result) -> list[str]:
    """A line for the first figure, and one for all figures in which the model is below raw pixels."""
    if not result.baselines:
        return []
    first = next(iter(result.numbers))
    others = {name: numbers[first] for name, numbers in result.baselines.items() if first in numbers}
    told = ", ".join(f"{name} {format_number(value)}" for name, value in others.items())
    raw: dict[str, Any] = result.baselines.get("raw pixels", {})
    below = [name for name, value in result.numbers.items() if value < raw.get(name, value)]
    lines = [f"{first} of {told}"] if told else []
    return [*lines, *([f"BELOW RAW PIXELS: {', '.join(below)}"] if below else [])]

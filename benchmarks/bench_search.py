"""`glocal embed` beside the bare forward pass, and search in synthetic banks: exact and faiss, seconds, bytes, recall.

python -m benchmarks.bench_search [embed] [banks] [rows=100000,1000000] [dim=384]

Vectors are random around 1,000 centres, so that neighbours exist. What is compared takes turns; CPU time is told, one thread.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from glocal.data.arrays import ArraySource
from glocal.extraction.embedding_file import embed
from glocal.extraction.feature_stream import iterate_pixels
from glocal.extraction.stored_numbers import Coded, Stored, coded
from glocal.lookup.bank import FaissBank, VectorBank
from glocal.models.backbone import BackboneConfig
from glocal.models.encoder import Encoder
from glocal.models.preprocessing import FeatureTransform
from glocal.models.vit import VisionTransformer


def bench_embed(images: int = 96, rounds: int = 3) -> None:
    """Held to 1.1 times the bare forward pass, on images in memory at the model's size, patches written as int8."""
    backbone = VisionTransformer(BackboneConfig(size="tiny", patch_size=16, image_size=224)).eval()
    encoder = Encoder("ViT-Ti/16", backbone, backbone.embed_dim, 16, 224)
    pixels = np.random.default_rng(0).integers(0, 255, (images, 224, 224, 3), dtype=np.uint8)
    source, transform = ArraySource("noise", pixels), FeatureTransform(resize="squash").resolve(encoder)
    loaded = [b.pixels for b in iterate_pixels(source, transform, 16, batch_size=transform.tile(encoder))]
    cases: dict[str, tuple[str, ...]] = {"bare": (), "cls": ("cls",), "cls and patches": ("cls", "patches")}
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, what in cases.items():
            started = time.process_time()
            if not what:
                for tile in loaded:
                    encoder.features(encoder.normalise(tile))
            else:
                with tempfile.TemporaryDirectory() as folder:
                    stored: Stored = "float32" if len(what) == 1 else "int8"
                    embed(
                        encoder,
                        source,
                        Path(folder) / "e",
                        what=what,
                        stored=stored,
                        resize="squash",
                        form="npy",
                        progress=False,
                    )
            spent[name].append(time.process_time() - started)
    bare = statistics.median(spent["bare"])
    for name, times in spent.items():
        print(
            f"{name}: {images / statistics.median(times):.1f} images a CPU second, {statistics.median(times) / bare:.2f} of bare"
        )


def clustered_rows(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Unit rows around 1,000 centres, in float32."""
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(1000, dim)).astype(np.float32)
    made = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 50_000):
        part = made[start : start + 50_000]
        part[:] = centres[draw.integers(0, 1000, len(part))] + draw.normal(0, 1, part.shape).astype(
            np.float32
        )
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return made


def bench_bank(rows: int, dim: int, asked: int = 64, k: int = 10) -> None:
    """One bank by both engines: build, bytes, seconds for a query alone and in a batch, share of the true neighbours."""
    parts: list[Coded] = [
        coded(clustered_rows(min(100_000, rows - s), dim, s), "int8") for s in range(0, rows, 100_000)
    ]
    queries = torch.from_numpy(clustered_rows(asked, dim, seed=10**9))
    alive = np.ones(rows, bool)
    held = sum(p.values.nbytes + (0 if p.scale is None else p.scale.nbytes) for p in parts)
    exact = VectorBank(parts, alive)

    def timed(bank: VectorBank) -> tuple[torch.Tensor, str]:
        started = time.process_time()
        bank.nearest(queries[:1], k)
        single = time.process_time() - started
        started = time.process_time()
        found = bank.nearest(queries, k).rows
        return (
            found,
            f"{single:.3f} s one query, {(time.process_time() - started) / asked:.4f} s each of {asked}",
        )

    truth, said = timed(exact)
    print(f"{rows:,} x {dim}: int8 {held / 2**20:.0f} MiB; exact {said}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bank.faiss"
        started = time.process_time()
        bank = FaissBank(parts, alive, path)
        built = time.process_time() - started
        found, said = timed(bank)
        shared = np.mean(
            [len(set(a) & set(b)) / k for a, b in zip(truth.tolist(), found.tolist(), strict=True)]
        )
        print(
            f"  faiss {path.stat().st_size / 2**20:.0f} MiB, built in {built:.0f} s; {said}; recall@{k} {shared:.3f}",
            flush=True,
        )


def main() -> None:
    """Run what is named, or all."""
    options = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
    named = [word for word in sys.argv[1:] if "=" not in word] or ["embed", "banks"]
    torch.set_num_threads(1)
    if "embed" in named:
        bench_embed()
    if "banks" in named:
        import faiss

        faiss.omp_set_num_threads(1)
        for rows in options.get("rows", "100000,1000000").split(","):
            bench_bank(int(rows), int(options.get("dim", 384)))


if __name__ == "__main__":
    main()

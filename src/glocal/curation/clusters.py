"""Clusters of a collection by class embedding, and how often each image is to be seen so that clusters count alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float, Int64

from glocal.atomic_files import write_atomically
from glocal.data.source import ImageSource
from glocal.errors import ConfigError, DataError
from glocal.lookup.index import Index, index, unique_keys
from glocal.models.encoder import Encoder
from glocal.models.precision import AskedPrecision
from glocal.outside import given_path, reading

CLUSTERS = "clusters.parquet"
_BATCH = 8192


@dataclass
class Clusters:
    """The cluster of every image that could be read."""

    keys: list[str]
    numbers: Int64[np.ndarray, " images"]
    similarity: Float[np.ndarray, " images"]
    """Cosine to the centre: the lowest of a cluster are its odd ones."""

    def sizes(self) -> Int64[np.ndarray, " clusters"]:
        """Images a cluster."""
        return np.bincount(self.numbers)


def curate(
    model: str | Path | Encoder,
    data: str | Path | ImageSource,
    out: str | Path,
    *,
    clusters: int | None = None,
    seed: int = 0,
    split: str | None = None,
    size: int | None = None,
    device: str = "auto",
    precision: AskedPrecision = "float32",
    workers: int = 0,
    progress: bool = True,
) -> Clusters:
    """Cluster a collection and write `clusters.parquet` (key, cluster, similarity), which `balance=` of a run reads.

    k-means on class embeddings of length 1 (mini-batches of 8,192), clusters numbered by size, the largest first.

    Args:
        model: what `glocal.load` reads, or a loaded encoder.
        data: anything `open_source` reads, or an open source.
        out: a folder; the index in it is brought up to date when the command is run again.
        clusters: how many; null: the square root of the number of images.
        seed: of the first centres.
        split: train, val or test, where the data has them.
        size: side of the model's input in pixels; null: the model's own.
        device: cpu, cuda; auto: the first GPU.
        precision: of the forward pass.
        workers: processes that decode.
        progress: show how far it is.

    Raises:
        ConfigError: for more clusters than images.

    >>> curate("runs/a", "photos", "photos.clusters").sizes()  # doctest: +SKIP
    array([312,  97,  41])
    """
    made = index(
        model, data, Path(out) / "index", split=split, size=size,
        device=device, precision=precision, workers=workers, progress=progress,
    )  # fmt: skip
    count = clusters if clusters is not None else max(1, round(len(made) ** 0.5))
    if not 1 <= count <= len(made):
        raise ConfigError(f"clusters={count}: there are {len(made)} images; ask for 1 to {len(made)}.")
    clustering = _clustered(made, count, seed)
    table = pa.table(
        {"key": clustering.keys, "cluster": clustering.numbers, "similarity": clustering.similarity}
    )
    write_atomically(Path(out) / CLUSTERS, lambda file: pq.write_table(table, file))
    return clustering


def balance_weights(folder: str | Path, source: ImageSource) -> Float[np.ndarray, " images"]:
    """The probability of every image of a source at one draw: clusters alike, images of a cluster alike.

    Images without a cluster, which could not be read, are drawn as often as the rarest others: the loader replaces them.

    Raises:
        ConfigError: when the folder holds no clusters.
        DataError: when they are of other images: more than a hundredth of the source's have none.
    """
    path = given_path(folder, "balance") / CLUSTERS
    if not path.is_file():
        raise ConfigError(
            f"balance={folder} holds no {CLUSTERS}. Make it: glocal curate MODEL data=... out={folder}"
        )
    with reading(path, "clusters"):
        table = pq.read_table(path, columns=["key", "cluster"])
        keys, numbers = table["key"].to_pylist(), table["cluster"].to_numpy()
    cluster_of = dict(zip(keys, numbers.tolist(), strict=True))
    mine = np.array([cluster_of.get(key, -1) for key in unique_keys(source)], np.int64)
    absent = int((mine < 0).sum())
    if absent > max(1, len(source) // 100):
        raise DataError(
            f"balance={folder}: {absent} of the {len(source)} images of {source.name} are in no cluster. "
            f"Bring it up to date: glocal curate MODEL data=... out={folder}"
        )
    sizes = np.bincount(mine[mine >= 0])
    weights = np.where(mine >= 0, 1.0 / sizes[np.maximum(mine, 0)], 0.0)
    weights[mine < 0] = weights[mine >= 0].min()
    normalised: Float[np.ndarray, " images"] = weights / weights.sum()
    return normalised


def _clustered(made: Index, count: int, seed: int) -> Clusters:
    from sklearn.cluster import MiniBatchKMeans

    blocks = list(made.bank("exact").blocks())
    rows, vectors = np.concatenate([b[0] for b in blocks]), np.concatenate([b[1].numpy() for b in blocks])
    fitted = MiniBatchKMeans(count, batch_size=_BATCH, n_init=1, random_state=seed).fit(vectors)
    centres = fitted.cluster_centers_ / np.linalg.norm(fitted.cluster_centers_, axis=1, keepdims=True).clip(
        1e-12
    )
    cosine = vectors @ centres.T.astype(np.float32)
    nearest = cosine.argmax(1)
    order = np.argsort(-np.bincount(nearest, minlength=count), kind="stable")
    number = np.argsort(order, kind="stable")
    return Clusters([made.key(int(row)) for row in rows], number[nearest], cosine.max(1))

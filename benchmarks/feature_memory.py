"""Peak memory of k-NN, linear and logistic on ImageNet's number of ViT-B features: made up, mapped from a file.

    python -m benchmarks.feature_memory [knn|linear|logistic|logistic-all]

Figures of a run of few queries and steps: memory does not grow with either. Labels are at random. `logistic-all` is
one evaluation of loss and gradient over all images, of which a fit makes some fifteen for each C.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch

from glocal.evaluation.classification.knn import KnnConfig
from glocal.evaluation.classification.labelled import Task
from glocal.evaluation.classification.labels import LabelPair
from glocal.evaluation.classification.linear import (
    INPUTS,
    LinearProbe,
    _slices,
    rank_classes,
    readouts_for,
    train_heads,
)
from glocal.evaluation.classification.logistic import LowShot
from glocal.evaluation.classification.softmax_regression import cross_entropy, whiten_rows
from glocal.extraction.feature_matrix import allocate, chunks, kept_type, write_rows
from glocal.extraction.image_embeddings import Embeddings

TRAIN, TEST, WIDTH, CLASSES = 1_281_167, 50_000, 768, 1000
NAMES = ("knn", "linear", "logistic", "logistic-all")


def main() -> None:
    """Each in a process of its own, so that peaks are apart."""
    names = sys.argv[1:]
    if len(names) == 1 and names[0] in NAMES:
        print(json.dumps(measure(names[0])), flush=True)
        return
    for name in NAMES:
        subprocess.run([sys.executable, "-m", "benchmarks.feature_memory", name], check=True)


def measure(name: str) -> dict[str, object]:
    """Run one protocol's work, watching this process."""
    readouts = {"linear": len(readouts_for(LinearProbe().inputs))}.get(name, 1)
    watch = _Watch()
    train, test = made_up(TRAIN, readouts), made_up(TEST, readouts)
    labels = LabelPair(np.asarray(train.labels), np.asarray(test.labels), CLASSES)
    began, used = time.perf_counter(), time.process_time()
    WORK[name](train, test, labels)
    return {"protocol": name, "features": f"{TRAIN:,} x {readouts * WIDTH} {train.first.dtype}",
            "seconds": round(time.perf_counter() - began, 1),
            "cpu_seconds": round(time.process_time() - used, 1), **watch.stop()}  # fmt: skip


def made_up(images: int, readouts: int) -> Embeddings:
    """Normal features, written a chunk at a time; of several readouts the last only, the others stay 0."""
    generator = torch.Generator().manual_seed(images)
    matrix = allocate(images, readouts * WIDTH, kept_type(images, readouts * WIDTH, allow_half=True))
    last = matrix[:, -WIDTH:]
    for rows in chunks(images):
        write_rows(last, rows.start, torch.randn(rows.stop - rows.start, WIDTH, generator=generator))
    by_name = dict(zip(readouts_for(LinearProbe().inputs), torch.split(matrix, WIDTH, dim=1), strict=False))
    labels = np.random.default_rng(images).integers(CLASSES, size=images)
    return Embeddings(by_name, np.arange(images), labels, side_by_side=matrix)


def _knn(train: Embeddings, test: Embeddings, labels: LabelPair) -> None:
    few = 512
    some = Embeddings({"cls": test.first[:few]}, test.indices[:few], None)
    KnnConfig().answer(Task(train, some, labels, torch.device("cpu")))


def _linear(train: Embeddings, test: Embeddings, labels: LabelPair) -> None:
    """What `LinearProbe.answer` does, with three steps and one chunk of held-out images."""
    probe = LinearProbe()
    places = {item: place for place, item in enumerate(train.vectors)}
    columns = [_slices([places[item] for item in INPUTS[name]], train) for name in probe.inputs]
    matrix, rows = train.side_by_side, torch.randperm(TRAIN)[: 3 * probe.batch_size]
    assert matrix is not None
    truth = torch.from_numpy(labels.train)
    heads = train_heads(matrix, truth, CLASSES, probe.learning_rates, epochs=1, batch_size=probe.batch_size, rows=rows,
                        columns=columns)  # fmt: skip
    for head, choice in zip(heads, columns, strict=True):
        rank_classes(head, matrix[:, choice[0]], CLASSES, torch.arange(4096))


def _logistic(train: Embeddings, test: Embeddings, labels: LabelPair) -> None:
    LowShot(shares=(0.1,), per_class=(), seeds=1, strengths=(0.1,), iterations=2).answer(
        Task(train, test, labels, torch.device("cpu"))
    )


def _logistic_all(train: Embeddings, test: Embeddings, labels: LabelPair) -> None:
    data = whiten_rows(train.first, torch.from_numpy(labels.train))
    weight = torch.zeros(WIDTH, CLASSES, dtype=torch.float64)
    began = time.process_time()
    cross_entropy(data, weight, weight[0])
    print(f"one evaluation: {time.process_time() - began:.1f} s of CPU, {TRAIN:,} images", flush=True)


WORK = {"knn": _knn, "linear": _linear, "logistic": _logistic, "logistic-all": _logistic_all}


class _Watch:
    """The largest memory of this process, twenty times a second: its own, and with the pages of mapped files."""

    def __init__(self) -> None:
        self._peaks = {"RssAnon": 0.0, "VmRSS": 0.0}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> dict[str, float]:
        """GiB."""
        self._stopped.set()
        self._thread.join()
        return {
            "own_gib": round(self._peaks["RssAnon"], 2),
            "with_mapped_pages_gib": round(self._peaks["VmRSS"], 2),
        }

    def _look(self) -> None:
        while not self._stopped.wait(0.05):
            for line in Path("/proc/self/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in self._peaks:
                    self._peaks[name] = max(self._peaks[name], int(value.split()[0]) / 2**20)


if __name__ == "__main__":
    main()

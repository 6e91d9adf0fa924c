"""A protocol of one's own: `glocal evaluate examples/my_protocol.py:Centroids model=... data=...`."""

from __future__ import annotations

from typing import ClassVar

import torch

from glocal.evaluation.base import DataLike, ProtocolConfig
from glocal.evaluation.classification.labels import align_labels, open_labelled
from glocal.evaluation.results import Result
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.extraction.work import Work
from glocal.models.encoder import Encoder


class Centroids(ProtocolConfig):
    """Nearest class centroid: a test image gets the class whose mean training embedding is closest by cosine."""

    protocol: ClassVar[str] = "centroids"
    features: str = "cls"
    """Readout: cls, mean_patches or gem_patches."""

    def run(self, encoder: Encoder, data: DataLike, work: Work) -> Result:
        """Embed both splits once, average by class, compare; features are kept, and shared with other protocols."""
        train, test, notes = open_labelled(data)
        labels = align_labels(train, test)
        known, asked = (
            extract_embeddings(encoder, source, what=[self.features], work=work) for source in (train, test)
        )
        truth = torch.as_tensor(labels.test[asked.indices])
        classes = torch.as_tensor(labels.train[known.indices])
        centroids = torch.stack([known.first[classes == c].mean(dim=0) for c in range(labels.classes)])
        units = torch.nn.functional.normalize
        nearest = (units(asked.first, dim=1) @ units(centroids, dim=1).T).argmax(dim=1)
        top1 = 100 * (nearest == truth).float().mean()
        return self.result(encoder, {"train": train, "test": test}, {"top1": float(top1)}, notes=notes)

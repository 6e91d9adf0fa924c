"""Over-clustering: PCA against scikit-learn, cluster counts against a loop, and the protocol end to end."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dense_fakes import QUIET, blocks, colour_encoder
from sklearn.decomposition import PCA

from glocal.errors import ConfigError, DataError, ModelError
from glocal.evaluation.segmentation.clustering import (
    OverClustering,
    cluster,
    cluster_confusion,
    principal_components,
)
from glocal.extraction.work import Work


def test_principal_components_equal_scikit_learn() -> None:
    points = torch.randn(80, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [5, 4, 3, 2, 1, 0.5]
    )
    found = principal_components(points, 3).numpy()
    expected = PCA(3).fit_transform(points.numpy())
    assert np.allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_cluster_confusion_equals_a_loop() -> None:
    generator = np.random.default_rng(0)
    found = generator.integers(0, 5, 2 * 6)
    masks = generator.integers(0, 3, (2, 4, 6)).astype(np.uint8)
    masks[1, 0] = 255
    slow = np.zeros((3, 5), int)
    for image in range(2):
        for row in range(4):
            for column in range(6):
                if masks[image, row, column] != 255:
                    patch = image * 6 + (row // 2) * 3 + column // 2
                    slow[masks[image, row, column], found[patch]] += 1
    assert np.array_equal(cluster_confusion(found, masks, (2, 3), 3, 5).numpy(), slow)


@pytest.mark.parametrize("method", ["minibatch", "lloyd"])
def test_colours_form_clusters(method: str) -> None:
    protocol = OverClustering(size=40, clusters=8, components=3, seeds=2, method=method, restarts=2)
    sources = {"test": blocks(8, cells=5)}
    result = protocol.run(colour_encoder(), sources, QUIET)
    assert result.numbers["mIoU"] > 99 and result.numbers["mIoU_matched"] > 99
    assert len(result.rows) == 2 and result.numbers["mIoU_std"] < 1
    again = protocol.run(colour_encoder(), sources, Work(batch_size=3, progress=False))
    assert again.numbers == result.numbers


def test_bad_input() -> None:
    with pytest.raises(DataError, match="fewer clusters"):
        cluster(np.zeros((3, 2)), 4, 0, "lloyd", 5, 1)
    with pytest.raises(DataError, match="400"):
        OverClustering(size=32, clusters=400).run(colour_encoder(), {"test": blocks(2)}, QUIET)
    with pytest.raises(ConfigError, match="seeds"):
        OverClustering(size=32, seeds=0).run(colour_encoder(), {"test": blocks(2)}, QUIET)
    with pytest.raises(ModelError, match="patch tokens"):
        OverClustering(size=32).run(colour_encoder(patches=False), {"test": blocks(2)}, QUIET)
    source = blocks(6)
    source.bad = (2,)
    source.masks = [np.where(mask == 1, 255, mask).astype(np.uint8) for mask in source.masks]
    result = OverClustering(size=32, clusters=4, components=3, seeds=1).run(
        colour_encoder(), {"test": source}, QUIET
    )
    assert any("2.png" in note for note in result.notes) and any(
        "absent" in note and ": 1" in note for note in result.notes
    )

"""Features that are mapped from a file and held in float16: the same figures, and what was rounded is said."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_fakes import QUIET
from evaluation_fakes import coloured, small_encoder

from glocal.errors import DataError, ModelError
from glocal.evaluation.base import protocol_class
from glocal.extraction import feature_matrix
from glocal.extraction.feature_matrix import allocate, chosen_rows, release, unit_rows, write_rows
from glocal.extraction.image_embeddings import SHARD, extract_embeddings


def map_everything(monkeypatch: pytest.MonkeyPatch, half_from: int) -> None:
    monkeypatch.setattr(feature_matrix, "MAPPED_FROM", 1)
    monkeypatch.setattr(feature_matrix, "HALF_FROM", half_from)
    monkeypatch.setattr(feature_matrix, "CHUNK", 50)


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("knn", {"ks": (3, 20)}),
        ("linear", {"inputs": ("cls", "cls+mean"), "epochs": 2, "least_steps": 20, "learning_rates": (0.01, 0.1)}),
        ("logistic", {"shares": (1.0,), "per_class": (2,), "seeds": 1, "strengths": (0.1, 1.0)}),
    ],
)  # fmt: skip
def test_mapped_features_give_the_same_figures(
    protocol: str, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"train": coloured(SHARD + 88, 4, bad=(3, 520)), "test": coloured(60, 4, seed=1, name="test")}
    config = protocol_class(protocol)(**settings)
    plain = config.run(small_encoder(), data, QUIET)
    map_everything(monkeypatch, half_from=2**40)
    mapped = config.run(small_encoder(), data, QUIET)
    assert mapped.numbers == pytest.approx(
        plain.numbers, abs=1.7, nan_ok=True
    )  # an image: products of other chunks
    assert mapped.notes == plain.notes and plain.notes
    map_everything(monkeypatch, half_from=1)
    half = config.run(small_encoder(), data, QUIET)
    assert half.numbers == pytest.approx(plain.numbers, abs=1.7, nan_ok=True)
    assert sum("held in float16, 0.0" in note for note in half.notes) == 2  # train's and test's


def test_vectors_lie_side_by_side_without_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    source = coloured(SHARD + 20, 3, side=16, bad=(0, 5, SHARD))
    plain = extract_embeddings(small_encoder(), source, what=["mean_patches", "cls"], work=QUIET)
    map_everything(monkeypatch, half_from=1)
    half = extract_embeddings(
        small_encoder(), source, what=["mean_patches", "cls"], work=QUIET, allow_half=True
    )
    assert half.first.dtype == torch.float16 and plain.rounding == 0
    assert half.indices.tolist() == [i for i in range(SHARD + 20) if i not in (0, 5, SHARD)]
    for name, vectors in plain.vectors.items():
        error = (half.vectors[name].float() - vectors).norm(dim=1) / vectors.norm(dim=1)
        assert error.max() < 2**-10
    assert half.side_by_side is not None and plain.side_by_side is not None
    assert torch.equal(plain.side_by_side, torch.cat(list(plain.vectors.values()), dim=1))
    assert extract_embeddings(small_encoder(), source, work=QUIET).first.dtype == torch.float32  # not allowed


def test_matrices_are_files_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(feature_matrix, "MAPPED_FROM", 1)
    rows = allocate(120, 6)
    assert not list(tmp_path.iterdir())
    given = torch.randn(120, 6)
    assert write_rows(rows, 0, given) == 0.0
    assert torch.allclose(unit_rows(rows).norm(dim=1), torch.ones(120))
    places = torch.tensor([7, 3, 3])
    assert np.array_equal(chosen_rows(rows, places).numpy(), given[places].numpy())
    with pytest.raises(DataError, match=r"don't fit into .* Set TMPDIR"):
        allocate(2**40, 2**10)
    with pytest.raises(ModelError, match="1e\\+05, and float16"):
        write_rows(allocate(1, 2, torch.float16), 0, torch.tensor([[1e5, 0.0]]))


def test_pages_are_handed_back_and_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_matrix, "MAPPED_FROM", 1)
    mapped = allocate(40_000, 200)
    mapped.copy_(torch.arange(40_000)[:, None].expand(-1, 200))
    held = resident()
    release(mapped[:, 100:])  # columns of a wider matrix, too
    assert held - resident() > 0.9 * mapped.nbytes
    assert torch.equal(mapped[:, 7], torch.arange(40_000).float())
    plain = torch.arange(6.0).view(2, 3)
    release(plain)
    assert plain.sum() == 15


def resident() -> int:
    """Bytes of files that this process has mapped in."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))

"""The precision that features are computed in: stated, the same everywhere, and as exact as it says."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dense_fakes import QUIET
from evaluation_fakes import coloured, small_encoder

from glocal.errors import ModelError
from glocal.evaluation.base import evaluate
from glocal.evaluation.classification.knn import KnnConfig
from glocal.extraction.feature_stream import check_finite
from glocal.extraction.image_embeddings import extract_embeddings
from glocal.models.precision import settle_precision


def test_one_precision_whatever_is_set_globally(tmp_path: Path) -> None:
    data = {"train": coloured(30, 3, name="train"), "test": coloured(12, 3, seed=1, name="test")}
    work = replace(QUIET, cache=tmp_path)
    exact = extract_embeddings(small_encoder(), data["train"], work=QUIET).first
    torch.set_float32_matmul_precision("medium")
    assert torch.equal(extract_embeddings(small_encoder(), data["train"], work=work).first, exact)
    assert torch.get_float32_matmul_precision() == "medium"
    short = small_encoder()
    short.precision = "bfloat16"
    rounded = extract_embeddings(short, data["train"], work=work).first  # not what was kept in float32
    assert not torch.equal(rounded, exact) and torch.allclose(rounded, exact, atol=0.1)
    result = evaluate(KnnConfig(ks=(1,)), short, data, work=QUIET)
    assert result.made["precision"] == "bfloat16" and result.notes[-1].startswith("bfloat16, from float32")
    difference = (rounded - exact).norm(dim=1) / exact.norm(dim=1)
    assert 0.1 * difference.mean() < result.made["precision_error"]["cls"] < 10 * difference.mean()
    assert "precision_error" not in evaluate(KnnConfig(ks=(1,)), small_encoder(), data, work=QUIET).made


def test_float32_is_as_exact_by_whichever_library_multiplies() -> None:
    encoder, pixels = small_encoder(), torch.rand(5, 3, 32, 32)
    with torch.no_grad():
        plain, double = encoder.backbone(pixels).patches, copy.deepcopy(encoder.backbone).double()
        exact = double(pixels.double()).patches
    error = (encoder.features(pixels).patches.double() - exact).norm() / exact.norm()
    assert error < 2 * (plain.double() - exact).norm() / exact.norm() < 1e-5
    assert settle_precision("float32", encoder.device) == "float32"
    assert settle_precision("auto", torch.device("mps")) == "bfloat16"


def test_only_what_is_no_number_is_refused() -> None:
    check_finite(small_encoder(), torch.full((2, 3), 3e38), "rows")  # whose sum overflows
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ModelError, match="for 1 of 2"):
            check_finite(small_encoder(), torch.tensor([[1.0, 2.0], [bad, 0.0]]), "rows")

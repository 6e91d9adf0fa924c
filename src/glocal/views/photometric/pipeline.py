"""Pipelines."""
from __future__ import annotations


def apply_pipeline(pixels, pipeline, seeds, patch_size):
    raise NotImplementedError


def apply_pipeline_both(pixels, pipeline, seeds, patch_size):
    raise NotImplementedError

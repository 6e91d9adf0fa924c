"""Columns beside the images of parquet files: labels, class names, what a filter may choose by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from glocal.data.labels import UNLABELLED, Labels, number_texts, number_wholes
from glocal.outside import reading

_LABEL_COLUMNS = ("label", "labels", "fine_label")


def plain_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns whose values are single and no bytes."""
    return [f.name for f in schema if not (pa.types.is_nested(f.type) or is_binary(f.type))]


def is_binary(kind: pa.DataType) -> bool:
    """Whether values are bytes."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def read_labels(files: Sequence[Path], schema: pa.Schema) -> Labels:
    """Read the label column of all files and its class names."""
    features = declared_features(schema)
    declared = [n for n, f in features.items() if isinstance(f, dict) and f.get("_type") == "ClassLabel"]
    candidates = [n for n in _LABEL_COLUMNS if n in schema.names] + [n for n in declared if n in schema.names]
    if not candidates:
        return None, None
    column = candidates[0]
    values = read_column(files, column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return number_texts(values.to_pylist())
    if not pa.types.is_integer(values.type):
        return None, None
    whole = (
        values.fill_null(UNLABELLED)
        if pa.types.is_signed_integer(values.type)
        else values.cast(pa.int64(), safe=False).fill_null(UNLABELLED)
    )
    return number_wholes(np.asarray(whole, dtype=np.int64), class_names_of(features, column))


def class_names_of(features: dict[str, Any], column: str) -> list[str] | None:
    """The class names that the metadata declare for a column, if any."""
    declared = features.get(column)
    names = declared.get("names") if isinstance(declared, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None


def read_column(files: Sequence[Path], column: str) -> pa.Array:
    """One column of all files."""
    with reading(
        files[0],
        f"parquet with a column '{column}'",
        cure="Files opened together must have the same columns.",
    ):
        read = [pq.read_table(file, columns=[column], use_threads=False).column(0) for file in files]
        return pa.concat_arrays([chunk for table in read for chunk in table.chunks])


def declared_features(schema: pa.Schema) -> dict[str, Any]:
    """Return what the Hugging Face metadata says of the columns; files without it, or with other JSON, say nothing."""
    try:
        plain = json.loads((schema.metadata or {})[b"huggingface"])
        features = plain["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}

"""Side files, damaged in every way that bytes and their meaning can be: read, or refused in one sentence.

Each reader is given some 60 mutants of a good file, the same on every machine: cut, flipped, doubled and swapped bytes,
text of another kind, and for JSON and YAML values of other types in every place.
"""

from __future__ import annotations

import copy
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_border import TINY

from glocal.config import to_yaml
from glocal.data import open_source
from glocal.data.cifar import CifarSource
from glocal.errors import GlocalError
from glocal.evaluation.compare import as_tables, compare
from glocal.evaluation.objects.davis_data import DavisVideos
from glocal.evaluation.retrieval.ground_truth import read_ground_truth
from glocal.evaluation.retrieval.retrieval_data import open_revisited
from glocal.evaluation.spair import read_pairs
from glocal.models.export import export_backbone
from glocal.models.loading import load
from glocal.models.vit import VisionTransformer
from glocal.recipes import configure
from glocal.training.run_folder import read_run_config

HOSTILE: list[object] = [None, True, -1, 10**30, 1.5, "", "text", "\0", [], [[[]]], {}, {"a": 1}]
GARBAGE = [
    b"",
    b"\n",
    b"\0" * 64,
    b"\xff\xfe\x00",
    b"[" * 5000,
    b"{" * 3000,
    b'"',
    b"a,b\n" * 3,
    "größe".encode("latin-1"),
]


def damaged(content: bytes, seed: int = 0) -> Iterator[bytes]:
    """Mutants of some bytes."""
    yield from GARBAGE
    rng = np.random.default_rng(seed)
    for cut in np.linspace(0, max(0, len(content) - 1), 8).astype(int):
        yield content[:cut]
    for place in rng.integers(0, len(content), 24):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
    for place in rng.integers(0, len(content), 8):
        yield content[:place] + GARBAGE[place % len(GARBAGE)] + content[place:]
        yield content[:place] + content[place : place + 40] * 3 + content[place + 40 :]


def rewritten(plain: object) -> Iterator[object]:
    """The same plain data with hostile values in each place, four of them in turn."""
    for number, path in enumerate(_places(plain)):
        for value in HOSTILE[number % 3 :: 3]:
            yield _with(plain, path, value)


def _places(plain: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    entries = (
        plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    )
    for key, value in entries:
        yield from _places(value, (*path, key))


def _with(plain: object, path: tuple[Any, ...], value: object) -> object:
    changed = copy.deepcopy(plain)
    node: Any = changed
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return changed


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value).save(buffer, "PNG")
    return buffer.getvalue()


def check(file: Path, mutants: Iterator[bytes], read: Callable[[], object]) -> None:
    """Every mutant is read or refused; a refusal is one short paragraph that names something."""
    for mutant in mutants:
        file.write_bytes(mutant)
        try:
            read()
        except GlocalError as error:
            assert 10 < len(str(error)) < 3000, mutant[:100]
        except MemoryError:
            raise
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} from {mutant[:200]!r}") from error


@pytest.mark.parametrize(
    "text", ["a.png\nb.png\n", "a.png,1\nb.png,2\n", "path,label,split\na.png,x,train\nb.png,y,test\n"]
)
def test_damaged_lists_are_read_or_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    file = tmp_path / "list.csv"
    extra = [
        f"a.png,{10**40}\n",
        "a.png,-9999999999999999999\n",
        '"a.png\n',
        f"{'x' * 5000}\n",
        "a\0b.png\na.png\n",
        ",\n",
    ]

    def read() -> None:
        source = open_source(file)
        for index in range(len(source)):
            source.key(index)
        source.fingerprint()
        open_source(f"{file}:all")

    check(file, iter([*damaged(text.encode()), *(e.encode() for e in extra)]), read)


def test_a_damaged_parquet_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    cells = pa.array([{"bytes": png(i), "path": "p"} for i in range(4)])
    table = pa.table({"image": cells, "label": pa.array([0, 1, 0, 1]), "domain": pa.array(["x"] * 4)})
    features = {
        "info": {
            "features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}
        }
    }

    def written(metadata: object) -> bytes:
        buffer = io.BytesIO()
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(metadata)}), buffer)
        return buffer.getvalue()

    def read() -> None:
        source = open_source(file)
        source.column("label" if source.labels is not None else "domain")
        source.key(0)
        source.read(0)

    check(file, damaged(written(features)), read)
    check(file, (written(plain) for plain in rewritten(features)), read)


def test_a_damaged_run_configuration_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    text = to_yaml(configure("pw-self", data="digits", out="x", preset="cifar"))
    check(file, damaged(text.encode()), lambda: read_run_config(tmp_path))


def test_damaged_results_are_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    result = {
        "protocol": "knn", "version": 1, "settings": {"k": 1}, "numbers": {"top1": 5.0}, "rows": [{"a": 1}], "notes": ["n"],
        "model": {"name": "m", "fingerprint": "f"}, "data": {"test": "d"},
    }  # fmt: skip
    skip = {"protocol": "davis", "reason": "r", "model": {"name": "m", "fingerprint": "f"}, "data": "d"}
    plain = {"format": 1, "results": [result, result], "skipped": [skip]}
    check(file, damaged(json.dumps(plain).encode()), lambda: as_tables(compare([tmp_path])))
    check(file, (json.dumps(p).encode() for p in rewritten(plain)), lambda: as_tables(compare([tmp_path])))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("side") / "model"
    torch.manual_seed(0)
    export_backbone(VisionTransformer(TINY), root, mean=(0.5,) * 3, std=(0.5,) * 3, image_size=16)
    return root


def test_a_damaged_model_configuration_is_read_or_refused(model: Path) -> None:
    file = model / "config.json"
    content = file.read_bytes()
    plain = json.loads(content)
    check(file, damaged(content), lambda: load(model))
    check(file, (json.dumps(p).encode() for p in rewritten(plain)), lambda: load(model))
    file.write_bytes(content)
    load(model)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.pth"])
def test_damaged_weights_are_read_or_refused(model: Path, tmp_path: Path, name: str) -> None:
    good = tmp_path / name
    if name.endswith(".pth"):
        torch.save(VisionTransformer(TINY).state_dict(), good)
    else:
        good.write_bytes((model / name).read_bytes())
    content = good.read_bytes()
    check(good, damaged(content), lambda: load(good, {"num_heads": 2}))
    heads = iter(content[:n] + b"\xff" * 8 + content[n + 8 :] for n in range(0, 200, 8))
    check(good, heads, lambda: load(good, {"num_heads": 2}))


def test_a_damaged_ground_truth_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "ground_truth.csv"
    check(file, damaged(b"query,reference\nq1,r1\nq2,r2\nq3,\n"), lambda: read_ground_truth(file))


def test_a_damaged_revisited_pickle_is_read_or_refused(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "jpg").mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / "jpg" / f"{name}.jpg")
    file = tmp_path / "gnd_small.pkl"
    truth = {
        "imlist": ["a"],
        "qimlist": ["b"],
        "gnd": [{"bbx": [0, 0, 4, 4], "easy": [0], "hard": [], "junk": []}],
    }
    check(file, damaged(pickle.dumps(truth)), lambda: open_revisited(tmp_path))
    check(file, (pickle.dumps(p) for p in rewritten(truth)), lambda: open_revisited(tmp_path))


def test_damaged_spair_pairs_are_read_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "PairAnnotation" / "test"
    folder.mkdir(parents=True)
    file = folder / "0.json"
    pair = {
        "category": "cat", "src_imname": "a.jpg", "trg_imname": "b.jpg", "src_kps": [[1, 2], None], "trg_kps": [[3, 4], [5, 6]],
        "trg_bndbox": [0, 0, 9, 9], "src_imsize": [9, 9, 3], "trg_imsize": [9, 9, 3],
    }  # fmt: skip
    check(file, damaged(json.dumps(pair).encode()), lambda: read_pairs(tmp_path, "test"))
    check(file, (json.dumps(p).encode() for p in rewritten(pair)), lambda: read_pairs(tmp_path, "test"))


def test_a_damaged_davis_archive_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "davis.tar"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        members = {
            "ImageSets/2017/val.txt": b"s\n",
            "JPEGImages/480p/s/00000.jpg": png(),
            "Annotations/480p/s/00000.png": png(),
        }
        for name, content in members.items():
            info = tarfile.TarInfo(f"DAVIS/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    check(file, damaged(buffer.getvalue()), lambda: DavisVideos(file).read_masks("s"))


def test_damaged_cifar_batches_are_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "data_batch_1.bin"
    check(
        file, damaged(os.urandom(0) + bytes(3073 * 2)), lambda: CifarSource("cifar10", [file], 1, ["a"] * 10)
    )

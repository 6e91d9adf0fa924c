"""The embedding store: what is stored is what the model gives, within the stated error, and a killed one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from evaluation_fakes import coloured, small_encoder

import glocal
from glocal.errors import ConfigError, DataError
from glocal.extraction import embedding_file
from glocal.extraction.embedding_file import embed, images_a_part
from glocal.extraction.embedding_shards import Form
from glocal.extraction.embedding_store import EmbeddingStore
from glocal.extraction.embedding_stream import iterate_embeddings
from glocal.extraction.stored_numbers import CodingError, Stored, coded
from glocal.models.preprocessing import FeatureTransform

WHAT = ["cls", "patches", "mean_patches@-2"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith(".")}


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_what_is_stored_is_what_the_model_gives(tmp_path: Path, form: Form) -> None:
    encoder, source = small_encoder(), coloured(20, 4, bad=(3,))
    store = embed(encoder, source, tmp_path / "e", what=WHAT, form=form, progress=False)
    inputs = [FeatureTransform().resolve(encoder).image(source.read(i), 8) for i in range(20) if i != 3]
    pixels = encoder.normalise(torch.stack(inputs))
    last, before = encoder.features(pixels), encoder.intermediate(pixels, (-2,))[0]
    torch.testing.assert_close(torch.from_numpy(store.numpy("cls")), last.cls)
    torch.testing.assert_close(torch.from_numpy(store.numpy("patches")), last.patches)
    torch.testing.assert_close(torch.from_numpy(store.numpy("mean_patches@-2")), before.patches.mean(1))
    assert store.manifest.grid == last.grid and store.manifest.unreadable == {"3.png": "3.png is cut short"}
    assert store.keys == [f"{i}.png" for i in range(20) if i != 3]
    assert store[3]["index"] == 4 and store[3]["label"] == 0
    torch.testing.assert_close(store[3]["patches"], last.patches[3])
    batches = list(store.batches(8))
    assert torch.equal(torch.cat([b["cls"] for b in batches]), torch.from_numpy(store.numpy("cls")))
    assert [k for b in batches for k in b["key"]] == store.keys


def test_the_stated_error_is_the_measured_one(tmp_path: Path) -> None:
    encoder, source = small_encoder(), coloured(16, 4)
    exact = embed(encoder, source, tmp_path / "e", what=WHAT, progress=False)
    errors: dict[Stored, float] = {"float16": 0.001, "int8": 0.02}
    for stored, most in errors.items():
        short = embed(
            encoder, source, tmp_path / stored, what=WHAT, stored=stored, form="npy", progress=False
        )
        for name in WHAT:
            one, other = exact.numpy(name).astype(np.float64), short.numpy(name).astype(np.float64)
            relative = np.linalg.norm(one - other, axis=-1) / np.linalg.norm(one, axis=-1)
            stated = short.manifest.error[name]
            assert stated["root_mean_square"] == pytest.approx(np.sqrt((relative**2).mean()), rel=0.01)
            assert stated["largest"] == pytest.approx(relative.max(), rel=0.01)
            assert 0 < stated["largest"] < most
    bytes_of = {p.name: sum(f.stat().st_size for f in p.glob("*.patches.npy")) for p in tmp_path.iterdir()}
    assert bytes_of["int8"] < 0.55 * bytes_of["float16"]


def test_zeros_are_stored_without_error_and_overflow_is_refused() -> None:
    rows = np.array([[0.0, 0.0], [1.0, -3.0]], np.float32)
    assert coded(rows, "int8").decoded()[0].tolist() == [0.0, 0.0]
    assert CodingError.of(rows, coded(rows, "int8")).rows == 2
    with pytest.raises(DataError, match="stored=float32"):
        coded(np.array([[1e6]], np.float32), "float16")


def test_one_parquet_file_reads_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_file, "MOST_IMAGES", 8)
    monkeypatch.setattr(FeatureTransform, "tile", lambda self, encoder: 4)
    source = coloured(20, 4, bad=(17, *range(8, 16)))
    store = embed(
        small_encoder(), source, tmp_path / "e.parquet", what=WHAT, stored="float16", progress=False
    )
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["key", "index", "label", *WHAT]
    assert table["index"].to_pylist() == [*range(8), 16, 18, 19]
    assert np.stack(table["patches"][9].as_py()).shape == (16, 64)
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".e.parquet.writ")] == ["e.parquet"]
    assert np.array_equal(np.array(table["cls"].to_pylist(), np.float32), store.numpy("cls"))
    assert store[8]["index"] == 16
    pandas = pytest.importorskip("pandas")
    frame = store.pandas()
    assert isinstance(frame, pandas.DataFrame) and frame["key"].tolist() == store.keys
    assert np.array_equal(np.stack(frame["cls"]), store.numpy("cls"))


def test_features_that_an_evaluation_kept_are_not_computed_again(tmp_path: Path) -> None:
    encoder, source = small_encoder(), coloured(30, 3, bad=(5,))
    given = {"train": coloured(12, 3, seed=1), "test": source}
    glocal.evaluate("knn", encoder, given, out=tmp_path / "e", ks=[3], baselines=False)
    source.reads = 0
    kept = embed(
        encoder,
        source,
        tmp_path / "kept",
        what=["cls", "mean_patches"],
        features=tmp_path / "e",
        progress=False,
    )
    assert source.reads == 0
    embed(encoder, source, tmp_path / "made", what=["cls", "mean_patches"], progress=False)
    assert source.reads == 30
    assert files_of(tmp_path / "kept") == files_of(tmp_path / "made")
    assert kept.manifest.unreadable == {"5.png": "5.png is cut short"}
    more = embed(encoder, source, tmp_path / "more", what=["cls@-2"], features=tmp_path / "e", progress=False)
    assert source.reads == 60 and len(more) == 29


def test_other_work_in_the_same_place_is_refused(tmp_path: Path) -> None:
    encoder, source = small_encoder(), coloured(6, 3)
    embed(encoder, source, tmp_path / "e", progress=False)
    source.reads = 0
    embed(encoder, source, tmp_path / "e", progress=False)
    assert source.reads == 0
    with pytest.raises(ConfigError, match="differ in fingerprint"):
        embed(small_encoder(seed=1), source, tmp_path / "e", progress=False)
    with pytest.raises(ConfigError, match="differ in what"):
        embed(encoder, source, tmp_path / "e", what=["patches"], progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        embed(encoder, source, tmp_path / "mine", progress=False)
    with pytest.raises(ConfigError, match="once"):
        embed(encoder, source, tmp_path / "f", what=["cls", "cls"], progress=False)
    nothing = embed(encoder, coloured(2, 1, bad=(0, 1)), tmp_path / "g", progress=False)
    assert len(nothing) == len(nothing.indices) == len(nothing.numpy()) == 0
    with pytest.raises(ConfigError, match="has no 'patches'"):
        EmbeddingStore(tmp_path / "e").numpy("patches")


def test_parts_are_whole_passes_and_bounded() -> None:
    encoder = small_encoder()
    for size in (32, 64, 256):
        for what in (["cls"], ["cls", "patches"]):
            transform = FeatureTransform(size=size).resolve(encoder)
            images = images_a_part(encoder, transform, what)
            tile = transform.tile(encoder)
            values = 64 * ((size // 8) ** 2 + 1 if "patches" in what else 1)
            assert images % tile == 0
            assert images == tile or images * values * 4 <= embedding_file.MOST_BYTES


def test_the_stream_names_what_it_leaves_out() -> None:
    batches = list(iterate_embeddings(small_encoder(), coloured(6, 3, bad=(0, 4)), indices=[5, 4, 0, 1]))
    assert [i for b in batches for i in b.indices.tolist()] == [5, 1]
    assert [entry for b in batches for entry in b.unreadable] == [
        (4, "4.png is cut short"),
        (0, "0.png is cut short"),
    ]


SLOWED = """
    import sys, time
    from pathlib import Path
    from evaluation_fakes import coloured, small_encoder
    from glocal.extraction import embedding_file
    from glocal.models.preprocessing import FeatureTransform

    embedding_file.MOST_IMAGES = 4
    FeatureTransform.tile = lambda self, encoder: 4
    source = coloured(40, 4, bad=(9,))
    read = source.read
    def slowly(index, at_least=None):
        time.sleep(float(sys.argv[3]))
        return read(index, at_least)
    source.read = slowly
    store = embedding_file.embed(
        small_encoder(), source, sys.argv[1], what=["cls", "patches"], stored="int8", form=sys.argv[2], progress=False
    )
    print(len(store))
"""


@pytest.mark.parametrize("form", [pytest.param("parquet", marks=pytest.mark.slow), "npy"])
def test_killed_and_resumed_gives_equal_bytes(tmp_path: Path, form: str) -> None:
    script = tmp_path / "go.py"
    script.write_text(textwrap.dedent(SLOWED))
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)]),
    }

    def start(out: str, seconds: float) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(script), str(tmp_path / out), form, str(seconds)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    whole = start("whole", 0)
    killed = start("killed", 0.05)
    for _ in range(1200):
        if (
            len(list((tmp_path / "killed").glob("part-*.parquet" if form == "parquet" else "*.keys.json")))
            >= 3
        ):
            break
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    with pytest.raises(DataError, match="not complete"):
        EmbeddingStore(tmp_path / "killed")
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "killed").glob("part-000000000[04]*")}
    resumed = start("killed", 0)
    assert resumed.communicate()[0] == whole.communicate()[0] == b"39\n"
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert len(written) >= 2 and all(p.stat().st_mtime_ns == t for p, t in written.items())

"""Image retrieval: layouts, the safe reading of pickles, junk, re-ranking by patches."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from copy_fakes import Images
from evaluation_fakes import SameAtEveryLayer, encoder_of_raw_pixels
from narrowing import present
from PIL import Image

from glocal.errors import ConfigError, DataError
from glocal.evaluation.retrieval.descriptors import DescriptorConfig
from glocal.evaluation.retrieval.image_retrieval import ImageRetrieval, by_query
from glocal.evaluation.retrieval.plain_pickle import load_plain_pickle
from glocal.evaluation.retrieval.ranking import ranks_of_positives, reranked_ranks
from glocal.evaluation.retrieval.reranking import RerankingConfig
from glocal.evaluation.retrieval.retrieval_data import (
    BoxCrops,
    open_class_folders,
    open_pairs,
    open_revisited,
)
from glocal.extraction.nearest import nearest
from glocal.extraction.work import Work
from glocal.matching.mutual_patches import mutual_match_score
from glocal.models.encoder import Encoder
from glocal.models.features import Features

QUIET = Work(progress=False)


class Colour(SameAtEveryLayer):
    """Class token: centred mean colour. Patches: centred pixels of each 4 px patch."""

    def forward(self, pixels: torch.Tensor) -> Features:
        patches = F.unfold(pixels - 0.5, 4, stride=4).transpose(1, 2)
        return Features(
            pixels.mean((2, 3)) - 0.5, patches, (pixels.shape[2] // 4, pixels.shape[3] // 4), patches
        )


def colour_encoder() -> Encoder:
    return encoder_of_raw_pixels("colour", Colour(), 48, 4, 16)


def plain(colour: tuple[int, int, int], side: int = 16) -> np.ndarray:
    return np.full((side, side, 3), colour, np.uint8)


# --- pickles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_come_back(tmp_path: Path, protocol: int) -> None:
    value = {
        "imlist": ["a", "b"],
        "gnd": [
            {
                "bbx": [1.5, 2, 3, 4],
                "easy": np.arange(3),
                "hard": [],
                "junk": np.zeros((2, 2), np.float32, "F"),
            }
        ],
        "number": np.float64(2.5),
        "raw": b"x\xff",
        "set": {1, 2},
    }
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps(value, protocol))
    read = load_plain_pickle(path)
    np.testing.assert_array_equal(read["gnd"][0].pop("easy"), np.arange(3))
    junk = read["gnd"][0].pop("junk")
    assert junk.dtype == np.float32 and junk.shape == (2, 2)
    assert read["gnd"] == [{"bbx": [1.5, 2, 3, 4], "hard": []}]
    assert (read["imlist"], read["number"], read["raw"], read["set"]) == (["a", "b"], 2.5, b"x\xff", {1, 2})


class _Runs:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("pickle-ran"),))


@pytest.mark.parametrize(
    "payload", [_Runs(), np.array([{"a": 1}], dtype=object), Path("a"), np.array(["text"]), print]
)
def test_pickles_that_name_anything_else_are_refused_and_nothing_runs(
    tmp_path: Path, payload: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "gnd.pkl"
    path.write_bytes(pickle.dumps({"imlist": payload}))
    with pytest.raises(DataError, match="no pickle of plain"):
        load_plain_pickle(path)
    assert not Path("pickle-ran").exists()


def test_damaged_pickles_are_read_or_refused_never_anything_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"imlist": ["a"], "gnd": [{"easy": np.arange(3)}], "x": np.float32(1)}, 4)
    path, refused = tmp_path / "gnd.pkl", 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            load_plain_pickle(path)
        except DataError:
            refused += 1
    assert 50 < refused < 300


def test_broken_and_python_2_pickles(tmp_path: Path) -> None:
    path = tmp_path / "gnd.pkl"
    path.write_bytes(b"\x80\x02}q\x01U\x06imlist")
    with pytest.raises(DataError, match="no pickle"):
        load_plain_pickle(path)
    # Protocol 2 as Python 2 wrote it: an 8-bit string and an int array under NumPy's old name.
    text = io.BytesIO()
    pickle.Pickler(text, 2).dump(np.array([3, 1], np.int32))
    path.write_bytes(
        b"\x80\x02(U\x02a\xe9" + text.getvalue()[2:-1].replace(b"numpy._core", b"numpy.core") + b"t."
    )
    name, numbers = load_plain_pickle(path)
    assert name == "aé"
    np.testing.assert_array_equal(numbers, [3, 1])


# --- measures ------------------------------------------------------------------------------------------------------


def slow_measure(order: list[int], positives: set[int], junk: set[int]) -> tuple[float, dict[int, float]]:
    """Average precision and precision at k of one ranked list, item by item, junk skipped."""
    kept = [item for item in order if item not in junk]
    area, hits, last = 0.0, 0, 1.0
    for seen, item in enumerate(kept, 1):
        hits += item in positives
        if item in positives:
            area += (last + hits / seen) / 2 / len(positives)
        last = hits / seen
    end = max(kept.index(item) for item in positives) + 1
    at = {k: sum(item in positives for item in kept[: min(k, end)]) / min(k, end) for k in (1, 5, 10)}
    return area, at


def test_map_and_precision_against_a_slow_reading_of_ranked_lists() -> None:
    rng = np.random.default_rng(0)
    queries = F.normalize(torch.from_numpy(rng.normal(size=(12, 6))), dim=1)
    database = F.normalize(torch.from_numpy(rng.normal(size=(60, 6))), dim=1)
    groups = [np.split(rng.permutation(60)[:20], [size]) for size in rng.integers(1, 12, 12)]
    positives, junk = [g[0] for g in groups], [g[1] for g in groups]
    samples = by_query(ranks_of_positives(queries, database, positives, junk))
    order = (-(queries @ database.T)).argsort(dim=1).tolist()
    slow = [
        slow_measure(o, set(p.tolist()), set(j.tolist()))
        for o, p, j in zip(order, positives, junk, strict=True)
    ]
    assert samples["map"].figure() == pytest.approx(100 * np.mean([area for area, _ in slow]))
    for count in (1, 5, 10):
        figure = samples[f"mp_at_{count}"].figure()
        assert figure == pytest.approx(100 * np.mean([at[count] for _, at in slow]))


def test_queries_without_a_positive_do_not_count() -> None:
    empty = np.empty(0, np.int64)
    assert by_query([np.array([0]), empty])["map"].values.tolist() == [[100]]
    with pytest.raises(DataError, match="None of 1 queries"):
        by_query([empty])


def test_reranking_in_the_old_order_gives_the_old_ranks() -> None:
    rng = np.random.default_rng(1)
    queries = F.normalize(torch.from_numpy(rng.normal(size=(8, 5))), dim=1)
    database = F.normalize(torch.from_numpy(rng.normal(size=(40, 5))), dim=1)
    chosen = [rng.permutation(40)[:16] for _ in range(8)]
    positives, junk = [c[:6] for c in chosen], [c[6:] for c in chosen]
    first = nearest(queries, database, 10)
    old = ranks_of_positives(queries, database, positives, junk)
    same = reranked_ranks(queries, database, first.rows, first.similarity, positives, junk)
    turned = reranked_ranks(queries, database, first.rows, -first.similarity, positives, junk)
    for before, after in zip(old, same, strict=True):
        np.testing.assert_array_equal(before, after)
    for query, found in enumerate(turned):
        order = (-(queries[query] @ database.T)).argsort().tolist()
        order = order[:10][::-1] + order[10:]
        kept = [item for item in order if item not in set(junk[query].tolist())]
        assert found.tolist() == sorted(kept.index(item) for item in positives[query])


def test_mutual_match_score_against_loops() -> None:
    rng = np.random.default_rng(2)
    a = F.normalize(torch.from_numpy(rng.normal(size=(7, 3))), dim=1)
    b = F.normalize(torch.from_numpy(rng.normal(size=(5, 3))), dim=1)
    total = 0.0
    for i in range(7):
        j = max(range(5), key=lambda j: float(a[i] @ b[j]))
        if max(range(7), key=lambda k: float(a[k] @ b[j])) == i:
            total += float(a[i] @ b[j])
    assert float(mutual_match_score(a, b)) == pytest.approx(total / 7)


# --- layouts -------------------------------------------------------------------------------------------------------


def write_revisited(root: Path) -> None:
    """One query; its image again (easy), a similar one (hard), a twin that is junk, and two others."""
    (root / "jpg").mkdir(parents=True)
    red, blue = (200, 10, 10), (10, 10, 200)
    query = plain(blue, 32)
    query[8:24, 8:24] = red  # the box; all around is another colour
    images = {"query": query, "easy": plain(red), "hard": plain((190, 90, 90)), "junk": plain((198, 10, 12))}
    images |= {"other": plain(blue), "green": plain((10, 200, 10))}
    for name, pixels in images.items():
        Image.fromarray(pixels).save(root / "jpg" / f"{name}.png")
    truth = {
        "imlist": ["easy", "hard", "junk", "other", "green"],
        "qimlist": ["query"],
        "gnd": [{"bbx": [8.0, 8.0, 24.0, 24.0], "easy": np.array([0]), "hard": [1], "junk": [2]}],
    }
    (root / "gnd_rtoy.pkl").write_bytes(pickle.dumps(truth, 2))


def test_revisited_difficulties_and_query_box(tmp_path: Path) -> None:
    write_revisited(tmp_path)
    data = open_revisited(tmp_path)
    lists = {name: (j.positives[0].tolist(), j.ignored[0].tolist()) for name, j in data.judgements.items()}
    assert lists == {"easy": ([0], [1, 2]), "medium": ([0, 1], [2]), "hard": ([1], [0, 2])}
    cut = ImageRetrieval(crop_queries=True).run(colour_encoder(), tmp_path, QUIET)
    assert {name: cut.numbers[f"{name}/map"] for name in lists} == {"easy": 100, "medium": 100, "hard": 100}
    whole = ImageRetrieval().run(colour_encoder(), tmp_path, QUIET)
    assert whole.numbers["easy/map"] < 100
    three = DescriptorConfig(resize="longer", size=32, scales=(1.0, 0.7071, 0.5))
    scales = ImageRetrieval(descriptor=three, crop_queries=True)
    result = scales.run(colour_encoder(), tmp_path, QUIET)
    assert result.settings["resolution"] == [32, 24, 16]
    assert result.numbers["medium/map"] == 100


def test_revisited_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="0 files gnd_"):
        open_revisited(tmp_path)
    write_revisited(tmp_path)
    (tmp_path / "jpg" / "green.png").unlink()
    with pytest.raises(DataError, match=r"1 images.*green"):
        open_revisited(tmp_path)
    (tmp_path / "gnd_rtoy.pkl").write_bytes(pickle.dumps({"imlist": []}))
    with pytest.raises(DataError, match="imlist, qimlist and gnd"):
        open_revisited(tmp_path)
    judged = {"bbx": [0, 0, 1, 1], "easy": [4], "hard": [], "junk": []}
    truth = {"imlist": ["easy"], "qimlist": ["query"], "gnd": [judged]}
    (tmp_path / "gnd_rtoy.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(DataError, match="image 4 of 1"):
        open_revisited(tmp_path)
    truth["gnd"] = [{"ok": [0], "junk": [], "bbx": [0, 0, 1, 1]}]
    (tmp_path / "gnd_rtoy.pkl").write_bytes(pickle.dumps(truth))
    with pytest.raises(DataError, match="original ground truth"):
        open_revisited(tmp_path)


def test_class_folders_ignore_the_query_itself_and_name_lonely_images() -> None:
    colours = [(250, 0, 0), (240, 5, 5), (0, 250, 0), (5, 240, 5), (0, 0, 250)]
    source = Images({f"{i}": plain(c) for i, c in enumerate(colours)}, labels=[0, 0, 1, 1, 2])
    results = [
        ImageRetrieval().run(colour_encoder(), {"test": source}, Work(batch_size=b, progress=False))
        for b in (1, 64)
    ]
    assert results[0].numbers == results[1].numbers
    assert results[0].numbers == {"map": 100, "mp_at_1": 100, "mp_at_5": 100, "mp_at_10": 100, "queries": 4}
    assert any("1 images are alone" in note for note in results[0].notes)
    fewer = open_class_folders(source, most_queries=2)
    assert [fewer.queries.key(i) for i in range(2)] == ["0", "3"] and present(
        fewer.query_places
    ).tolist() == [0, 3]
    assert [p.tolist() for p in fewer.judgements["all"].positives] == [[1], [2]]
    with pytest.raises(DataError, match="no labels"):
        open_class_folders(Images({"0": plain(colours[0])}))
    with pytest.raises(DataError, match="No class"):
        open_class_folders(Images({"0": plain(colours[0])}, labels=[0]))


def test_csv_of_pairs_and_unreadable_images(tmp_path: Path) -> None:
    table = tmp_path / "pairs.csv"
    table.write_text("query,positive\na,b\nc,b\nd,x\ne,a\n")
    red, green = plain((250, 0, 0)), plain((0, 250, 0))
    source = Images({"a": red, "b": red, "c": green, "d": green, "e": None})
    data = open_pairs(source, source, table)
    assert [ids.tolist() for ids in data.judgements["all"].ignored] == [[0], [2], [4]]
    result = ImageRetrieval(ground_truth=str(table)).run(
        colour_encoder(), {"queries": source, "database": source}, QUIET
    )
    assert result.numbers["queries"] == 2
    notes = "\n".join(result.notes)
    assert "1 positives of the table have no image" in notes and "e is broken" in notes
    (tmp_path / "other.csv").write_text("query,positive\nz,b\n")
    with pytest.raises(DataError, match="No row"):
        open_pairs(source, source, tmp_path / "other.csv")


def test_cropped_source_is_cut_to_the_image_and_refuses_boxes_outside() -> None:
    source = Images({"a": plain((1, 2, 3)), "b": plain((1, 2, 3))})
    cropped = BoxCrops(source, [(-3.0, 2.0, 8.0, 99.0), (20.0, 0.0, 30.0, 5.0)])
    assert cropped.read(0).size == (8, 14)
    with pytest.raises(DataError, match="outside b"):
        cropped.read(1)
    assert cropped.fingerprint() != BoxCrops(source, [(0, 0, 1, 1)] * 2).fingerprint()
    with pytest.raises(DataError, match="2 images and 1 boxes"):
        BoxCrops(source, [(0, 0, 1, 1)])


def test_patches_decide_where_descriptors_cannot() -> None:
    """All images have the same mean colour; what repeats between pairs are textures, shifted by whole patches."""
    rng = np.random.default_rng(0)
    images, labels = {}, []
    for label in range(6):
        half = rng.integers(0, 256, (16, 8, 3))
        texture = np.concatenate([half, 255 - half], axis=1).astype(np.uint8)
        for shift in (0, 4):
            images[f"{label}{shift}"] = np.roll(texture, shift, axis=1)
            labels.append(label)
    data = {"test": Images(images, labels=labels)}
    plainly = ImageRetrieval().run(colour_encoder(), data, QUIET)
    config = ImageRetrieval(reranking=RerankingConfig(count=12, local_weight=0.9))
    matched = [config.run(colour_encoder(), data, Work(batch_size=b, progress=False)).numbers for b in (1, 5)]
    assert plainly.numbers["map"] < 70
    assert matched[0]["map"] == 100
    assert matched[0] == matched[1]
    with pytest.raises(ConfigError, match="distractors"):
        config.run(colour_encoder(), {**data, "distractors": Images({"z": plain((0, 0, 0))})}, QUIET)

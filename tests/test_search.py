"""Search: exact and approximate answers against loops, queries of every kind, an index that follows its collection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import coloured, pixel_encoder, small_encoder
from pictures import picture
from PIL import Image
from torch.nn import functional as F
from typer.testing import CliRunner

import glocal
from glocal.cli import app
from glocal.data.open import open_source
from glocal.errors import ConfigError, DataError, ModelError
from glocal.extraction.stored_numbers import coded
from glocal.lookup.answers import LOCAL_WEIGHT, search
from glocal.lookup.bank import FaissBank, VectorBank, open_bank
from glocal.lookup.index import Index, index
from glocal.lookup.query import copies_of, query_box, query_patch
from glocal.matching.mutual_patches import mutual_match_score
from glocal.report.search_page import search_page

HOSTILE = "<script>alert(1)<_script> & 'x'.png"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(12):
        picture(48, 48, seed=number).save(folder / f"{number:02}.png")
    picture(48, 48, seed=50).save(folder / HOSTILE)
    return folder


def unit_rows(rows: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def test_exact_search_over_parts_against_a_loop() -> None:
    rows = unit_rows(300)
    alive = np.random.default_rng(1).random(300) < 0.7
    parts = [coded(rows[:100], "int8"), coded(rows[100:110], "int8"), coded(rows[110:], "int8")]
    bank = VectorBank(parts, alive)
    stored = np.concatenate([part.decoded() for part in parts])
    queries = unit_rows(7, seed=3)
    found = bank.nearest(torch.from_numpy(queries), 5)
    for q in range(7):
        scores = [(float(queries[q] @ stored[r]), r) for r in range(300) if alive[r]]
        expected = sorted(scores, reverse=True)[:5]
        assert found.rows[q].tolist() == [r for _, r in expected]
        assert found.similarity[q].tolist() == pytest.approx([s for s, _ in expected], abs=1e-5)
    assert bank.take(np.array([299, 0, 105])).numpy() == pytest.approx(stored[[299, 0, 105]])
    assert VectorBank(parts, np.zeros(300, bool)).nearest(torch.from_numpy(queries), 5).rows.shape == (7, 0)
    assert VectorBank(parts, np.arange(300) < 2).nearest(torch.from_numpy(queries), 5).rows.shape == (7, 2)


def test_faiss_finds_what_exact_search_finds(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rows = unit_rows(4000)
    alive = np.arange(4000) % 3 > 0
    parts = [coded(rows[:2500], "int8"), coded(rows[2500:], "int8")]
    exact = VectorBank(parts, alive)
    queries = torch.from_numpy(unit_rows(20, seed=3))
    first = open_bank(parts[:1], alive[:2500], tmp_path / "f.faiss", "faiss")
    assert isinstance(first, FaissBank) and first.nearest(queries, 3).rows.max() < 2500
    written = (tmp_path / "f.faiss").stat().st_size
    grown = open_bank(parts, alive, tmp_path / "f.faiss", "faiss")  # rows are added to what is there
    assert (tmp_path / "f.faiss").stat().st_size > written
    one, other = exact.nearest(queries, 10), grown.nearest(queries, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(one.rows.tolist(), other.rows.tolist(), strict=True)]
    assert np.mean(shared) > 8 and all(row % 3 for rows in other.rows.tolist() for row in rows)
    for q in range(20):
        assert other.similarity[q].tolist() == pytest.approx(
            (exact.take(other.rows[q].numpy()) @ queries[q]).tolist(), abs=1e-5
        )
    assert type(open_bank(parts, alive, tmp_path / "g.faiss")) is VectorBank
    with pytest.raises(ConfigError, match="1,000 rows"):
        open_bank([coded(rows[:9], "int8")], alive[:9], tmp_path / "g.faiss", "faiss")


@pytest.mark.parametrize("patches", [False, True])
def test_an_image_finds_itself_and_the_order_is_the_stated_one(
    photos: Path, tmp_path: Path, patches: bool
) -> None:
    encoder = small_encoder()
    made = index(encoder, photos, tmp_path / "i", patches=patches, stored="float32", progress=False)
    found = search(made, photos / "03.png", encoder=encoder, count=13)
    assert found.answers[0].key == "03.png" and found.answers[0].score == pytest.approx(1, abs=1e-4)
    assert len(found.answers) == 13 and len(found.answers[0].matches) == 12
    for match in found.answers[0].matches:
        assert match.query == match.answer
    features = {}
    for i in range(13):
        pixels = made.about.transform.image(made.source.read(i), 8)[None]
        features[made.source.key(i)] = encoder.features(encoder.normalise(pixels))
    asked = features["03.png"]
    for answer in found.answers:
        given = features[answer.key]
        cosine = float(F.cosine_similarity(asked.cls, given.cls))
        local = float(mutual_match_score(*(F.normalize(f.patches[0], dim=-1) for f in (asked, given))))
        assert answer.score == pytest.approx((1 - LOCAL_WEIGHT) * cosine + LOCAL_WEIGHT * local, abs=1e-4)
    assert [a.score for a in found.answers] == sorted((a.score for a in found.answers), reverse=True)
    plain = search(made, photos / "03.png", encoder=encoder, rerank=False, count=3).answers
    assert plain[0].key == "03.png" and plain[0].matches == ()
    both = search(made, [photos / "03.png", photos / "05.png"], encoder=encoder, count=2, rerank=False)
    mean = F.normalize(sum(F.normalize(features[k].cls, dim=1) for k in ("03.png", "05.png")), dim=1)  # type: ignore[arg-type]
    scores = {key: float(F.normalize(f.cls, dim=1) @ mean.T) for key, f in features.items()}
    assert [a.key for a in both.answers] == sorted(scores, key=lambda k: -scores[k])[:2]


def test_a_patch_that_stands_elsewhere_in_another_image_is_found_there(tmp_path: Path) -> None:
    """A model whose patches are their pixels: a logo pasted at another place of the grid has the same embedding there."""
    encoder = pixel_encoder(8)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (8, 32, 32, 3)).astype(np.uint8)
    logo = rng.integers(0, 255, (8, 8, 3)).astype(np.uint8)
    images[:] = images.mean((1, 2), keepdims=True).mean(0, keepdims=True)
    images[:, 16:24, 16:24] = rng.integers(0, 255, (8, 8, 8, 3))
    images[2, 8:16, 24:32] = logo
    images[6, 24:32, 0:8] = logo
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number}.png")
    made = index(encoder, folder, tmp_path / "i", patches=True, stored="float32", progress=False)
    for found in (
        search(made, folder / "2.png", patch=(1, 3), encoder=encoder, count=2),
        search(made, folder / "2.png", box=(25, 9, 31, 15), encoder=encoder, count=2),
    ):
        assert [a.key for a in found.answers] == ["2.png", "6.png"]
        assert found.answers[1].matches[0].answer == (0.0, 0.75, 0.25, 1.0)
        assert found.answers[1].matches[0].query == (0.75, 0.25, 1.0, 0.5)


def test_boxes_choose_the_patches_whose_centres_they_hold() -> None:
    encoder, image = small_encoder(), picture(64, 32)
    from glocal.models.preprocessing import FeatureTransform

    transform = FeatureTransform(resize="squash").resolve(
        encoder
    )  # 4 x 4 patches, of 8 x 16 pixels of this image
    whole = query_box(encoder, transform, image, (0, 0, 32, 64)).chosen
    assert whole is not None and whole.tolist() == list(range(16))
    some = query_box(encoder, transform, image, (0, 0, 15, 30)).chosen
    assert some is not None and some.tolist() == [0, 1, 4, 5]
    tiny = query_box(encoder, transform, image, (17, 33, 18, 34)).chosen
    assert tiny is not None and tiny.tolist() == [10]
    one = query_patch(encoder, transform, image, 3, 2)
    assert one.chosen is not None and one.chosen.tolist() == [14] and one.box == (0.5, 0.75, 0.75, 1.0)
    with pytest.raises(ConfigError, match="inside the image of 32x64"):
        query_box(encoder, transform, image, (0, 0, 64, 32))
    with pytest.raises(ConfigError, match="rows 0 to 3"):
        query_patch(encoder, transform, image, 4, 0)


def test_copies_are_looked_for_by_parts_and_turned() -> None:
    views = copies_of(picture(60, 80))
    assert len(views) == 18 and views[0].size == (80, 60) and views[1].size == (60, 45)
    assert np.array_equal(np.asarray(views[1]), np.asarray(views[0])[:45, :60])


def test_a_changed_collection_keeps_the_index(photos: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    (photos / "broken.png").write_bytes(b"no picture")
    before = index(encoder, photos, tmp_path / "i", progress=False)
    assert len(before) == 13 and list(before.about.unreadable) == ["broken.png"]
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "i" / "segments").rglob("*")}
    (photos / "00.png").unlink()
    picture(48, 48, seed=77).save(photos / "01.png")
    picture(48, 48, seed=78).save(photos / "99.png")
    source = open_source(photos)
    read: list[str] = []
    original = type(source).read

    def counted(self, i, at_least=None):  # type: ignore[no-untyped-def]
        read.append(self.key(i))
        return original(self, i, at_least)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(source), "read", counted)
        after = index(encoder, photos, tmp_path / "i", progress=False)
        assert sorted(read) == ["01.png", "99.png"]
        read.clear()
        index(encoder, photos, tmp_path / "i", progress=False)
        assert read == []
    assert len(after) == 13 and all(p.stat().st_mtime_ns == t for p, t in kept.items())
    anew = index(encoder, photos, tmp_path / "anew", progress=False)
    for name in ("01.png", "99.png", "05.png"):
        one, other = (search(i, photos / name, encoder=encoder, count=13) for i in (after, anew))
        assert [(a.key, round(a.score, 4)) for a in one.answers] == [
            (a.key, round(a.score, 4)) for a in other.answers
        ]
        assert one.answers[0].key == name
    picture(48, 48, seed=0).save(photos / "00.png")
    assert len(index(encoder, photos, tmp_path / "i", progress=False)) == 14


def test_an_update_that_was_interrupted_leaves_the_old_index(photos: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    index(encoder, photos, tmp_path / "i", progress=False)
    old = (tmp_path / "i" / "index.json").read_bytes()
    picture(48, 48, seed=78).save(photos / "99.png")
    index(encoder, photos, tmp_path / "i", progress=False)
    (tmp_path / "i" / "index.json").write_bytes(old)  # killed between the table and this
    assert len(Index(tmp_path / "i")) == 13
    assert len(index(encoder, photos, tmp_path / "i", progress=False)) == 14


def test_the_page_is_one_file_and_names_stay_text(photos: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    made = index(encoder, photos, tmp_path / "i", progress=False)
    found = search(made, photos / HOSTILE, encoder=encoder, count=3)
    text = search_page(made, found, [HOSTILE])
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;_script&gt; &amp; &#x27;x&#x27;.png" in text
    assert text.count("data:image/webp") == 1 + 2 * 3 and "http" not in text
    (photos / HOSTILE).unlink()
    assert "not readable" in search_page(made, found, [HOSTILE])


def test_what_does_not_fit_is_said(photos: Path, tmp_path: Path) -> None:
    encoder = small_encoder()
    made = index(encoder, photos, tmp_path / "i", progress=False)
    with pytest.raises(ConfigError, match="patches=true"):
        search(made, photos / "00.png", patch=(0, 0), encoder=encoder)
    with pytest.raises(ConfigError, match="one image"):
        search(made, [photos / "00.png"] * 2, patch=(0, 0), encoder=encoder)
    with pytest.raises(ModelError, match="another model"):
        search(made, photos / "00.png", encoder=small_encoder(seed=1))
    with pytest.raises(ConfigError, match="other fingerprint"):
        index(small_encoder(seed=1), photos, tmp_path / "i", progress=False)
    with pytest.raises(ConfigError, match="something else"):
        index(encoder, photos, photos, progress=False)
    with pytest.raises(DataError, match="holds no index"):
        search(photos, photos / "00.png", encoder=encoder)
    with pytest.raises(DataError, match="Nothing to look for"):
        search(made, [], encoder=encoder)
    gone = index(encoder, coloured(4, 2), tmp_path / "j", progress=False)
    with pytest.raises(ConfigError, match="can't be opened"):
        search(gone, photos / "00.png", encoder=encoder)


def test_the_commands(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = small_encoder()
    monkeypatch.setattr("glocal.lookup.index.load_on", lambda *arguments: encoder)
    runner = CliRunner()
    place = str(tmp_path / "i")
    made = runner.invoke(app, ["index", "model", f"data={photos}", f"out={place}", "patches=true"])
    assert made.exit_code == 0 and "13 images in" in made.output, made.output
    image = str(photos / "03.png")
    out = tmp_path / "found.json"
    done = runner.invoke(app, ["search", place, image, f"out={out}", "count=2"])
    assert done.exit_code == 0 and "03.png" in done.output, done.output
    assert json.loads(out.read_text())["answers"][0]["key"] == "03.png"
    page = runner.invoke(app, ["search", place, image, "box=0,0,20,20", f"out={tmp_path / 'found.html'}"])
    assert page.exit_code == 0 and (tmp_path / "found.html").read_text().startswith("<!doctype html>"), (
        page.output
    )
    for words, message in (
        ([image, "box=1,2"], "give 4 numbers"),
        ([image, "patch=a,b"], "for example patch=3,7"),
        (["nothing.jpg"], "no file"),
        ([], "Nothing to look for"),
        ([image, "cout=3"], "Did you mean 'count'"),
    ):
        refused = runner.invoke(app, ["search", place, *words])
        assert isinstance(refused.exception, glocal.GlocalError) and message in str(refused.exception)

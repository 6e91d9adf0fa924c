"""Label propagation against a slow loop over patches, reading, and the protocol on synthetic and real videos."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dense_fakes import COLOURS, QUIET, colour_encoder
from narrowing import present
from PIL import Image

from glocal.errors import ConfigError, DataError, ModelError
from glocal.evaluation.objects import label_propagation
from glocal.evaluation.objects.davis import Davis, frame_size, overlay, palette
from glocal.evaluation.objects.davis_data import DavisVideos, read_label_map
from glocal.evaluation.objects.davis_metrics import score_dataset, score_sequence
from glocal.evaluation.objects.label_propagation import Propagation, Source, follow, propagate_labels, sharpen
from glocal.models.encoder import Encoder


def slow_propagation(target: torch.Tensor, sources: list[Source], settings: Propagation) -> np.ndarray:
    """The definition, patch by patch."""
    rows, columns, _ = target.shape
    result = np.zeros((rows, columns, sources[0].labels.shape[-1]))
    for r in range(rows):
        for c in range(columns):
            found, labels = [], []
            for features, soft in sources:
                for i in range(rows):
                    for j in range(columns):
                        if abs(i - r) <= settings.radius and abs(j - c) <= settings.radius:
                            cosine = float(target[r, c].double() @ features[i, j].double())
                            found.append(np.exp(cosine / settings.temperature))
                            labels.append(soft[i, j].double().numpy())
            weights = np.array(found)
            border = np.sort(weights)[::-1][min(settings.best, len(weights)) - 1]
            weights[weights < border * (1 - 1e-6)] = 0
            result[r, c] = weights @ np.array(labels) / weights.sum()
    return result


def random_sources(count: int, rows: int, columns: int, seed: int = 0) -> list[Source]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.nn.functional.normalize(
        torch.randn(count, rows, columns, 8, generator=generator), dim=-1
    )
    labels = torch.rand(count, rows, columns, 3, generator=generator)
    return [Source(f, soft) for f, soft in zip(features, labels, strict=True)]


@pytest.mark.parametrize("radius", [0, 1, 2, 12])
@pytest.mark.parametrize("elements", [1, 500, 10**7])
def test_propagation_equals_the_slow_loop(
    radius: int, elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_propagation, "BLOCK_ELEMENTS", elements)
    *sources, last = random_sources(4, 5, 7)
    settings = Propagation(radius=radius, best=3)
    found = propagate_labels(last.features, sources, settings)
    assert np.allclose(found.numpy(), slow_propagation(last.features, sources, settings), atol=1e-5)


def test_ties_stay_as_in_the_reference() -> None:
    *sources, last = random_sources(3, 4, 4)
    flat = torch.zeros_like(last.features)
    flat[..., 0] = 1
    sources = [Source(flat, source.labels) for source in sources]
    settings = Propagation(radius=1, best=2)
    found = propagate_labels(flat, sources, settings)
    assert np.allclose(found.numpy(), slow_propagation(flat, sources, settings), atol=1e-5)
    corner = torch.stack([source.labels[:2, :2] for source in sources]).mean((0, 1, 2))
    assert torch.allclose(found[0, 0], corner, atol=1e-5)


def test_sources_are_the_first_frame_and_the_last_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []

    def spy(target: torch.Tensor, sources: list[Source], settings: Propagation) -> torch.Tensor:
        seen.append([float(source.labels[0, 0, 0]) for source in sources])
        return torch.full((2, 2, 1), float(len(seen)))

    monkeypatch.setattr(label_propagation, "propagate_labels", spy)
    list(follow(iter(torch.randn(6, 2, 2, 4)), torch.zeros(2, 2, 1), Propagation(previous=2)))
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 2, 3], [0, 3, 4]]


def test_sharpening_stretches_each_object() -> None:
    labels = torch.zeros(2, 4, 3)
    labels[..., 0] = 0.9
    labels[0, 0] = torch.tensor([0.7, 0.3, 0.0])  # weak evidence, but the best there is for object 1
    found = sharpen(labels, 2)
    assert found.shape == (4, 8) and found[0, 0] == 1 and found[3, 7] == 0 and not (found == 2).any()


def test_frame_sizes() -> None:
    assert frame_size(854, 480, 480, 16) == (832, 480)
    assert frame_size(480, 854, 480, 8) == (480, 832)
    assert frame_size(854, 480, 480, 14) == (854, 476)
    assert frame_size(960, 480, 480, 16) == (960, 480)
    assert frame_size(100, 100, 64, 16) == (64, 64)


def write_video(root: Path, frames: int = 6, name: str = "moving") -> Path:
    """Two squares of different colours that move one patch a frame over a third; sizes are whole patches."""
    base = root / "DAVIS"
    for folder in (f"JPEGImages/480p/{name}", f"Annotations/480p/{name}", "ImageSets/2017"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for frame in range(frames):
        mask = np.zeros((64, 128), np.uint8)
        mask[8:24, 8 * frame : 8 * frame + 24] = 1
        mask[40:56, 64 - 8 * frame : 96 - 8 * frame] = 2
        Image.fromarray(COLOURS[mask]).save(
            base / f"JPEGImages/480p/{name}/{frame:05d}.jpg", quality=100, subsampling=0
        )
        indexed = Image.fromarray(mask)
        indexed.putpalette(palette().tobytes())
        indexed.save(base / f"Annotations/480p/{name}/{frame:05d}.png")
    (base / "ImageSets/2017/val.txt").write_text(f"{name}\n")
    return base


def test_several_objects_are_followed(tmp_path: Path) -> None:
    protocol = Davis(short_side=64, save=str(tmp_path / "saved"))
    result = protocol.run(colour_encoder(), write_video(tmp_path), QUIET)
    assert result.rows[0]["objects"] == 2 and result.rows[0]["frames"] == 4
    assert result.numbers["J_mean"] > 85 and result.numbers["F_mean"] > 85
    assert result.numbers["J&F"] == pytest.approx((result.numbers["J_mean"] + result.numbers["F_mean"]) / 2)
    assert protocol.run(colour_encoder(), tmp_path / "DAVIS", QUIET).numbers == result.numbers
    saved = [
        read_label_map(file.read_bytes(), file.name) for file in sorted((tmp_path / "saved/moving").iterdir())
    ]
    assert len(saved) == 6 and set(np.unique(saved[3])) == {0, 1, 2}
    with Image.open(tmp_path / "saved/moving.gif") as animation:
        assert animation.size == (64, 32) and getattr(animation, "n_frames", 1) == 6


def test_in_bfloat16_the_error_of_its_frames_is_told(tmp_path: Path) -> None:
    exact = colour_encoder()
    folder = write_video(tmp_path)
    result = Davis(short_side=64).run(replace(exact, precision="bfloat16"), folder, QUIET)
    assert any("bfloat16, from float32" in note for note in result.notes)
    assert result.numbers["J&F"] == pytest.approx(
        Davis(short_side=64).run(exact, folder, QUIET).numbers["J&F"], abs=2
    )
    videos = DavisVideos(folder)
    assert videos.read(5).tobytes() == videos.read_frame(videos.frames("moving")[5]).tobytes()


def test_finished_sequences_are_kept_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path, name="second")
    base, encoder, protocol = write_video(tmp_path, name="first"), colour_encoder(), Davis(short_side=64)
    (base / "ImageSets/2017/val.txt").write_text("first\nsecond\n")
    plain = protocol.run(encoder, base, QUIET)
    work, predict = replace(QUIET, cache=tmp_path / "cache"), Davis.predict
    asked: list[str] = []

    def interrupted(
        self: Davis, encoder: Encoder, videos: DavisVideos, sequence: str, first_mask: np.ndarray
    ) -> Iterator[np.ndarray]:
        asked.append(sequence)
        if asked == ["first", "second"]:
            raise KeyboardInterrupt
        return predict(self, encoder, videos, sequence, first_mask)

    monkeypatch.setattr(Davis, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        protocol.run(encoder, base, work)
    resumed = protocol.run(encoder, base, work)
    assert asked == ["first", "second", "second"]
    assert resumed.numbers == plain.numbers and resumed.rows == plain.rows
    protocol.model_copy(update={"radius": 3}).run(encoder, base, work)
    assert asked[3:] == ["first", "second"]  # other settings: nothing to read


def test_a_tar_reads_like_its_folder(tmp_path: Path) -> None:
    base = write_video(tmp_path / "tree")
    (tmp_path / "packed").mkdir()
    with tarfile.open(tmp_path / "packed/davis.tar", "w") as tar:
        tar.add(base, "DAVIS")
    folder, packed = DavisVideos(tmp_path / "tree"), DavisVideos(tmp_path / "packed")
    assert folder.sequences == packed.sequences == ["moving"] and folder.fingerprint() == packed.fingerprint()
    for first, second in zip(folder.read_masks("moving"), packed.read_masks("moving"), strict=True):
        assert np.array_equal(first, second)
    assert folder.read_frame(folder.frames("moving")[1]) == packed.read_frame(packed.frames("moving")[1])


def test_bad_input(tmp_path: Path) -> None:
    base = write_video(tmp_path)
    with pytest.raises(ModelError, match="patch tokens"):
        Davis(short_side=64).run(colour_encoder(patches=False), base, QUIET)
    with pytest.raises(DataError, match="path"):
        Davis().run(colour_encoder(), {}, QUIET)
    with pytest.raises(DataError, match="no sequence swan"):
        Davis(sequences=["swan"]).run(colour_encoder(), base, QUIET)
    with pytest.raises(ConfigError, match="best"):
        Davis(best=0).run(colour_encoder(), base, QUIET)
    with pytest.raises(DataError, match="holds no"):
        DavisVideos(tmp_path / "DAVIS/ImageSets")
    first = base / "Annotations/480p/moving/00000.png"
    Image.fromarray(np.ones((32, 64), np.uint8)).save(first)
    with pytest.raises(DataError, match="64x32"):
        Davis(short_side=64).run(colour_encoder(), base, QUIET)
    Image.fromarray(np.zeros((64, 128), np.uint8)).save(first)
    with pytest.raises(DataError, match="no object"):
        Davis(short_side=64).run(colour_encoder(), base, QUIET)
    first.unlink()
    with pytest.raises(DataError, match="no mask"):
        Davis(short_side=64).run(colour_encoder(), base, QUIET)


def test_palette_and_overlay() -> None:
    assert palette()[[0, 1, 2, 3, 4, 8]].tolist() == [
        [0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [64, 0, 0],
    ]  # fmt: skip
    frame = np.full((2, 2, 3), 100, np.uint8)
    drawn = overlay(frame, np.array([[0, 1], [0, 0]], np.uint8))
    assert drawn[0, 0].tolist() == [100, 100, 100] and drawn[0, 1].tolist() == [114, 50, 50]


def label_maps_of(tar: Path, sequence: str) -> list[np.ndarray]:
    """The label maps of one sequence that somebody else's method left in a tar."""
    with tarfile.open(tar) as archive:
        names = sorted(
            n for n in archive.getnames() if n.endswith(".png") and Path(n).parent.name == sequence
        )
        return [read_label_map(present(archive.extractfile(name)).read(), name) for name in names]


def test_official_numbers_are_reproduced(real_data: Path) -> None:
    folder = real_data / "davis_mini"
    expected = json.loads((folder / "osvos_expected.json").read_text())
    videos = DavisVideos(folder)
    assert sorted(videos.sequences) == ["blackswan", "car-shadow", "drift-straight", "libby"]
    scores = []
    for name in videos.sequences:
        score = score_sequence(
            name, videos.read_masks(name), label_maps_of(folder / "osvos_predictions.tar", name)
        )
        assert np.abs(score.region[0] - expected[name]["J_per_frame"]).max() < 1e-5
        assert np.abs(score.boundary[0] - expected[name]["F_per_frame"]).max() < 1e-5
        own = score_dataset([score])
        for key in ("J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"):
            assert own[key] == pytest.approx(expected[name][key], abs=1e-5)
        scores.append(score)
    overall = score_dataset(scores)
    assert overall["J_mean"] == pytest.approx(expected["_mean"]["J_mean"], abs=1e-5)
    assert overall["F_mean"] == pytest.approx(expected["_mean"]["F_mean"], abs=1e-5)

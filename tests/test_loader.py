"""Batches: their order, their seeds, and what they don't depend on."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from random_boxes import draw_geometry

from glocal.data import ImageSource
from glocal.errors import ConfigError, DataError, TrainingError, UnreadableImageError
from glocal.views.groups import ViewGroup
from glocal.views.loader import LoadedBatch, ViewDataset, make_loader
from glocal.views.randomness import hash_seed
from glocal.views.render import crop_and_resize
from glocal.views.sampling import EpochSampler, shuffled

GROUPS = {
    "global": ViewGroup(count=2, size=(16, 24), area=(0.4, 1.0)),
    "local": ViewGroup(count=3, size=8, area=(0.1, 0.4), strong=(), strong_coin="image"),
}


class Pictures(ImageSource):
    """Random pictures of various sizes; those listed in `broken` can't be decoded."""

    name = "pictures"

    def __init__(self, length: int, broken: tuple[int, ...] = (), same_size: bool = False) -> None:
        self.length, self.broken, self.same_size = length, broken, same_size

    def __len__(self) -> int:
        return self.length

    def key(self, index: int) -> str:
        return f"picture-{index}"

    def array(self, index: int) -> np.ndarray:
        generator = np.random.default_rng(index)
        height, width = (30, 40) if self.same_size else generator.integers(9, 50, 2)
        return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def read(self, index: int, at_least: int | None = None) -> Image.Image:
        if index in self.broken:
            raise UnreadableImageError(f"{self.key(index)} is broken")
        return Image.fromarray(self.array(index))

    def fingerprint(self) -> str:
        return f"{self.length:016x}"


def _batches(source: Pictures, **options: object) -> list[LoadedBatch]:
    settings = {"batch_size": 4, "seed": 3, "workers": 0, "total_steps": 6} | options
    return list(make_loader(source, GROUPS, **settings))  # type: ignore[arg-type]


def _tensors(batch: LoadedBatch) -> dict[str, torch.Tensor]:
    views = batch.views
    found = {"seed": views.seed, "index": views.index, "source_size": views.source_size}
    for name, group in views.groups.items():
        found |= {f"{name}.{part}": getattr(group, part) for part in ("pixels", "box", "flip", "strong")}
    return found


def _assert_equal(left: list[LoadedBatch], right: list[LoadedBatch]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.unreadable == b.unreadable
        for name, tensor in _tensors(a).items():
            assert torch.equal(tensor, _tensors(b)[name]), name


def test_a_batch_holds_the_rendered_views_of_its_images() -> None:
    source = Pictures(10)
    for batch in _batches(source):
        views = batch.views
        assert len(views) == 4 and list(views.groups) == list(GROUPS)
        for row in range(4):
            picture = source.array(int(views.index[row]))
            assert views.source_size[row].tolist() == list(picture.shape[:2])
            expected = draw_geometry(int(views.seed[row]), GROUPS, *picture.shape[:2])
            for name, group in GROUPS.items():
                got, want = views.groups[name], expected[name]
                assert got.box[row].tolist() == want.box.tolist() and got.box.dtype == torch.float32
                assert (
                    got.flip[row].tolist() == want.flip.tolist()
                    and got.strong[row].tolist() == want.strong.tolist()
                )
                for view in range(group.count):
                    box, flip = want.box[view].tolist(), bool(want.flip[view])
                    wanted = crop_and_resize(torch.from_numpy(picture), box, group.height_width, flip)
                    assert torch.equal(got.pixels[row, view], wanted)


def test_workers_change_nothing() -> None:
    source = Pictures(13, broken=(2, 3, 9))
    _assert_equal(_batches(source), _batches(source, workers=2))


@pytest.mark.parametrize("start", [1, 3, 5])
def test_a_resumed_run_sees_the_same_batches(start: int) -> None:
    source = Pictures(11, broken=(4,))
    _assert_equal(_batches(source, start_step=start), _batches(source)[start:])


@pytest.mark.parametrize("shared", ["image", "batch"])
def test_two_processes_share_out_the_batch_of_one(shared: str) -> None:
    source = Pictures(11)
    one = _batches(source, shared=shared)
    parts = [_batches(source, rank=rank, world_size=2, shared=shared) for rank in range(2)]
    for whole, first, second in zip(one, *parts, strict=True):
        for name, tensor in _tensors(whole).items():
            assert torch.equal(tensor, torch.cat([_tensors(first)[name], _tensors(second)[name]])), name


def test_shared_crops_are_equal_within_a_batch_and_differ_between_batches() -> None:
    batches = _batches(Pictures(12, same_size=True), shared="batch")
    for batch in batches:
        assert len(batch.views.seed.unique()) == 1
        for group in batch.views.groups.values():
            for tensor in (group.box, group.flip, group.strong):
                assert (tensor == tensor[:1]).all()
    assert len({tuple(batch.views.groups["local"].box[0].flatten().tolist()) for batch in batches}) == len(
        batches
    )
    per_image = _batches(Pictures(12, same_size=True))[0].views
    assert len(per_image.seed.unique()) == 4


def test_seeds_are_those_of_image_and_epoch() -> None:
    sampler = EpochSampler(length=7, batch_size=3, seed=5, total_steps=10)
    for step in range(10):
        key = sampler.at(step)
        assert key.seeds.tolist() == [hash_seed(5, step // 2, int(index)) for index in key.indices]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**63 - 1))
def test_shuffled_is_a_permutation(length: int, seed: int) -> None:
    order = shuffled(np.arange(length), length, seed)
    assert sorted(order.tolist()) == list(range(length))
    some = np.arange(0, length, 3)
    assert np.array_equal(shuffled(some, length, seed), order[some])


@pytest.mark.parametrize("length", [6, 64, 1000])
def test_every_image_is_equally_likely_everywhere(length: int) -> None:
    orders = np.stack([shuffled(np.arange(length), length, seed) for seed in range(1500)])
    at_start = np.bincount(orders[:, 0], minlength=length)
    expected = 1500 / length
    assert ((at_start - expected) ** 2 / expected).sum() < length - 1 + 5 * (2 * length) ** 0.5
    # Neighbours in one epoch must not be neighbours in another, nor in the source.
    steps = np.diff(orders, axis=1) % length
    assert abs((steps == 1).mean() - 1 / (length - 1)) < 5 * (1 / length / steps.size) ** 0.5


def test_an_epoch_visits_every_image_at_most_once_and_epochs_differ() -> None:
    keys = list(EpochSampler(length=50, batch_size=8, seed=0, total_steps=12))
    first, second = (np.concatenate([key.indices for key in keys[start : start + 6]]) for start in (0, 6))
    assert len(set(first.tolist())) == len(set(second.tolist())) == 48
    assert first.tolist() != second.tolist()
    assert len(EpochSampler(length=50, batch_size=8, seed=0, total_steps=12, start_step=5)) == 7


def test_unreadable_images_are_replaced_by_the_next_and_reported() -> None:
    broken = (0, 1, 6)
    clean, patched = _batches(Pictures(7)), _batches(Pictures(7, broken))
    reported: set[str] = set()
    for whole, mended in zip(clean, patched, strict=True):
        replaced = {0: 2, 1: 2, 6: 2}
        assert mended.views.index.tolist() == [replaced.get(i, i) for i in whole.views.index.tolist()]
        assert torch.equal(mended.views.seed, whole.views.seed)
        reported |= {key for key, _ in mended.unreadable}
        assert all(reason == f"{key} is broken" for key, reason in mended.unreadable)
    assert reported == {"picture-0", "picture-1", "picture-6"}


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_an_error_that_says_so(workers: int) -> None:
    with pytest.raises(DataError, match=r"^6 images in a row of pictures .* picture-\d is broken") as caught:
        _batches(Pictures(6, broken=tuple(range(6))), workers=workers)
    assert "worker process" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_workers_end_with_the_loop_that_left_early() -> None:
    batches = iter(make_loader(Pictures(9), GROUPS, batch_size=4, seed=0, workers=2, total_steps=50))
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    assert not multiprocessing.active_children()


def test_workers_survive_a_signal_to_the_group_but_not_the_end_of_their_parent(tmp_path: Path) -> None:
    """A process that leaves by an uncaught error while a loader lives must exit."""
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing, os, signal, sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from test_loader import GROUPS, Pictures, make_loader\n"
        "batches = iter(make_loader(Pictures(9), GROUPS, batch_size=4, seed=0, workers=2, total_steps=60))\n"
        "next(batches)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "os.system(f'kill -TERM -- -{os.getpgid(0)}')\n"
        "for _ in range(40):\n"
        "    next(batches)\n"
        "raise ValueError(f'{len(multiprocessing.active_children())} workers still there')\n"
    )
    run = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        check=False,
    )
    assert run.returncode == 1 and run.stderr.endswith("ValueError: 2 workers still there\n"), run.stderr


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    for workers in (0, 1):
        _batches(Pictures(5), workers=workers, total_steps=2)
    assert torch.equal(before, torch.get_rng_state())


def test_sizes_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TrainingError, match="batch_size=8 is larger than the data set \\(5 images\\)"):
        _batches(Pictures(5), batch_size=8)
    with pytest.raises(ConfigError, match="can't be split over 3 processes"):
        _batches(Pictures(5), batch_size=4, world_size=3)
    usage = shutil.disk_usage("/")._replace(free=20_000)
    monkeypatch.setattr("glocal.views.loader.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("glocal.views.loader._SHARED_MEMORY", Path("/"))
    with pytest.raises(TrainingError, match=r"need 0 MB of shared memory .* set speed.workers to 0"):
        _batches(Pictures(5), workers=2)


def test_dataset_and_batches_pickle() -> None:
    dataset = pickle.loads(pickle.dumps(ViewDataset(Pictures(9), GROUPS)))
    key = EpochSampler(length=9, batch_size=4, seed=3, total_steps=1).at(0)
    batch = dataset[key]
    assert isinstance(batch, LoadedBatch)
    _assert_equal([pickle.loads(pickle.dumps(batch))], _batches(Pictures(9), total_steps=1))

"""Mugs: what its memories cost, bad input, and the recipes."""

from __future__ import annotations

import pytest
import torch
from conftest import small_config
from mugs_fakes import COMMON, GROUPS, INSTANCE, LOCAL_GROUP, build, run, views_of
from narrowing import of_kind

from glocal.errors import ConfigError, TrainingError
from glocal.objectives import ImageLevelConfig, InstanceConfig, LocalGroupConfig
from glocal.objectives.by_contrast.gathered_memory import GatheredMemory
from glocal.objectives.by_contrast.instance import Instance
from glocal.objectives.by_contrast.local_group import LocalGroup
from glocal.objectives.by_contrast.relation_block import ImageToken
from glocal.recipes import configure
from glocal.schedules import Progress, Schedule, value_at
from glocal.training.network import build_distillation

# ------------------------------------------------------------------------------------------- cost and bad input


@pytest.mark.parametrize("dim", [384, 768, 1024])
def test_memories_and_queues_cost_at_most_a_third_of_the_references_three_copies(dim: int) -> None:
    reference = 2 * 3 * 65536 * dim * 4
    with torch.device("meta"):
        terms = [config.build(dim, GROUPS) for config in (InstanceConfig(), LocalGroupConfig())]
    ours = sum(b.numel() * b.element_size() for term in terms for b in term.buffers())
    assert reference == {384: 603_979_776, 768: 1_207_959_552, 1024: 1_610_612_736}[dim]
    assert ours <= reference / 3


def test_a_queue_smaller_than_a_step_is_refused_with_its_size() -> None:
    model = build(instance=InstanceConfig(**COMMON | {"queue": 7}))
    run(model, views_of(4, seed=11))
    with pytest.raises(TrainingError, match="8 rows into a queue or memory of 7"):
        model.finish_step()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "objectives.instance.queue=127",
            "objectives.instance.queue=127 is smaller than the 128 keys of one step",
        ),
        ("objectives.local_group.memory=63", "objectives.local_group.memory=63 is smaller than the 64 rows"),
    ],
)
def test_a_memory_smaller_than_a_step_is_refused_before_anything_starts(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        configure(
            "mugs", data="DATA", out="RUN", preset="small", overrides=["training.batch_size=64", override]
        )


def test_more_neighbours_than_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="neighbours is 21, more than the memory's 20"):
        build(group=LOCAL_GROUP.model_copy(update={"neighbours": 21}))


def test_double_advance_without_noise_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs fill_random"):
        build(group=LOCAL_GROUP.model_copy(update={"double_advance": True}))


@pytest.mark.parametrize("wanted", [ImageToken(tokens="all"), ImageToken(norm="before", tokens="class")])
def test_what_stands_for_an_image_with_the_class_token_needs_one(wanted: ImageToken) -> None:
    backbone = small_config().backbone.model_copy(update={"pooling": "class_attention"})
    term = LOCAL_GROUP.model_copy(update={"query": wanted})
    with pytest.raises(ConfigError, match=r"query\.tokens=patches"):
        build_distillation(small_config(views=GROUPS, backbone=backbone, objectives={"group": term}))
    model = build_distillation(
        small_config(views=GROUPS, backbone=backbone, objectives={"group": LOCAL_GROUP})
    )
    assert run(model, views_of(2, seed=12))[0].isfinite()


def test_without_local_crops_all_weight_is_on_the_large_pairs() -> None:
    groups = {name: group for name, group in GROUPS.items() if name != "local"}
    model = build(groups, instance=INSTANCE.model_copy(update={"fill_random": True}), group=LOCAL_GROUP)
    loss, _ = run(model, views_of(3, seed=13, groups=groups))
    assert loss.isfinite()
    pairs = of_kind(Instance, model.objectives["instance"]).pairs
    assert len(pairs) == 4 and sum(weight for *_, weight in pairs) == pytest.approx(1.0)


def test_no_weak_image_leaves_the_students_memory_as_it_was() -> None:
    model = build(group=LOCAL_GROUP)
    views = views_of(3, seed=14)
    views.groups["global"].strong.fill_(True)
    run(model, views)
    model.finish_step()
    objective = of_kind(LocalGroup, model.objectives["group"])
    assert (objective.memory("student").filled, objective.memory("teacher").filled) == (0, 3)
    assert run(model, views_of(3, seed=15))[0].isfinite()


def test_a_step_writes_nothing_before_it_is_finished() -> None:
    memory = GatheredMemory(4, 2, storage="fp32")
    memory.gather(torch.ones(1, 1, 2), torch.tensor([3]))
    assert memory.filled == 0
    memory.finish_step()
    memory.finish_step()
    assert (memory.filled, memory.images().tolist(), memory.step) == (1, [3], 1)


# ------------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("preset", ["imagenet", "cifar", "small"])
def test_mugs_recipe_has_three_terms_and_crops_of_the_teachers_own(preset: str) -> None:
    config = configure("mugs", data="DATA", out="unused", preset=preset)
    assert list(config.active_objectives()) == ["instance", "local_group", "group"]
    views = config.views
    assert (views["teacher"].seen_by, views["teacher"].strong) == ("teacher", None)
    assert views["global"].strong_coin == "image" and views["global"].strong is not None
    assert ("local" in views) == (preset != "cifar")
    if "local" in views:
        assert (views["local"].strong_coin, views["local"].strong_probability) == ("view", 0.5)
    left = configure(
        "mugs", data="DATA", out="unused", preset=preset, overrides=["objectives.local_group.weight=0"]
    )
    assert list(left.active_objectives()) == ["instance", "group"]


@pytest.mark.parametrize(
    ("preset", "peak", "batch", "decay"),
    [
        ("s100", 1.6e-3, 512, 0.2),
        ("s300", 3.2e-3, 1024, 0.1),
        ("s800", 3.2e-3, 1024, 0.1),
        ("b400", 3.15e-3, 1008, 0.1),
        ("l250", 3.75e-3, 640, 0.08),
    ],
)
def test_reference_presets_are_the_published_table(
    preset: str, peak: float, batch: int, decay: float
) -> None:
    config = configure("mugs-reference", data="DATA", out="unused", preset=preset)
    assert config.optimiser.learning_rate * config.training.batch_size / 256 == pytest.approx(peak)
    assert (config.training.batch_size, of_kind(Schedule, config.optimiser.weight_decay).end) == (
        batch,
        decay,
    )
    assert (config.optimiser.patch_embed_factor, config.views["local"].count) == (0.2, 10)
    term = of_kind(LocalGroupConfig, config.objectives["local_group"])
    assert (term.double_advance, term.neighbours, term.memory, term.queue) == (True, 8, 65536, 65536)
    clip = config.optimiser.clip
    assert clip is not None
    assert [value_at(clip, Progress(e, 250, 1)) for e in (0, 100, 101)] == pytest.approx(
        [3.0, 3.0, 0.3 if preset == "l250" else 3.0]
    )
    # 22 pairs of 24, of which the two large ones weigh ten times a small one each.
    pairs = of_kind(Instance, config.objectives["instance"].build(384, config.views)).pairs
    weights = sorted({round(weight, 6) for *_, weight in pairs})
    assert len(pairs) == 22 and weights == [0.025, 0.25]


def test_a_teacher_temperature_warms_up_over_the_published_epochs() -> None:
    config = configure("mugs-reference", data="DATA", out="unused", preset="s300")
    schedule = of_kind(Schedule, of_kind(ImageLevelConfig, config.objectives["group"]).teacher_temperature)
    assert [round(schedule.at(Progress(e, 300, 1)), 3) for e in (0, 15, 29, 299)] == [0.04, 0.056, 0.07, 0.07]

"""Mugs' terms against slow NumPy versions, and over one and two processes."""

from __future__ import annotations

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_HEAD
from hypothesis import given, settings
from hypothesis import strategies as st
from mugs_fakes import GROUPS, INSTANCE, LOCAL_GROUP, STUDENT_VIEWS, array, build, run, unit, views_of
from narrowing import of_kind, present
from torch.multiprocessing.spawn import spawn

from glocal.models.backbone import BackboneConfig
from glocal.models.blocks import Block
from glocal.models.features import Features
from glocal.objectives import ImageLevelConfig, InstanceConfig
from glocal.objectives.base import Role
from glocal.objectives.by_contrast.instance import Instance
from glocal.objectives.by_contrast.local_group import LocalGroup, LocalGroupHeads, neighbour_purity
from glocal.objectives.by_contrast.queue_contrast import ContrastiveHead, ContrastiveHeadConfig
from glocal.objectives.by_contrast.queue_info_nce import Queue, info_nce
from glocal.objectives.by_contrast.relation_block import ImageToken, RelationBlock
from glocal.objectives.view_pairs import Pairs
from glocal.training.network import Network


def slow_info_nce(x: np.ndarray, k: np.ndarray, negatives: np.ndarray, temperature: float) -> float:
    """One pair: the positive is class 0 of a plain softmax."""
    logits = np.array([x @ k, *(x @ q for q in negatives)]) / temperature
    return float(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[0])


def pair_weights(skip: bool = False) -> dict[tuple[int, int], float]:
    """Half to pairs of large views, half to pairs of small ones."""
    pairs = [(s, t) for s in range(5) for t in range(2) if not (skip and s == t)]
    large = sum(s < 2 for s, _ in pairs)
    return {(s, t): 0.5 / (large if s < 2 else len(pairs) - large) for s, t in pairs}


# ------------------------------------------------------------------------------------------------------- InfoNCE


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 700), st.integers(1, 6), st.floats(0.05, 1.0), st.booleans(), st.integers(0, 2**31))
def test_streamed_info_nce_equals_the_plain_one(
    negatives: int, students: int, temperature: float, exclude: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, k, q = (F.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (students, 3, negatives))
    image, own = (
        torch.randint(4, (negatives,), generator=generator),
        torch.randint(4, (students,), generator=generator),
    )
    weight = torch.rand(9, generator=generator)
    pairs = Pairs(torch.randint(students, (9,), generator=generator), torch.arange(9) % 3, weight)
    x.requires_grad_()
    loss = info_nce(x, k, Queue(q, image), pairs, temperature, own if exclude else None)
    (gradient,) = torch.autograd.grad(3.0 * loss, x)
    expected = sum(
        w * slow_info_nce(array(x[s]), array(k[t]), array(q[image != own[s]] if exclude else q), temperature)
        for s, t, w in zip(pairs.student.tolist(), pairs.teacher.tolist(), pairs.weight.tolist(), strict=True)
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)

    logits = (x @ q.T).double() / temperature
    if exclude:
        logits = logits.masked_fill(own[:, None] == image, -torch.inf)
    positive = (x[pairs.student] * k[pairs.teacher]).double().sum(1) / temperature
    plain = torch.cat([positive[:, None], logits[pairs.student]], dim=1).log_softmax(dim=1)[:, 0]
    (wanted,) = torch.autograd.grad(-3.0 * (pairs.weight * plain).sum(), x)
    torch.testing.assert_close(gradient, wanted.float(), rtol=1e-4, atol=1e-5)


def test_queue_of_bfloat16_under_autocast_stays_close() -> None:
    x, k, q = (
        F.normalize(torch.randn(n, 16, generator=torch.Generator().manual_seed(n)), dim=1)
        for n in (4, 5, 300)
    )
    pairs, none = Pairs(torch.arange(4), torch.arange(4), torch.full((4,), 0.25)), torch.full((300,), -1)
    exact = info_nce(x, k, Queue(q, none), pairs, 0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = info_nce(x, k, Queue(q.bfloat16(), none), pairs, 0.2)
    torch.testing.assert_close(rough, exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("reference", [False, True])
def test_instance_loss_equals_a_loop_over_images_and_pairs(reference: bool) -> None:
    choices = {"fill_random": reference, "skip_same_number": reference, "exclude_own": not reference}
    term = INSTANCE.model_copy(update=choices)
    model = build(instance=term)
    run(model, views_of(4, seed=1))
    model.finish_step()
    views = views_of(3, seed=2, first=2)  # Images 2 and 3 have keys of their own in the queue.
    loss, _ = run(model, views)
    student = model.student.features(views, GROUPS, "student")
    teacher = model.teacher.features(views, GROUPS, "teacher")
    queue = of_kind(Instance, model.objectives["instance"]).queue
    rows, image = array(queue.rows()), queue.images().numpy()
    assert len(rows) == (40 if reference else 8)
    total = 0.0
    for i in range(3):
        negatives = rows if reference else rows[image != views.index[i].item()]
        for (s, t), weight in pair_weights(skip=reference).items():
            name, number = STUDENT_VIEWS[s]
            x = array(model.student.heads["instance"](student[name].cls[i, number]))
            k = array(
                of_kind(ContrastiveHead, model.teacher.heads["instance"]).projection(
                    teacher["teacher"].cls[i, t]
                )
            )
            total += weight * slow_info_nce(unit(x), unit(k), negatives, 0.2)
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


def test_first_step_of_an_empty_queue_is_zero_and_harmless() -> None:
    model = build(instance=INSTANCE)
    loss, _ = run(model, views_of(2, seed=3))
    loss.backward()
    assert loss.item() == 0.0
    assert all(p.grad is None or not p.grad.any() for p in model.student.parameters())


def test_a_full_queue_of_noise_starts_near_the_logarithm_of_its_size() -> None:
    """For a teacher that agrees with nobody yet, log(K + 1) is what telling K + 1 keys apart costs by guessing."""
    head = ContrastiveHeadConfig(hidden=24, out_dim=256, predictor_hidden=24)
    loss, _ = run(
        build(instance=InstanceConfig(head=head, queue=2000, fill_random=True)), views_of(4, seed=4)
    )
    assert loss.item() == pytest.approx(np.log(2001), rel=0.05)


def test_keys_are_normalised_projections_of_both_teacher_views_image_by_image() -> None:
    model = build(instance=INSTANCE)
    views = views_of(3, seed=5)
    run(model, views)
    model.finish_step()
    cls = model.teacher.features(views, GROUPS, "teacher")["teacher"].cls
    expected = unit(
        array(of_kind(ContrastiveHead, model.teacher.heads["instance"]).projection(cls.flatten(0, 1)))
    )
    queue = of_kind(Instance, model.objectives["instance"]).queue
    np.testing.assert_allclose(queue.rows().numpy(), expected, atol=1e-5)
    assert queue.images().tolist() == [0, 0, 1, 1, 2, 2]


# ------------------------------------------------------------------------------------------------- local group


def slow_mean(features: Features, mean: ImageToken, view: int) -> np.ndarray:
    """A view's token, by image, in plain words: which tokens, before or behind the norm."""
    tokens = array(features.tokens_before_norm[:, view])
    if mean.norm == "after":
        tokens = np.concatenate(
            [array(features.cls[:, view])[:, None], array(features.patches[:, view])], axis=1
        )
    wanted = {"all": slice(None), "patches": slice(1, None), "class": slice(0, 1)}[mean.tokens]
    return np.asarray(tokens[:, wanted].mean(axis=1))


def slow_nearest(query: np.ndarray, rows: np.ndarray, image: np.ndarray, own: int, k: int) -> list[int]:
    similarity = [
        (unit(query) @ unit(row), j) for j, row in enumerate(rows) if own is None or image[j] != own
    ]
    return [j for _, j in sorted(similarity, reverse=True)[:k]]


MEANS = [ImageToken(norm=norm, tokens=t) for norm in ("before", "after") for t in ("patches", "all", "class")]


@pytest.mark.parametrize(("query", "row"), [*zip(MEANS, MEANS, strict=True), (MEANS[1], MEANS[3])])
def test_local_group_loss_equals_a_loop_over_images_views_and_rows(
    query: ImageToken, row: ImageToken
) -> None:
    """The whole path: what is remembered, who is retrieved, what enters the relation block, what comes out."""
    model = build(group=LOCAL_GROUP.model_copy(update={"query": query, "row": row}))
    before = views_of(5, seed=6)
    before.groups["global"].strong[:, 0] = torch.tensor([True, False, False, True, False])
    run(model, before)
    model.finish_step()
    objective = of_kind(LocalGroup, model.objectives["group"])
    memories = {}
    seen: list[tuple[Role, Network, str]] = [
        ("student", model.student, "global"), ("teacher", model.teacher, "teacher"),
    ]  # fmt: skip
    for role, network, name in seen:
        kept = ~before.groups["global"].strong[:, 0].numpy() if role == "student" else np.ones(5, dtype=bool)
        expected = slow_mean(network.features(before, GROUPS, role)[name], row, 0)[kept]
        memory = objective.memory(role)
        np.testing.assert_allclose(memory.rows().numpy(), expected, rtol=1e-5, atol=1e-5)
        assert memory.images().tolist() == np.arange(5)[kept].tolist()
        memories[role] = (array(memory.rows()), memory.images().numpy())

    views = views_of(3, seed=7, first=4)
    loss, _ = run(model, views)

    def embeddings(
        role: Role, network: Network, seen: list[tuple[str, int]]
    ) -> dict[tuple[str, int, int], np.ndarray]:
        features = network.features(views, GROUPS, role)
        heads = of_kind(LocalGroupHeads, network.heads["group"])
        rows, image = memories[role]
        found = {}
        for name, number in seen:
            for i, token in enumerate(slow_mean(features[name], query, number)):
                near = slow_nearest(token, rows, image, int(views.index[i]), 3)
                sequence = torch.tensor(np.stack([token, *rows[near]]), dtype=torch.float32)
                out = network.backbone.norm(heads.relation.block(sequence[None])[:, 0])
                found[name, number, i] = unit(array(heads.contrast(out))[0])
        return found

    predictions = embeddings("student", model.student, STUDENT_VIEWS)
    keys = embeddings("teacher", model.teacher, [("teacher", 0), ("teacher", 1)])
    queue = objective.queue
    total = 0.0
    for i in range(3):
        negatives = array(queue.rows())[queue.images().numpy() != views.index[i].item()]
        for (s, t), weight in pair_weights().items():
            total += weight * slow_info_nce(
                predictions[STUDENT_VIEWS[s] + (i,)], keys["teacher", t, i], negatives, 0.2
            )
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


@pytest.mark.parametrize("ffn", ["mlp", "swiglu"])
def test_relation_block_is_the_whole_block_read_at_its_first_token(ffn: str) -> None:
    config = BackboneConfig(size="micro", layer_scale=0.5, ffn=ffn)
    relation = RelationBlock(config)
    query, rows = torch.randn(6, 64, requires_grad=True), torch.randn(6, 4, 64)
    expected = relation.block(torch.cat([query[:, None], rows], dim=1))[:, 0]
    found = relation(query, rows, torch.ones(6, 4, dtype=torch.bool))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    a, b = (torch.autograd.grad(x.square().sum(), query)[0] for x in (found, expected))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert isinstance(relation.block, Block) and relation.block.drop_path == 0.0


def test_missing_neighbours_are_not_attended_to() -> None:
    relation = RelationBlock(BackboneConfig(size="micro"))
    query, rows = torch.randn(2, 64), torch.randn(2, 5, 64)
    valid = torch.tensor([[True, True, False, False, False], [False] * 5])
    found = relation(query, rows, valid)
    for i, kept in enumerate((2, 0)):
        alone = relation.block(torch.cat([query[i : i + 1], rows[i, :kept]])[None])[0, 0]
        torch.testing.assert_close(found[i], alone, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_the_backbone_through_the_query_only() -> None:
    """Rows are data: the gradient to the patches is that of the query with the rows held."""
    model = build(group=LOCAL_GROUP.model_copy(update={"fill_random": True}))
    loss, _ = run(model, views_of(2, seed=8))
    loss.backward()
    assert present(model.student.backbone.get_parameter("patch_embed.proj.weight").grad).abs().sum() > 0
    assert all(not b.requires_grad for b in model.objectives.buffers())


def test_watched_step_gives_fill_age_similarity_and_label_purity() -> None:
    model = build(group=LOCAL_GROUP)
    for number in range(2):
        run(model, views_of(4, seed=number, first=4 * number))
        model.finish_step()
    _, scalars = run(model, views_of(2, seed=9, first=8), watch=True)
    found = {
        name.removeprefix("group."): value.item()
        for name, value in scalars.items()
        if name.startswith("group.")
    }
    assert found["queue_fill"] == pytest.approx(16 / 40) and found["queue_age"] == pytest.approx(0.5)
    assert found["teacher_memory_fill"] == pytest.approx(8 / 20) and found[
        "teacher_memory_age"
    ] == pytest.approx(0.5)
    assert -1 <= found["student_neighbour_similarity"] <= 1 and 0 < found["student_memory_fill"] < 8 / 20
    neighbours = present(of_kind(LocalGroup, model.objectives["group"]).found)
    assert neighbours.neighbour.shape == (4, 3) and neighbours.valid.all()
    labels = torch.arange(10) % 2
    rows = zip(neighbours.image, neighbours.neighbour, strict=True)
    expected = np.mean([labels[a] == labels[b] for a, row in rows for b in row])
    assert neighbour_purity(neighbours, labels) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------- group


def test_group_loss_equals_a_loop_over_images_and_pairs() -> None:
    model = build(group=ImageLevelConfig(head=SMALL_HEAD, pair_weights="balanced", skip_same_number=True))
    centre = torch.linspace(-0.2, 0.2, 24)
    model.objectives["group"].get_buffer("centre.centre").copy_(centre)
    views = views_of(3, seed=10)
    loss, _ = run(model, views)
    student = model.student.features(views, GROUPS, "student")
    teacher = model.teacher.features(views, GROUPS, "teacher")
    total = 0.0
    for i in range(3):
        for (s, t), weight in pair_weights(skip=True).items():
            name, number = STUDENT_VIEWS[s]
            z_t = (array(model.teacher.heads["group"](teacher["teacher"].cls[i, t])) - array(centre)) / 0.04
            z_s = array(model.student.heads["group"](student[name].cls[i, number])) / 0.1
            p = np.exp(z_t - z_t.max())
            total -= weight * (p / p.sum()) @ (z_s - z_s.max() - np.log(np.exp(z_s - z_s.max()).sum()))
    assert loss.item() == pytest.approx(total / 3, rel=1e-5)


# --------------------------------------------------------------------------------------------------- processes


def three_steps(rank: int, world: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of three steps of 8 images, of which this process has its part, and all state afterwards."""
    model = build(instance=INSTANCE, group=LOCAL_GROUP)
    losses = []
    for number in range(3):
        views = views_of(8, seed=number, first=8 * (number % 2))
        part = 8 // world
        losses.append(run(model, views._rows(slice(rank * part, (rank + 1) * part)))[0].item())
        model.finish_step()
    return losses, {name: value.clone() for name, value in model.objectives.state_dict().items()}


def one_of_two(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    torch.save(three_steps(rank, 2), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_loss_and_the_memories_of_one(tmp_path: Path) -> None:
    """The student's memory gets another number of rows from each process: weak images fall unevenly."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn(one_of_two, args=(port, str(tmp_path)), nprocs=2)
    alone, state = three_steps(0, 1)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    np.testing.assert_allclose(np.mean([losses for losses, _ in parts], axis=0), alone, rtol=1e-5, atol=1e-6)
    assert alone[1] > 0.5
    for _, found in parts:
        assert found.keys() == state.keys()
        for name, value in state.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-5, msg=name)

"""What every term of the loss must do, alone in a small run."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glocal.config import from_yaml, to_yaml
from glocal.conformance.small_runs import GROUPS, PROGRESS, SMALL_HEAD, frozen_model, make_views, small_config
from glocal.conformance.suite import require
from glocal.objectives.base import ObjectiveConfig
from glocal.objectives.by_contrast.projection import ProjectionConfig
from glocal.objectives.by_contrast.queue_contrast import ContrastiveHeadConfig
from glocal.training.config import RunConfig, TeacherConfig, TrainingConfig
from glocal.training.gradients import backward
from glocal.training.network import SelfDistillation, StepInput, build_distillation
from glocal.views.batch import Views

SMALL_HEADS: dict[type, object] = {
    type(head): head
    for head in (
        SMALL_HEAD,
        ProjectionConfig(hidden=24, out_dim=8),
        ContrastiveHeadConfig(hidden=24, out_dim=8, predictor_hidden=24),
    )
}
Results = dict[str, tuple[Tensor, list[Tensor], dict[str, Tensor]]]
"""By name of the term: loss, gradients and the objectives' state."""


def with_small_head(term: ObjectiveConfig) -> ObjectiveConfig:
    """The same settings, with a head that takes no time where it is one of ours."""
    small = SMALL_HEADS.get(type(getattr(term, "head", None)))
    return term if small is None else term.model_copy(update={"head": small})


def configure_alone(term: ObjectiveConfig, **update: object) -> RunConfig:
    """The small run with this term only, and a frozen teacher where it asks for one."""
    if term.build(32, GROUPS).needs_frozen:
        update["teacher"] = TeacherConfig(frozen=frozen_model())
    return small_config(objectives={"term": term}, **update)


def build_alone(term: ObjectiveConfig, **update: object) -> SelfDistillation:
    """Both networks of that run, the teacher moved away from the student."""
    return _apart(build_distillation(configure_alone(term, **update)))


def take_step(model: SelfDistillation, views: Views, watch: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss in the middle of a run, and what is logged."""
    loss, scalars = model(StepInput(views, PROGRESS, watch))
    return loss, scalars


def reaches_every_parameter(term: ObjectiveConfig) -> None:
    """The loss is a finite number with a finite gradient for every parameter of the student's, none for the teacher's."""
    model = build_alone(term)
    loss, _ = take_step(model, make_views(4))
    require(
        loss.shape == () and bool(loss.isfinite()),
        f"the loss is {loss.detach()}, of shape {tuple(loss.shape)}",
    )
    loss.backward()
    without = [
        n for n, p in model.student.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ]
    require(not without, f"no finite gradient: {', '.join(without)}")
    moved = [n for n, p in model.teacher.named_parameters() if p.grad is not None or p.requires_grad]
    require(not moved, f"a gradient reaches the teacher's {', '.join(moved)}; detach its outputs")


def watching_changes_nothing(term: ObjectiveConfig) -> None:
    """Being watched adds finite scalars and leaves the loss as it was, bit for bit."""
    views = make_views(4)
    quiet, _ = take_step(build_alone(term), views)
    watched, scalars = take_step(build_alone(term), views, watch=True)
    require(torch.equal(quiet, watched), f"the loss is {quiet.detach()}, and {watched.detach()} when watched")
    wrong = [name for name, value in scalars.items() if not value.isfinite().all()]
    require(not wrong, f"scalars that are no finite numbers: {', '.join(wrong)}")


def state_comes_back(term: ObjectiveConfig) -> None:
    """All state between steps is in buffers: put into another copy, the next step is equal bit for bit."""
    model, other = build_alone(term), build_alone(term)
    take_step(model, make_views(4, seed=1))
    model.finish_step()
    other.objectives.load_state_dict(copy.deepcopy(model.objectives.state_dict()))
    views = make_views(4, seed=2)
    ours, theirs = take_step(model, views)[0], take_step(other, views)[0]
    require(
        torch.equal(ours, theirs),
        f"the next loss is {ours.detach()}, and {theirs.detach()} after restoring the state",
    )


def order_of_images_is_free(term: ObjectiveConfig) -> None:
    """The order of the images in a batch doesn't matter."""
    views = make_views(5, seed=4)
    loss, _ = take_step(build_alone(term), views)
    permuted, _ = take_step(build_alone(term), views._rows(torch.tensor([3, 0, 4, 1, 2])))
    torch.testing.assert_close(loss, permuted, rtol=1e-5, atol=1e-6)


def bfloat16_is_close(term: ObjectiveConfig) -> None:
    """Under bfloat16 the loss is within 3 % of float32's, and the state stays finite."""
    views = make_views(4, seed=5)
    exact, _ = take_step(build_alone(term), views)
    model = build_alone(term)
    model.autocast = torch.bfloat16
    rough, _ = take_step(model, views)
    model.finish_step()
    wrong = [
        n for n, b in model.objectives.named_buffers() if b.is_floating_point() and not b.isfinite().all()
    ]
    require(not wrong, f"buffers that are no finite numbers: {', '.join(wrong)}")
    torch.testing.assert_close(exact, rough, rtol=3e-2, atol=3e-2)


def pulls_at_the_backbone(term: ObjectiveConfig) -> None:
    """The gradient reaches the backbone's features, not the term's own head alone."""
    model = build_alone(term)
    take_step(model, make_views(4, seed=6))
    model.finish_step()
    _, scalars = take_step(model, make_views(4, seed=7), watch=True)
    require(bool(scalars["term.feature_gradient"] > 0), "the features get no gradient")


def micro_batches_are_the_same_step(term: ObjectiveConfig) -> None:
    """Three micro-batches give the loss, gradients and state of one batch, over two steps."""
    whole, parts = build_alone(term), build_alone(term)
    for seed in (3, 4):
        step = StepInput(make_views(6, seed=seed), PROGRESS, watch=False)
        losses = backward(whole, step)["loss"], backward(parts, step, micro_batches=3)["loss"]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)
        expected, seen = _gradients(whole), _gradients(parts)
        require(expected.keys() == seen.keys(), "other parameters have gradients")
        largest = max(float(g.abs().max()) for g in expected.values())
        for name, gradient in expected.items():
            torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-5 * largest)
        whole.finish_step()
        parts.finish_step()
        for a, b in zip(whole.objectives.buffers(), parts.objectives.buffers(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def two_processes_equal_one(term: ObjectiveConfig) -> None:
    """Two processes that share the images give one process's loss, gradients and state."""
    with tempfile.TemporaryDirectory() as folder:
        compare_with_one_process("term", term, in_two_processes({"term": term}, Path(folder)))


CHECKS: Sequence[Callable[[ObjectiveConfig], None]] = (
    reaches_every_parameter,
    watching_changes_nothing,
    state_comes_back,
    order_of_images_is_free,
    bfloat16_is_close,
    pulls_at_the_backbone,
    micro_batches_are_the_same_step,
    two_processes_equal_one,
)


# ------------------------------------------------------------------------------------------------------ two processes


def in_two_processes(terms: Mapping[str, ObjectiveConfig], folder: Path) -> Results:
    """What the first of two processes has after two steps, for all terms, in one start of processes."""
    # As text: classes of a person's own are found again by their words, not by pickle.
    eight = TrainingConfig(batch_size=8)
    written = {name: to_yaml(configure_alone(term, training=eight)) for name, term in terms.items()}
    torch.multiprocessing.spawn(_work, (folder, written), nprocs=2)  # type: ignore[no-untyped-call,attr-defined]
    results: Results = torch.load(folder / "results.pt")
    return results


def compare_with_one_process(name: str, term: ObjectiveConfig, seen: Results) -> None:
    """Hold what two processes gave for a term against this one."""
    loss, gradients, state = _two_steps(configure_alone(term), 0, 1)
    torch.testing.assert_close(seen[name][0], loss, rtol=1e-5, atol=1e-6)
    for ours, expected in zip(seen[name][1], gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-6)
    for key, value in state.items():
        torch.testing.assert_close(seen[name][2][key], value, rtol=1e-4, atol=1e-6)


def _work(rank: int, folder: Path, written: Mapping[str, str]) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    try:
        results = {name: _two_steps(from_yaml(RunConfig, text), rank, 2) for name, text in written.items()}
        if rank == 0:
            torch.save(results, folder / "results.pt")
    finally:
        torch.distributed.destroy_process_group()


def _two_steps(config: RunConfig, rank: int, world: int) -> tuple[Tensor, list[Tensor], dict[str, Any]]:
    """Loss, gradients and state of a second step, this process's images being its share of eight."""
    model = _apart(build_distillation(config))
    loss = torch.zeros(())
    for seed in (1, 2):
        model.zero_grad()
        loss, _ = take_step(model, make_views(8, seed=seed).split(world)[rank])
        loss.backward()
        model.finish_step()
    loss = loss.detach()
    gradients = [p.grad for p in model.student.parameters() if p.grad is not None]
    if world > 1:
        for tensor in (loss, *gradients):
            torch.distributed.all_reduce(tensor)
            tensor /= world
    return loss, gradients, model.objectives.state_dict()


def _apart(model: SelfDistillation) -> SelfDistillation:
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def _gradients(model: SelfDistillation) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.student.named_parameters() if p.grad is not None}

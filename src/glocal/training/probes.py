"""What is measured with labels while a run goes on: the k-NN probe, protocols asked for, the purity of neighbours."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from glocal.data import ImageSource, hold_out, open_source
from glocal.errors import ConfigError
from glocal.evaluation.base import ProtocolConfig, protocol_class
from glocal.evaluation.classification.knn import KnnProbe
from glocal.extraction.work import Work
from glocal.models.backbone import Backbone
from glocal.objectives.by_contrast.local_group import LocalGroup, neighbour_purity
from glocal.training.config import RunConfig
from glocal.training.network import SelfDistillation
from glocal.training.weights import as_encoder

Probe = Callable[[Backbone], dict[str, float]]
"""From the teacher's backbone to named figures."""


def training_probes(config: RunConfig, source: ImageSource) -> list[Probe]:
    """Everything that is measured at a period: the k-NN probe where labels are, and the protocols asked for.

    They draw from no generator of the run's: a run with probes and one without give the same weights.

    Raises:
        ConfigError: for labels that can't serve, or an unknown protocol; before training starts.
    """
    probes = [_knn_probe(config, source)] if config.probe.enabled else []
    for name, data in config.probe.evaluations.items():
        probes.append(_protocol_probe(config, protocol_class(name), data))
    return [_leaving_generators(probe) for probe in probes if probe is not None]


def _knn_probe(config: RunConfig, source: ImageSource) -> Probe | None:
    """The k-NN probe of this run, or None where no labels are.

    Without `probe.data`, a held-out share of the run's own labelled images is classified by neighbours among the rest.
    The student has seen these images, never their labels: the figure compares points of a run, it is no test score.
    """
    settings = config.probe
    labelled = open_source(settings.data) if settings.data is not None else source
    if labelled.labels is not None and (labelled.labels < 0).any():
        labelled = labelled.subset(np.flatnonzero(labelled.labels >= 0))
    held_out = min(settings.queries, max(1, len(labelled) // 5), len(labelled))
    rest, queries = hold_out(labelled, held_out, seed=config.seed)
    bank, _ = hold_out(rest, max(0, len(rest) - settings.bank), seed=config.seed)
    if bank.labels is None or len(np.unique(bank.labels)) < 2:
        if settings.data is not None:
            raise ConfigError(
                f"probe.data={settings.data} has no labels, or one class only once {held_out} of "
                f"{len(labelled)} images are held out; give a folder with a folder for every class."
            )
        return None
    probe = KnnProbe(bank, queries, ks=(settings.neighbours,), workers=0)

    def run(backbone: Backbone) -> dict[str, float]:
        numbers = probe.run(as_encoder(config, backbone))
        return {name: value for name, value in numbers.items() if name.endswith("top1")}

    return run


def _protocol_probe(config: RunConfig, protocol: type[ProtocolConfig], data: str) -> Probe:
    """A protocol at its quick settings, as `evaluate all` runs it; figures as the command prints them."""

    def run(backbone: Backbone) -> dict[str, float]:
        encoder = as_encoder(config, backbone)
        result = protocol.quick(encoder).run(encoder, data, Work(progress=False))
        return {f"{protocol.protocol}.{key}": value for key, value in result.numbers.items()}

    return run


def _leaving_generators(probe: Probe) -> Probe:
    def run(backbone: Backbone) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):
            return probe(backbone)

    return run


def label_purity(model: SelfDistillation, source: ImageSource) -> dict[str, float]:
    """Share of the neighbours that a memory gave whose label is the asking image's, where there are labels. A monitor:
    no loss sees a label. Empty before anything was retrieved.
    """
    retrieved = {
        name: t.found
        for name, t in model.terms().items()
        if isinstance(t, LocalGroup) and t.found is not None
    }
    if source.labels is None:
        return {}
    labels = torch.from_numpy(np.asarray(source.labels))
    return {
        f"{name}.neighbour_purity": neighbour_purity(neighbours, labels)
        for name, neighbours in retrieved.items()
        if bool(neighbours.valid.any())
    }

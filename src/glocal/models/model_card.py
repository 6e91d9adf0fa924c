"""The README.md beside an exported model: what it is, where it comes from, what was compared and measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from glocal.models.encoder import Encoder
from glocal.models.export_check import Difference

_USE = {
    "transformers": (
        "import transformers\n\n"
        'processor = transformers.AutoImageProcessor.from_pretrained("{folder}")\n'
        'model = transformers.AutoModel.from_pretrained("{folder}")\n'
        'tokens = model(**processor(images, return_tensors="pt")).last_hidden_state  # class token first'
    ),
    "timm": 'import timm\n\nmodel = timm.create_model("local-dir:{folder}", pretrained=True)',
    "onnx": (
        "import onnxruntime\n\n"
        'session = onnxruntime.InferenceSession("{folder}/model.onnx")\n'
        'cls, patches = session.run(None, {{"pixels": pixels}})  # normalised float32 (batch, 3, height, width)'
    ),
    "program": (
        "import torch\n\n"
        'program = torch.export.load("{folder}/model.pt2").module()\n'
        "cls, patches = program(pixels)  # normalised float32 (batch, 3, height, width)"
    ),
}


def write_card(
    encoder: Encoder, form: str, folder: Path, file: Path, differences: Sequence[Difference]
) -> None:
    """Write the card of a model that will lie in `folder`, with a front matter that model hubs read. States nothing that
    is not known.
    """
    licence = encoder.provenance.get("licence")
    front = ["---", f"license: {licence}" if licence else "# license: not known; name yours", "tags:", "- image-feature-extraction",
             "- glocal", *(["library_name: transformers"] if form == "transformers" else []), "---"]  # fmt: skip
    sections = [
        "\n".join(front),
        f"# {encoder.name}",
        "A vision backbone: one embedding of the image, and one of every patch.",
        _table(_facts(encoder)),
        "## Use\n\n```python\n" + _USE[form].format(folder=folder) + "\n```",
        "## Where the weights come from\n\n" + _table(_origin(encoder)),
        "## What was compared at export\n\nThe largest difference of any number between this export and the model, as a share of "
        "the largest embedding:\n\n" + _differences(differences),
    ]  # fmt: skip
    measured = _measured(encoder.provenance.get("measured"))
    if measured:
        sections.append("## What was measured in training\n\n" + measured)
    file.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def write_preprocessing(encoder: Encoder, folder: Path) -> None:
    """`preprocessing.json`, for forms that have no place of their own for it."""
    settings = {
        "mean": encoder.mean,
        "std": encoder.std,
        "image_size": encoder.image_size,
        "patch_size": encoder.patch_size,
    }
    (folder / "preprocessing.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _facts(encoder: Encoder) -> dict[str, Any]:
    parameters = sum(p.numel() for p in encoder.backbone.parameters())
    return {
        "width of an embedding": encoder.embed_dim,
        "patch": f"{encoder.patch_size} pixels",
        "side of an image": f"{encoder.image_size} pixels; any multiple of {encoder.patch_size}",
        "parameters": f"{parameters:,}",
        "mean of the pixels (0 to 1)": ", ".join(f"{v:.4g}" for v in encoder.mean),
        "deviation": ", ".join(f"{v:.4g}" for v in encoder.std),
        "fingerprint of the weights": encoder.fingerprint(),
    }


def _origin(encoder: Encoder) -> dict[str, Any]:
    known = {
        key: value
        for key, value in encoder.provenance.items()
        if key not in ("licence", "measured") and value
    }
    terms = known.get("terms")
    if isinstance(terms, Mapping):
        known["terms"] = ", ".join(f"{name} ({kind})" for name, kind in terms.items())
    licence = (
        encoder.provenance.get("licence") or "not known: ask whoever made the starting weights and the images"
    )
    return known | {"licence": licence}


def _measured(figures: object) -> str:
    return _table(figures) if isinstance(figures, Mapping) and figures else ""


def _differences(differences: Sequence[Difference]) -> str:
    rows = [f"| {d.size[0]}x{d.size[1]} | {d.images} | {d.value:.1e} |" for d in differences]
    return "\n".join(["| pixels | images | difference |", "|---|---|---|", *rows])


def _table(rows: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])

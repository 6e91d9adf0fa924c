"""Reading weight files without ever running what they contain."""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glocal.errors import ModelError

_NETWORKS = ("teacher", "model_ema", "ema", "student", "state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "backbone.")


@dataclass(frozen=True)
class RawState:
    """Tensors of one network as its file names them, without wrappers' prefixes."""

    state: dict[str, Tensor]
    network: str = ""
    safetensors: bool = False


def read_state(path: Path) -> RawState:
    """Read .safetensors, or .pt/.pth/.bin/.ckpt with `weights_only`; of several networks the teacher is taken.

    Raises:
        ModelError: when the file is unreadable, needs arbitrary pickled objects, or holds no tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return RawState(_without_prefixes(load_file(path)), safetensors=True)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} can't be read as safetensors: {error}.") from error
    return pick_state(read_pickle(path), path)


def read_pickle(path: Path) -> Any:
    """What a .pt/.pth/.bin/.ckpt file holds: tensors, plain values, and containers of these.

    Raises:
        ModelError: when the file is unreadable or needs arbitrary pickled objects.
    """
    try:
        # DINO's own checkpoints keep the command line as a Namespace, which holds plain values only.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path} holds Python objects beside weights, and reading those could run code ({reason}). Open it where "
            "you trust it, save the state dict alone (torch.save(model.state_dict(), ...)), and load that file."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read as a PyTorch checkpoint: {error}.") from error


def pick_state(raw: Any, path: Path) -> RawState:
    """One network's tensors out of what a file holds; of several networks the teacher.

    Raises:
        ModelError: when there are no tensors.
    """
    network, tensors = _pick_network(raw)
    if not tensors:
        raise ModelError(
            f"{path} holds no weights. Expected a state dict, or one under {', '.join(_NETWORKS)}."
        )
    return RawState(_without_prefixes(tensors), network)


def read_folder_state(folder: Path) -> RawState:
    """Read a folder's weights: model.safetensors, sharded safetensors with an index, or pytorch_model.bin.

    Raises:
        ModelError: when there are none.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        merged: dict[str, Tensor] = {}
        for name in sorted(set(read_json(index).get("weight_map", {}).values())):
            merged |= read_state(folder / Path(name).name).state
        return RawState(merged, safetensors=True)
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return read_state(folder / name)
    raise ModelError(f"{folder} has a config.json but no weights (model.safetensors or pytorch_model.bin).")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping.

    Raises:
        ModelError: when it is unreadable or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} can't be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds a {type(content).__name__}, where a mapping of settings is needed.")
    return content


def _pick_network(raw: Any) -> tuple[str, dict[str, Tensor]]:
    """Descend into a checkpoint until a flat mapping of names to tensors; says which entry was taken last."""
    network = ""
    while isinstance(raw, Mapping):
        inner = next((name for name in _NETWORKS if isinstance(raw.get(name), Mapping)), None)
        if inner is None:
            return network, {str(name): value for name, value in raw.items() if isinstance(value, Tensor)}
        network, raw = inner, raw[inner]
    return network, {}


def _without_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop what wrappers put before names; heads beside a `backbone.` keep theirs and so stay apart."""
    plain: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stripped = True
        while stripped:
            stripped = False
            for prefix in _PREFIXES:
                if name.startswith(prefix):
                    name, stripped = name.removeprefix(prefix), True
        plain[name] = tensor
    return plain

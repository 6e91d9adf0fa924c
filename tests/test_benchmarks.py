"""Benchmarks that can't rot: each runs here at a tiny size; the table, its records and its gate; the step they compare with."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import __main__ as bench
from benchmarks import profile_step
from benchmarks.ratios import Ratio, in_a_process, machine, ratio, take_turns
from benchmarks.reference_style import PlainNetwork, PlainStep
from glocal.models.backbone import BackboneConfig
from glocal.models.vit import VisionTransformer

FOLDER = Path(bench.__file__).parent
SHARED = {"__init__", "__main__", "ratios", "reference_style", "profile_step"}
STUDIES = {file.stem for file in FOLDER.glob("*.py")} - SHARED - {f"bench_{name}" for name in bench.NAMES}
"""Hours of training or gigabytes of features, whose results are kept: their modules must import. A study's own small parts
have tests where they are used.
"""


def at_once(code: str) -> float:
    """What `in_a_process` prints last, without the seconds that a process of its own takes to begin."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(code, {})
    # A peak does not grow a second time in one process.
    return float(said.getvalue().split()[-1]) or 1.0


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEVICE", "cpu")


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_studies_import(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


@pytest.mark.parametrize("name", bench.NAMES)
def test_every_benchmark_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"benchmarks.bench_{name}")
    if hasattr(module, "in_a_process"):
        monkeypatch.setattr(module, "in_a_process", at_once)
    threads = torch.get_num_threads()
    found: list[Ratio] = module.ratios("tiny")
    assert found and len({entry.name for entry in found}) == len(found)
    assert all(value > 0 for entry in found for value in entry.values)
    assert torch.get_num_threads() == threads


def test_the_profile_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["profile_step", str(tmp_path), "tiny"])
    monkeypatch.setattr(profile_step, "in_a_process", at_once)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    profile_step.main()
    figures = json.loads((tmp_path / "step.json").read_text())
    assert figures["from_jpegs_images_per_second"] > 0 and figures["machine"] == machine()
    assert "aten::" in (tmp_path / "profile-vit-micro-bf16-batch-2.txt").read_text()


def test_cases_take_turns_after_a_warm_up() -> None:
    order: list[str] = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3 and {name: len(taken) for name, taken in times.items()} == {"a": 2, "b": 2}
    paired = ratio("a / b", {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0, 4.0]}, "a", "b", 1.5)
    assert paired.values == (2.0, 3.0, 1.0) and paired.median == 2.0
    assert paired.to_json() == {"median": 2.0, "low": 1.0, "high": 3.0, "bar": 1.5}
    assert in_a_process("print('said'); print(2.5)") == 2.5


def test_a_ratio_more_than_a_tenth_above_its_last_record_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records, medians = tmp_path / "records.jsonl", {"data": 1.0, "step": 2.0}

    def run(name: str, size: str) -> dict[str, Any] | None:
        value = medians[name]
        return None if math.isnan(value) else {f"{name} ratio": Ratio(name, (value,), 1.5).to_json()}

    monkeypatch.setattr(bench, "run", run)
    words = ["data", "step", f"records={records}"]
    assert bench.main(words) == 0
    said = capsys.readouterr().out
    assert "2.000" in said and "1.50 missed" in said and machine().partition(",")[0] in " ".join(said.split())
    medians["step"] = 2.19
    assert bench.main(words) == 0
    medians["step"] = 2.42
    assert bench.main(words) == 1
    assert "worse: step ratio: 2.420, 11% above the last record" in capsys.readouterr().out
    medians["data"] = math.nan
    assert bench.main(words) == 1 and "failed: data" in capsys.readouterr().out
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [line["ratios"].get("step ratio", {}).get("median") for line in lines] == [2.0, 2.19, 2.42, 2.42]
    assert all(line["machine"] == machine() and line["size"] == "full" and line["date"] for line in lines)
    # Another machine's, or another size's, are no records of this one; the last of each ratio counts.
    assert (
        bench.last_record(records, "another", "full") == bench.last_record(records, machine(), "tiny") == {}
    )
    assert bench.last_record(records, machine(), "full")["data ratio"]["median"] == 1.0


def test_the_published_style_computes_the_same() -> None:
    """Its network with our weights gives our class embedding; its loss is a loop over pairs."""
    torch.manual_seed(0)
    config = BackboneConfig(size="micro", patch_size=16, image_size=224, position_antialias=False)
    ours = VisionTransformer(config).eval()
    plain = PlainNetwork("micro", 12)
    renamed = {"mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", "qkv": "attn.qkv", "proj": "attn.proj"}
    weights = ours.state_dict()
    with torch.no_grad():
        for number, block in enumerate(plain.blocks):
            for name, parameter in block.named_parameters():
                layer, _, kind = name.rpartition(".")
                parameter.copy_(weights[f"blocks.{number}.{renamed.get(layer, layer)}.{kind}"])
        plain.cls_token.copy_(weights["cls_token"])
        plain.positions.copy_(weights["pos_embed"])
        assert isinstance(plain.patch_embed.bias, nn.Parameter)
        plain.patch_embed.weight.copy_(weights["patch_embed.proj.weight"])
        plain.patch_embed.bias.copy_(weights["patch_embed.proj.bias"])
        plain.norm.weight.copy_(weights["norm.weight"])
        plain.norm.bias.copy_(weights["norm.bias"])
        for side in (224, 96):
            pixels = torch.randn(2, 3, side, side)
            torch.testing.assert_close(plain.backbone(pixels), ours(pixels).cls, rtol=1e-4, atol=1e-4)
    step = PlainStep("micro", 12, torch.device("cpu"), autocast=False)
    before = [p.clone() for p in step.teacher.parameters()]
    views = [torch.randn(2, 3, side, side) for side in (224, 224, 96)]
    assert step.step(views) == pytest.approx(math.log(12), rel=0.5)
    assert any(not torch.equal(a, b) for a, b in zip(before, step.teacher.parameters(), strict=True))


@pytest.mark.slow
def test_the_script_for_gpus_runs_dry(tmp_path: Path) -> None:
    environment = os.environ | {"DEVICE": "cpu", "SIZE": "tiny", "OMP_NUM_THREADS": "1"}
    command = [str(FOLDER / "gpu.sh"), str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    files = {file.name: file for file in (tmp_path / "out").iterdir()}
    assert done.returncode == 0, done.stdout + "".join(file.read_text()[-1500:] for file in files.values())
    wanted = {"machine.txt", "tests.txt", "ratios.txt", "profiles.txt", "step.json", "records.jsonl"}
    assert wanted <= set(files) and any(name.startswith("profile-vit") for name in files)

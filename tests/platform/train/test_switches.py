"""Switches of a training that change how it runs, and not what comes out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from trainings import CONFIG, Trainings, losses

from tiny_task import TinyTask


def test_a_profile_shows_the_operators_of_three_steps_and_changes_no_loss(
    train: Trainings, tiny_task: TinyTask
) -> None:
    config = replace(CONFIG, steps=8)
    plain = train(tiny_task, config, run="plain")
    profiled = train(tiny_task, replace(config, profile=True), run="profiled")
    events = json.loads((profiled.folder / "profile" / "trace.json").read_text())["traceEvents"]
    steps = {name for one in events if (name := str(one.get("name"))).startswith("ProfilerStep#")}
    assert len(steps) == 3
    assert any(str(one.get("name")).startswith("aten::") for one in events)
    assert losses(profiled) == losses(plain)
    assert not (plain.folder / "profile").exists()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_to_the_same_losses(train: Trainings, tiny_task: TinyTask) -> None:
    plain = train(tiny_task, CONFIG, run="plain")
    compiled = train(tiny_task, replace(CONFIG, compile=True), run="compiled")
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)

"""A training under a judge, and one that branches off from another's checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from trainings import CONFIG, STEPS, ZERO, Trainings, losses, saved_steps, steps_of

from heliostat.checkpoint.manifest import committed
from heliostat.errors import TrainingFailed
from heliostat.train.config import CheckpointConfig, EvaluationConfig
from heliostat.train.history import read_history
from heliostat.train.judge import Evaluation, JudgedToStop
from tiny_task import TinyTask

EVERY = 4
JUDGED = replace(
    CONFIG,
    zero=ZERO[1],
    evaluation=EvaluationConfig(every=EVERY),
    checkpoint=CheckpointConfig(every=STEPS, keep=9),
)


@dataclass
class Strict:
    """Lets a training go on until it has been evaluated so often."""

    patience: int
    saves: bool = False
    heard: list[Evaluation] = field(default_factory=list)

    def goes_on(self, evaluation: Evaluation) -> bool:
        self.heard.append(evaluation)
        return len(self.heard) < self.patience

    def wants_stop(self) -> bool:
        return False


def test_a_judge_hears_each_evaluation_and_not_one_step_is_done_after_a_stop(
    train: Trainings, trained, tiny_task: TinyTask
) -> None:
    judge = Strict(patience=2)
    with pytest.raises(JudgedToStop, match="stopped at step 8 of 20, and saved"):
        train(tiny_task, JUDGED, workers=2, run="r", judge=judge)
    assert [(one.step, one.steps, one.index) for one in judge.heard] == [(4, 20, 1), (8, 20, 2)]
    folder = train.folder("r", tiny_task)
    assert saved_steps(folder) == [8]
    rows = read_history(folder / "metrics")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    evaluated = {row["step"]: row["eval/loss"] for row in rows if "eval/loss" in row}
    assert evaluated == {one.step: one.metrics["loss"] for one in judge.heard}

    # It may go on later, and ends as if nobody had ever judged it.
    again = train(tiny_task, JUDGED, workers=2, run="r")
    assert losses(again) == losses(trained(replace(CONFIG, zero=ZERO[1]), workers=2))
    assert steps_of(again) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_copy_begins_with_the_weights_of_the_donor_and_its_own_hyperparameters(
    train: Trainings, tiny_task: TinyTask
) -> None:
    donor = train(tiny_task, JUDGED, run="donor", judge=Strict(patience=99, saves=True))
    saved = {m.state.step: place for place, m in committed(donor.folder / "checkpoints")}
    assert sorted(saved) == [4, 8, 12, 16, 20], "a checkpoint of each evaluation"
    other = replace(JUDGED, optimizer=replace(JUDGED.optimizer, lr=3e-3, weight_decay=0.2))
    judge = Strict(patience=99, saves=True)
    child = train(tiny_task, other, run="child", judge=judge, branch_from=saved[8])
    assert steps_of(child) == list(range(9, STEPS + 1))
    # The loss of a step is that of the weights before it: those are the donor's, to the last bit,
    # on the same samples. The next one shows the other update.
    assert losses(child)[0] == losses(donor)[8]
    assert losses(child)[1] != losses(donor)[9]
    rows = {run: [r for r in result.history() if "lr" in r] for run, result in
            (("donor", donor), ("child", child))}  # fmt: skip
    assert rows["child"][0]["lr"] == pytest.approx(rows["donor"][8]["lr"] * 3e-3 / 1e-2)
    assert [one.index for one in judge.heard] == [3, 4, 5]

    # The same hyperparameters would have given the donor's own future.
    twin = train(tiny_task, JUDGED, run="twin", branch_from=saved[8])
    assert losses(twin) == losses(donor)[8:]


@pytest.mark.slow
def test_a_copy_that_is_cut_off_goes_on_from_its_own_checkpoint(
    train: Trainings, tiny_task: TinyTask
) -> None:
    donor = train(tiny_task, JUDGED, run="donor", judge=Strict(patience=99, saves=True))
    saved = {m.state.step: place for place, m in committed(donor.folder / "checkpoints")}
    other = replace(JUDGED, optimizer=replace(JUDGED.optimizer, lr=3e-3))
    with pytest.raises(JudgedToStop):
        train(tiny_task, other, run="cut", judge=Strict(1, saves=True), branch_from=saved[4])
    # The donor's checkpoint is not needed any more.
    saved[4].delete()
    cut = train(tiny_task, other, run="cut", branch_from=saved[4])
    whole = train(tiny_task, other, run="whole", branch_from=saved[8])
    assert steps_of(cut) == list(range(5, STEPS + 1))
    assert losses(cut)[4:] != losses(whole)


@pytest.mark.slow
def test_a_checkpoint_of_other_data_is_refused(train: Trainings, tiny_task: TinyTask) -> None:
    with pytest.raises(JudgedToStop):
        train(tiny_task, JUDGED, run="donor", judge=Strict(1, saves=True))
    ((place, _),) = committed(train.folder("donor", tiny_task) / "checkpoints")
    with pytest.raises(TrainingFailed, match="the training data changed since checkpoint"):
        train(replace(tiny_task, head=60), JUDGED, branch_from=place)

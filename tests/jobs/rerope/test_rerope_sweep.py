"""Sweeps over schemes: what is tried, what is filled in, and that a trial measures what it says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from served_lm import write_checkpoint

from heliostat.cli.sweep import kind_of, read_plan
from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.data.table import TableWriter
from heliostat.errors import ConfigError, DataError
from heliostat.runs.bundle import load_bundle, save_bundle
from heliostat.runs.card import Card
from heliostat.runs.inputs import Input
from heliostat.runs.run import Run
from heliostat.storage import Location
from jobs.corpora.windows import FixedWindowStream
from jobs.pretrained.hf_bundle import open_language_model, read_checkpoint, save_language_model
from jobs.rerope import evaluation
from jobs.rerope.config import SCHEMES, Config, SchemeConfig
from jobs.rerope.evaluation import scores_at_the_end
from jobs.rerope.far_modelling import far_modelling
from jobs.rerope.shapes import build, shape_of, shape_to_json
from jobs.rerope.sweep import open_texts, prepare, read, read_long_text, scheme_of
from models.decoder import DecoderLM
from models.planned_lm import plan_for
from models.positions import SCHEME_NAMES, PositionScheme

ROOT = Path(__file__).resolve().parents[3]
L = 32
CARD = Card(
    title="A model",
    what="Predicts.",
    inputs=[Input("weights", "generated", "drawn at random", "Apache-2.0")],
    metrics={},
    limits="None of use.",
    how_made="By hand.",
    licence="Apache-2.0",
)


@dataclass
class ATrial:
    """What a trial of a sweep is given."""

    run: Run
    bundle: Location
    shared: Mapping[str, object] = field(default_factory=dict)


def config_of(*changes: str) -> Config:
    config = load_config(find_job("rerope"), None, [*changes, "tracker.enabled=false"]).config
    assert isinstance(config, Config)
    return config


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    loaded = load_config(find_job("rerope"), None, ["tracker.enabled=false"])
    with Run.open_or_create(
        Location.of(tmp_path / "runs"),
        "rerope",
        name="trial",
        resolved_yaml=loaded.resolved_yaml,
        digest=loaded.digest,
        seed=0,
        tracker=loaded.config.tracker,
    ) as opened:
        yield opened


@pytest.mark.parametrize(("name", "trials"), [(None, 18), ("long_text", 12)])
def test_every_sweep_of_the_job_is_one_that_can_be_run(name: str | None, trials: int) -> None:
    job = find_job("rerope", ROOT)
    plan = read_plan(job, [f"sweep={name}"] if name else [], ())
    assert plan.trials == trials
    for number in range(trials):
        config = plan.config_of(plan.proposal(number)).config
        assert isinstance(config, Config)
        scheme_of(config.scheme, 64, 8, "none")
    assert not kind_of(job, plan).trains


def test_the_search_over_trainings_reaches_8_l_in_every_trial() -> None:
    job = find_job("rerope", ROOT)
    plan = read_plan(job, ["sweep=inverse_leaky"], ())
    assert plan.trials == 12
    for number in range(12):
        plan.config_of(plan.proposal(number))
    assert kind_of(job, plan).trains


def test_a_training_for_reading_far_is_judged_by_reading_far(tmp_path: Path) -> None:
    config = config_of(f"length={L}", "inverse_leaky.window=8", "inverse_leaky.base_factor=8")
    test = write_texts(tmp_path / "test")
    choice = FixedWindowStream(test, 8 * L + 1, windows=3, seed=0)
    task = far_modelling(config, train=test, choice=choice)
    model = task.model()
    assert isinstance(model, DecoderLM)
    samples = task.eval_data().samples(range(3))
    rope = PositionScheme("rope", log_n="train")
    window = torch.stack([torch.from_numpy(sample["input_ids"]) for sample in samples])
    with torch.no_grad():
        found = task.evaluate(model, task.collate(samples))
        for name, context in (("nonrep_loss_8L", 8 * L), ("nonrep_loss_L", L)):
            losses, _ = scores_at_the_end(model, window, rope, L, length=context, scored=L)
            tally = found[name]
            assert float(tally.total) / tally.count == pytest.approx(float(losses.mean()), abs=1e-5)


def write_texts(folder: Path) -> Location:
    schema = pa.schema([("path", pa.string()), ("tokens", pa.list_(pa.uint8()))])
    generator = np.random.default_rng(0)
    rows = {"path": ["a", "b"], "tokens": [generator.integers(0, 256, 600) for _ in range(2)]}
    with TableWriter(Location.of(folder), schema, {}) as writer:
        writer.write(pa.RecordBatch.from_pydict(rows, schema=schema))
    return Location.of(folder)


def test_the_config_knows_every_scheme_of_inference() -> None:
    assert set(SCHEMES) == set(SCHEME_NAMES) - {"inv_leaky_rerope"}


@pytest.mark.parametrize(
    ("section", "trained_with", "scheme"),
    [
        (SchemeConfig(), "none", PositionScheme("rerope", log_n="post", window=32)),
        (SchemeConfig(window=8, log_n="none"), "none", PositionScheme("rerope", window=8)),
        (SchemeConfig(), "train", PositionScheme("rerope", log_n="train", window=32)),
        (SchemeConfig("rope"), "none", PositionScheme("rope")),
        (SchemeConfig("yarn"), "none", PositionScheme("yarn", interval=8.0)),
        (
            SchemeConfig("self_extend"),
            "none",
            PositionScheme("self_extend", log_n="post", window=32, group=16),
        ),
        (
            SchemeConfig("leaky_rerope"),
            "none",
            PositionScheme("leaky_rerope", log_n="post", window=32, interval=16.0),
        ),
        (SchemeConfig("dca"), "none", PositionScheme("dca", log_n="post")),
    ],
)
def test_what_a_section_leaves_open_is_filled_in(
    section: SchemeConfig, trained_with: str, scheme: PositionScheme
) -> None:
    assert scheme_of(section, 64, 8, trained_with) == scheme


@pytest.mark.parametrize("expansion", [2, 4, 8])
def test_the_leaky_interval_keeps_positions_below_the_trained_length(expansion: int) -> None:
    scheme = scheme_of(SchemeConfig("leaky_rerope"), 64, expansion, "none")
    assert scheme.window is not None
    assert scheme.interval is not None
    assert scheme.window + (expansion * 64 - 1 - scheme.window) / scheme.interval <= 63


@pytest.mark.parametrize(
    ("section", "trained_with", "message"),
    [
        (SchemeConfig("rope", window=8), "none", r"scheme: window \(8\) has no meaning for rope"),
        (SchemeConfig(log_n="train"), "none", "needs a model that was trained with it"),
        (SchemeConfig(log_n="none"), "train", "use 'train'"),
    ],
)
def test_what_means_nothing_is_told_in_a_sentence(
    section: SchemeConfig, trained_with: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        scheme_of(section, 64, 8, trained_with)


def test_logits_formed_in_parts_score_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    shape = shape_of(config_of().model, length=L, base_factor=1.0)
    model = build(shape, torch.Generator().manual_seed(0))
    assert isinstance(model, DecoderLM)
    window = torch.randint(256, (3, 2 * L + 1))
    scheme = PositionScheme("rerope", window=8)
    plan = plan_for(model.config, scheme, train_length=L, length=2 * L)
    with torch.inference_mode():
        logits = model(window[:, :-1], position_plan=plan)
        expected = F.cross_entropy(logits.mT, window[:, 1:], reduction="none")[:, -L:]
        monkeypatch.setattr(evaluation, "MOST_LOGITS", 3 * 256 * 5)
        losses, hits = scores_at_the_end(model, window, scheme, L, length=2 * L, scored=L)
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(hits, (logits.argmax(-1) == window[:, 1:])[:, -L:].float())


def test_a_trial_over_a_bundle_reads_at_the_trained_length_and_eight_times_it(
    run: Run, tmp_path: Path
) -> None:
    config = config_of("evaluation.windows=8", "scheme.window=16", "scheme.log_n=none")
    model = build(shape_of(config.model, length=L, base_factor=1.0), torch.Generator())
    bundle = saved(tmp_path / "bundle", model, log_n="none")
    figures = read(config, ATrial(run, bundle, prepare(config, run).values))
    # An untrained model knows nothing anywhere, and the window changes nothing of L tokens but
    # what lies beyond it.
    for name in ("nonrep_loss_L", "nonrep_loss_8L"):
        assert figures[name] == pytest.approx(np.log(256), abs=0.1)
    assert figures["rise_at_L"] == pytest.approx(0, abs=0.01)
    assert figures["rise_at_L"] != 0
    # The losses of single windows stay, for paired comparisons of trials.
    table = pq.read_table(run.folder.local_path / "stages" / "windows" / "scores.parquet")
    far = [row for row in table.to_pylist() if row["length"] == 8 * L and row["text"] == "natural"]
    assert [row["window"] for row in far] == [0, 1, 2, 3]
    assert figures["nonrep_loss_8L"] == pytest.approx(np.mean([row["loss_nats"] for row in far]))
    # Read with rope, nothing rises.
    plain = replace(config, scheme=SchemeConfig("rope"))
    assert read(plain, ATrial(run, bundle, prepare(config, run).values))["rise_at_L"] == 0


def saved(folder: Path, model: DecoderLM, *, log_n: str) -> Location:
    shape = model.config
    recorded = {
        "name": "plain",
        "train_length": L,
        "rotary_base": shape.rotary_base,
        "layout": "half",
        "head_width": shape.head_width,
        "log_n": log_n,
        "training_scheme": {"name": "rope"},
    }
    place = Location.of(folder)
    save_bundle(
        place,
        weights=model.state_dict(),
        parts={"shape.json": shape_to_json(shape), "positions.json": recorded},
        card=CARD,
        kind="rerope",
        metadata={},
    )
    return place


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Location:
    folder = tmp_path_factory.mktemp("checkpoint")
    place = Location.of(folder / "bundle")
    save_language_model(place, read_checkpoint(write_checkpoint(folder / "hf")), "tiny", CARD, {})
    return place


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, word in enumerate(("fox", "dog", "forest")):
        (folder / f"{number}.txt").write_text(f"the quick {word} and the night " * 60)
    return folder


def test_a_checkpoint_is_read_beyond_its_length_on_the_texts_of_a_folder(
    run: Run, checkpoint: Location, texts: Path
) -> None:
    config = config_of(
        f"long_text.texts={texts}", f"long_text.trained_length={L}", "long_text.windows=3"
    )
    shared = open_texts(config, run).values
    under = {
        name: read_long_text(
            replace(config, scheme=SchemeConfig(name)), ATrial(run, checkpoint, shared)
        )
        for name in SCHEMES
    }
    far = [figures["loss_far"] for figures in under.values()]
    assert all(map(np.isfinite, far))
    assert len({round(loss, 6) for loss in far}) == len(SCHEMES)
    assert all(0 < figures["error_far"] < 1 for figures in under.values())
    for figures in under.values():
        names = ("accuracy_L", "accuracy_far", "accuracy_repeated")
        assert all(0 <= figures[name] <= 1 for name in names)
    # What is scored are the last L tokens of windows of 2 L + 1.
    found = open_language_model(load_bundle(checkpoint))
    window = torch.tensor(found.codec.encode((texts / "0.txt").read_text()))[None, : 2 * L + 1]
    with torch.inference_mode():
        losses, _ = scores_at_the_end(
            found.model, window, PositionScheme("rope"), L, length=2 * L, scored=L
        )
        logits = found.model(window[:, :-1])
    expected = F.cross_entropy(logits[0, -L:], window[0, -L:])
    assert float(losses.mean()) == pytest.approx(float(expected), abs=1e-5)


def test_texts_that_are_too_short_or_not_there_are_named(
    run: Run, checkpoint: Location, texts: Path
) -> None:
    with pytest.raises(ConfigError, match=r"long_text\.texts is null: name a folder"):
        open_texts(config_of(), run)
    with pytest.raises(ConfigError, match=r"long_text.texts is /nowhere: there is no such folder"):
        open_texts(config_of("long_text.texts=/nowhere"), run)
    config = config_of(f"long_text.texts={texts}", "long_text.trained_length=4000")
    trial = ATrial(run, checkpoint, open_texts(config, run).values)
    with pytest.raises(DataError, match="no document of 8001 tokens"):
        read_long_text(config, trial)


@pytest.mark.slow
def test_a_sweep_over_a_checkpoint_ends_with_a_row_for_every_scheme(
    checkpoint: Location, texts: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "heliostat.cli.main", "sweep", "rerope", "sweep=long_text"),
            *(f"sweep.bundle={checkpoint.uri}", f"long_text.texts={texts}"),
            *(f"long_text.trained_length={L}", f"out={tmp_path}", "--run", "long"),
            *("tracker.enabled=false", "resources.workers=1"),
        ],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"next: heliostat serve rerope {checkpoint.uri}\n" in done.stdout + done.stderr
    content = (tmp_path / "long" / "sweep.parquet").read_bytes()
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    assert [row["status"] for row in rows] == ["finished"] * len(SCHEMES)


@pytest.mark.slow
def test_a_search_over_trainings_ends_with_a_row_for_every_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "heliostat.cli.main", "sweep", "rerope"),
            *("sweep=inverse_leaky", f"out={tmp_path}", "--run", "inverse"),
            *("fit.steps=8", "fit.batch=8", "fit.micro_batch=8", "fit.evaluation.every=2"),
            *("model.width=32", "model.layers=1", "model.feed_forward_width=48"),
            *("sweep.asha.grace=1", "evaluation.windows=16", "tracker.enabled=false"),
            "sweep.space.inverse_leaky.window.choice=[8,16]",
        ],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = pq.read_table(tmp_path / "inverse" / "sweep.parquet").to_pylist()
    assert len(rows) == 8
    assert {row["status"] for row in rows} == {"finished", "stopped"}
    best = next(row for row in rows if row["is_best"])
    finished = [row["metrics.nonrep_loss_8L"] for row in rows if row["status"] == "finished"]
    assert best["metrics.nonrep_loss_8L"] == min(finished)
    windows = Path(best["folder"].removeprefix("file://")) / "stages" / "windows"
    assert pq.read_table(windows / "scores.parquet").num_rows == 8 * 3

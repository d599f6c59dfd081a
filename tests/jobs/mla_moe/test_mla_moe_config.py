"""What cannot work is refused in one sentence that names the field, before anything starts."""

from __future__ import annotations

import pytest

from heliostat.config.jobs import find_job
from heliostat.config.load import load_config
from heliostat.errors import ConfigError
from heliostat.train.batch_schedule import ramp_steps, samples_at, samples_in
from jobs.mla_moe.config import Config
from jobs.mla_moe.model_config import decoder_config
from jobs.mla_moe.plan import plan
from models.counting import DEEPSEEK, active_count, cached_numbers, parameter_count

TABLES = ["data.train=/a", "data.test=/b"]


def config_of(size: str | None = None, *changes: str) -> Config:
    config = load_config(find_job("mla_moe"), size, list(changes)).config
    assert isinstance(config, Config)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.experts.groups=3"], r"groups \(3\) must divide routed \(16\)"),
        (
            ["resources.expert_parallel=3", "resources.workers=3", "fit.batch=48"],
            r"resources.expert_parallel is 3, which does not divide model.experts.routed = 16",
        ),
        (["model.experts.per_token=9"], r"per_token \(9\) must not exceed the 8 experts"),
        (
            ["model.experts.groups=16", "model.experts.per_token=2"],
            "gate sigmoid ranks a group by its best two",
        ),
        (["data.targets=is_answer"], "Python sources have no such column: give train and test"),
        (["model.attention.rotary_width=47"], "rotary_width must be even"),
        (["model.attention.value_width=0"], "value_width must be at least 1"),
        (["model.attention.heads=0"], "heads must be at least 1"),
        (["model.experts.capacity_factor=0.05"], "capacity_factor must be null or at least 0.1"),
        (
            ["model.experts.gate=softmax", "balance.gamma=0", "model.experts.normalised=true"],
            "normalised must be false to be written as deepseek_v2",
        ),
        (
            [
                "model.experts.gate=softmax",
                "balance.gamma=0",
                "model.experts.normalised=false",
                "model.attention.heads=3",
            ],
            r"width \(128\) must be a multiple of heads \(3\)",
        ),
        (["export=deepseek_v2"], "export is deepseek_v2, but model.experts.gate is sigmoid"),
        (["model.attention.kind=heads"], "export is auto: .*latent is None.*export=none"),
        (["model.experts.gate=softmax", "export=none"], "balance.gamma is 0.01, but .* softmax"),
        (["fit.precision=fp16", "resources.gpus_per_worker=1"], "fit.precision is fp16"),
        (
            ["resources.expert_parallel=2", "fit.zero.stage=3"],
            "fit.zero.stage is 3 and resources.expert_parallel is 2",
        ),
        (
            ["resources.expert_parallel=2", "resources.workers=1"],
            "expert_parallel is 2, which does not divide workers = 1",
        ),
        (["data.train=/a"], "give both or neither"),
        (["data.length=4096"], "model.max_positions is 2048"),
        (["balance.gamma=-1"], "gamma is -1"),
        (["claim.seeds=[]"], "seeds is empty"),
    ],
)
def test_impossible_settings_are_refused(changes: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config_of(None, *changes)
    assert "\n" not in str(caught.value)


def test_the_laptop_size_is_the_model_of_the_study() -> None:
    decoder = decoder_config(config_of().model)
    assert parameter_count(decoder) == 1_777_280
    assert active_count(decoder) + 2 * 256 * 128 == 818_816
    assert cached_numbers(decoder) == 4 * 112


def test_the_large_sizes_are_the_published_models() -> None:
    h100 = decoder_config(config_of("h100", *TABLES).model)
    assert parameter_count(h100) == 1_704_436_736
    assert active_count(h100) + 2 * 32_000 * 1024 == 336_045_056
    for size in ("v2-lite", "v2"):
        decoder = decoder_config(config_of(size, *TABLES).model)
        assert parameter_count(decoder) == parameter_count(DEEPSEEK[size])
        assert decoder.latent == DEEPSEEK[size].latent


def test_v2_sees_as_many_tokens_as_its_report_says() -> None:
    """DeepSeek-V2, section 3.1.2: 225e9 tokens of ramp, 8.1e12 in all, and the rate's two drops."""
    config = config_of("v2", *TABLES)
    fit, length = config.fit, config.data.length
    assert fit.steps is not None
    assert (samples_at(fit, 1), samples_at(fit, fit.steps)) == (2304, 9216)
    total = samples_in(fit, fit.steps) * length
    assert samples_in(fit, ramp_steps(fit)) * length == pytest.approx(225e9, rel=1e-3)
    assert total == pytest.approx(8.1e12, rel=1e-5)
    for share, milestone in zip((0.6, 0.9), fit.schedule.milestones, strict=True):
        seen = samples_in(fit, int(milestone * fit.steps)) * length
        assert seen == pytest.approx(share * total, rel=1e-3)


@pytest.mark.parametrize("size", ["laptop", "toy", "h100", "v2-lite", "v2"])
def test_every_size_plans_a_training_without_reading_anything(size: str) -> None:
    (planned,) = plan(config_of(None if size == "laptop" else size, *TABLES))
    model = planned.task.meta_model()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == parameter_count(planned.task.decoder)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_the_estimate_divides_experts_by_the_workers_that_share_them() -> None:
    """V2-Lite on 8 GPUs: 28.8 GB of experts each, and 7.2 GB of everything else with ZeRO 1."""
    from heliostat.cluster.dry_pass import count_parameters
    from heliostat.cluster.estimate import _memory

    (planned,) = plan(config_of("v2-lite", *TABLES))
    parameters = count_parameters(planned.task.meta_model())
    assert parameters.shareable == 26 * 64 * 3 * 2048 * 1408
    rows = _memory(planned, parameters, 8, None, None)
    assert [row.stage for row in rows] == [0, 1, 2]
    assert rows[1].state.device / 1e9 == pytest.approx(28.8 + 7.2, abs=0.1)


def test_how_a_model_is_served_does_not_change_what_is_trained() -> None:
    served = ["serve.limits.queue=7", "serve.http.port=9000", "generation.cache_tokens=4096"]
    digests = {load_config(find_job("mla_moe"), "toy", keys).digest for keys in ([], served)}
    assert len(digests) == 1

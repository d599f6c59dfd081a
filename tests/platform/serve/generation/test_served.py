"""Variants of a model: an engine each, made when asked for, the longest unused giving way."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_lm import tiny_lm

from heliostat.errors import ConfigError
from heliostat.serve.errors import ApiError
from heliostat.serve.generation.byte_codec import ByteCodec
from heliostat.serve.generation.config import GenerationConfig
from heliostat.serve.generation.request import Finished, Request
from heliostat.serve.generation.served import NamedModel, ServedLanguageModel
from models.paged_lm import PagedLM

THREAD = ThreadPoolExecutor(1)


def model_of(variants: int) -> tuple[ServedLanguageModel, list[Hashable]]:
    built: list[Hashable] = []

    def build(variant: Hashable) -> PagedLM:
        if variant == "none such":
            raise ValueError("there is no such scheme")
        built.append(variant)
        return tiny_lm()

    named = NamedModel("tiny", ByteCodec(), build, {"layers": 2})
    return ServedLanguageModel(named, GenerationConfig(variants=variants)), built


def test_a_variant_has_one_engine_and_the_longest_unused_gives_way() -> None:
    model, built = model_of(2)
    first = model.engine(THREAD, "a")
    model.engine(THREAD, "b")
    assert model.engine(THREAD, "a") is first
    model.engine(THREAD, "c")
    assert list(model.engines) == ["a", "c"]
    assert built == ["a", "b", "c"]
    with pytest.raises(ValueError, match="no such scheme"):
        model.engine(THREAD, "none such")


def test_an_engine_at_work_does_not_give_way() -> None:
    async def work() -> None:
        model, _ = model_of(1)
        assert model.predict([model.example()]) == ["length"]
        async with model.engine(THREAD, "a").submit(Request((1,), 20)) as events:
            # What a request must keep to is known all the same.
            assert model.limits.longest >= 21
            with pytest.raises(ApiError) as refused:
                model.engine(THREAD, "b")
            assert refused.value.status == 503
            async for event in events:
                assert not isinstance(event, Finished) or event.reason == "length"
        model.engine(THREAD, "b")

    asyncio.run(work())


def test_the_self_test_generates_a_token_with_the_engine_that_will_serve() -> None:
    model, built = model_of(2)
    assert model.predict([model.example()] * 2) == ["length", "length"]
    model.engine(THREAD)
    assert built == [None]
    assert model.about() == {"name": "tiny", "layers": 2}


@pytest.mark.parametrize("key", ["cache_tokens", "sequences", "prefill_chunk", "queue", "variants"])
def test_a_size_below_one_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is 0; expected at least 1"):
        GenerationConfig(**{key: 0})
    assert GenerationConfig(cache_tokens=33).pages(16) == 3

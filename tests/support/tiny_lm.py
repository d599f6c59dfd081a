"""A small language model of bytes with random weights, as the generation engine takes it."""

from __future__ import annotations

import dataclasses

import torch

from models.decoder import DecoderLM
from models.decoder_config import llama_config
from models.paged_lm import PagedLM

CONFIG = dataclasses.replace(
    llama_config(
        vocab_size=256, width=32, layers=2, heads=4, key_value_heads=2, feed_forward_width=48
    ),
    initial_std=0.15,
)


def tiny_decoder(seed: int = 0) -> DecoderLM:
    return DecoderLM(CONFIG, torch.Generator().manual_seed(seed)).requires_grad_(False)


def tiny_lm(pages: int = 64, sequences: int = 8, context: int = 400, seed: int = 0) -> PagedLM:
    return PagedLM(
        tiny_decoder(seed), vocab_size=256, context=context, pages=pages, sequences=sequences
    )


@torch.inference_mode()
def greedy(decoder: DecoderLM, prompt: list[int], count: int) -> tuple[list[int], list[float]]:
    """The most probable continuation and its log-probabilities, with no cache at all."""
    tokens, logprobs = list(prompt), []
    for _ in range(count):
        logits = decoder(torch.tensor([tokens]))[0, -1].log_softmax(0)
        tokens.append(int(logits.argmax()))
        logprobs.append(float(logits.max()))
    return tokens[len(prompt) :], logprobs

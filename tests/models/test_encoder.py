"""The encoder baseline: shares of the masking, loss on masked tokens, pooling, explicit seeds."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.encoder import (
    EncoderClassifier,
    EncoderConfig,
    EncoderLM,
    EncoderPooling,
    mask_tokens,
    masked_token_loss,
)
from models.losses import classification_loss

CONFIG = EncoderConfig(vocab_size=120, width=32, layers=2, heads=4, max_positions=64)


def model(seed: int = 0) -> EncoderLM:
    return EncoderLM(CONFIG, torch.Generator().manual_seed(seed)).eval()


def tokens(rows: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(5, 119, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_masking_chooses_15_percent_and_splits_them_80_10_10() -> None:
    ids = tokens(200, 1000)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, :100] = False
    masked = mask_tokens(
        ids, maskable, mask_id=119, vocab_size=119, generator=torch.Generator().manual_seed(0)
    )
    chosen = masked.targets != -100
    assert not chosen[:, :100].any()
    assert torch.equal(masked.targets[chosen], ids[chosen])
    assert torch.equal(masked.input_ids[~chosen], ids[~chosen])
    assert chosen[:, 100:].double().mean().item() == pytest.approx(0.15, abs=0.003)
    became_mask = masked.input_ids[chosen] == 119
    kept = masked.input_ids[chosen] == ids[chosen]
    assert became_mask.double().mean().item() == pytest.approx(0.8, abs=0.01)
    # A random token is the same as before once in 119 times.
    assert kept.double().mean().item() == pytest.approx(0.1 + 0.1 / 119, abs=0.01)
    assert masked.input_ids[chosen][~became_mask].max() < 119


def test_masking_depends_on_the_generator_alone() -> None:
    ids = tokens(4, 50)

    def masked(seed: int) -> torch.Tensor:
        return mask_tokens(
            ids,
            torch.ones_like(ids),
            mask_id=119,
            vocab_size=119,
            generator=torch.Generator().manual_seed(seed),
        ).input_ids

    assert torch.equal(masked(3), masked(3))
    assert not torch.equal(masked(3), masked(4))


def test_masked_loss_is_the_sum_over_masked_tokens() -> None:
    encoder, ids = model(), tokens(3, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    masked = mask_tokens(
        ids, mask, mask_id=119, vocab_size=119, generator=torch.Generator().manual_seed(0)
    )
    loss = masked_token_loss(encoder, masked, attention_mask=mask)
    logits = encoder(masked.input_ids, attention_mask=mask)
    plain = F.cross_entropy(logits.flatten(0, 1), masked.targets.flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, plain)
    assert loss.targets.item() == (masked.targets != -100).sum().item() > 0


def test_weights_come_from_the_generator_and_leave_the_global_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = model(3).state_dict(), model(3).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[name], second[name]) for name in first)
    table = first["bert.bert.embeddings.word_embeddings.weight"]
    assert table.std().item() == pytest.approx(0.02, rel=0.1)
    # Input and output embedding are one parameter, as in BERT.
    assert torch.equal(table, first["bert.cls.predictions.decoder.weight"])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_classifier_ignores_right_padding(pooling: EncoderPooling) -> None:
    classifier = EncoderClassifier(
        model(), 7, torch.Generator().manual_seed(1), pooling=pooling
    ).eval()
    ids = tokens(3, 10)
    padded = F.pad(ids, (0, 6), value=0)
    mask = F.pad(torch.ones_like(ids), (0, 6))
    torch.testing.assert_close(
        classifier(padded, attention_mask=mask), classifier(ids), atol=1e-5, rtol=1e-5
    )
    loss = classification_loss(classifier(ids), torch.tensor([0, 1, 2]))
    loss.total.backward()
    assert all(p.grad is not None for p in classifier.parameters())

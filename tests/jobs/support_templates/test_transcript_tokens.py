"""Joined tokens of messages are the tokens of the whole transcript, or are not joined at all."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from heliostat.data.prepare import Rejected
from heliostat.data.table import TableWriter
from heliostat.storage import Location
from jobs.corpora.tokenizer import TextCodec, codec_of, train_tokenizer
from jobs.support_templates.case_redaction import REDACTED_SCHEMA
from jobs.support_templates.data.rows import Message
from jobs.support_templates.preparation import TokeniseTranscripts
from jobs.support_templates.transcript import transcript
from jobs.support_templates.transcript_tokens import TranscriptTokeniser, cuts_at_newlines

CORPUS = [
    "<CUSTOMER>: hi, my card doesn't work  \n<ADVOCATE>: I'm sorry!\n\n<SYSTEM>: 12 34",
    "<CUSTOMER>: \n\n <ADVOCATE>: <|endoftext|> paid 100 euros\t to Zoë\r\n<CUSTOMER>: ok",
] * 20

FIELDS = pa.struct([("role", pa.string()), ("text", pa.string()), ("template_id", pa.string())])


def with_pre_tokenizer(pre_tokenizer: pre_tokenizers.PreTokenizer) -> TextCodec:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # GPT-NeoX has such tokens: runs of spaces that are matched before anything else.
    tokenizer.add_tokens(["   ", "  "])
    return codec_of(tokenizer.to_str(), "test")


OURS = train_tokenizer(CORPUS, 400)
NEOX = with_pre_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False))
SMOLLM = with_pre_tokenizer(
    pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
)
WHOLE_LINES = with_pre_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))

texts = st.text(alphabet=st.sampled_from("ab Z0\n\t\r<>|:'s\u00a0\u0301\u0338é☺"), max_size=12)
messages = st.builds(
    lambda role, text: Message(0, role, text),
    st.sampled_from(["customer", "advocate", "system"]),
    texts,
)
cases = st.lists(st.lists(messages, max_size=5), max_size=4)


def column(cases: list[list[Message]]) -> pa.ListArray:
    rows = [[{"role": m.role, "text": m.text, "template_id": None} for m in case] for case in cases]
    return pa.array(rows, pa.list_(FIELDS))


@pytest.mark.parametrize(
    "codec", [OURS, NEOX, SMOLLM, WHOLE_LINES], ids=["ours", "neox", "smollm", "whole lines"]
)
@settings(deadline=None)
@given(cases=cases)
def test_tokens_are_those_of_the_whole_transcript(
    codec: TextCodec, cases: list[list[Message]]
) -> None:
    found = TranscriptTokeniser(codec).tokens(column(cases)).to_pylist()
    assert found == codec.encode([transcript(case) for case in cases])


def test_a_slice_of_a_column_gives_the_tokens_of_its_own_rows() -> None:
    chats = [[Message(0, "customer", "a")], [Message(0, "advocate", "b")], []]
    found = TranscriptTokeniser(OURS).tokens(column(chats).slice(1)).to_pylist()
    assert found == OURS.encode([transcript(chats[1]), ""])


def test_messages_are_joined_only_where_the_tokenizer_surely_cuts_between_them() -> None:
    assert [cuts_at_newlines(codec.json_text) for codec in (OURS, NEOX, SMOLLM)] == [True] * 3
    assert not cuts_at_newlines(WHOLE_LINES.json_text)
    assert not cuts_at_newlines(
        with_pre_tokenizer(pre_tokenizers.ByteLevel(add_prefix_space=True)).json_text
    )
    assert not cuts_at_newlines(with_pre_tokenizer(pre_tokenizers.Metaspace()).json_text)


@pytest.mark.parametrize("change", [{"content": "\n\n"}, {"lstrip": True}, {"rstrip": True}])
def test_an_added_token_that_takes_newlines_forbids_joining(change: dict[str, object]) -> None:
    tokenizer = json.loads(NEOX.json_text)
    plain = next(token for token in tokenizer["added_tokens"] if not token["special"])
    plain |= change
    assert not cuts_at_newlines(json.dumps(tokenizer))


def test_cases_of_other_sides_are_left_out_and_empty_transcripts_counted(tmp_path: object) -> None:
    place = Location.of(str(tmp_path)) / "redacted"
    rows = [
        {"case_id": "1", "side": "train", "messages": [{"role": "customer", "text": "hi"}]},
        {"case_id": "2", "side": "test", "messages": [{"role": "customer", "text": "no"}]},
        {"case_id": "3", "side": "train", "messages": []},
    ]
    rest = {"started_at": 0, "locale": "en", "redactor_version": "1", "redactions": []}
    with TableWriter(place, REDACTED_SCHEMA, {}) as writer:
        writer.write(pa.RecordBatch.from_pylist([row | rest for row in rows], REDACTED_SCHEMA))
    outcomes = list(TokeniseTranscripts(place, ("train",), OURS)(range(3)))
    assert outcomes[0] == Rejected("empty transcript", 1)
    assert isinstance(outcomes[1], pa.RecordBatch)
    expected = OURS.encode([transcript([Message(0, "customer", "hi")])])[0]
    assert outcomes[1].to_pylist() == [{"id": "1", "tokens": expected}]

"""Packed rows against a slow loop, and the packing vector of support_templates."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.data.order import Order
from heliostat.data.stream import PackedStream, Stream
from heliostat.data.table import TableWriter
from heliostat.errors import DataError
from heliostat.storage import Location

END, PAD = 0, 1
DOCUMENT = st.lists(st.integers(2, 65_535), max_size=12)


def rows_by_hand(documents: Sequence[Sequence[int]], order: Sequence[int], seq_len: int):
    """The rows of an epoch, token by token: the real tokens and the number of their document."""
    rows: list[tuple[list[int], list[int]]] = [([], [])]
    for number in order:
        is_new_in_row = True
        for token in [*documents[number], END]:
            if len(rows[-1][0]) == seq_len:
                rows.append(([], []))
                is_new_in_row = True
            tokens, owners = rows[-1]
            if is_new_in_row:
                owner = owners[-1] + 1 if owners else 0
            tokens.append(token)
            owners.append(owner)
            is_new_in_row = False
    return rows


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(DOCUMENT, min_size=1, max_size=40),
    seq_len=st.integers(1, 17),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 3),
    shuffle=st.booleans(),
    rows_per_shard=st.integers(1, 50),
)
def test_rows_equal_those_of_a_slow_loop(
    write_documents, documents, seq_len, seed, epoch, shuffle, rows_per_shard
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Location.of(folder) / "documents"
        write_documents(place, documents, rows_per_shard=rows_per_shard)
        stream = PackedStream(place, seq_len, seed, END, PAD, shuffle)
        order = Order(len(documents), seed, epoch, shuffle).at(range(len(documents))).tolist()
        expected = rows_by_hand(documents, order, seq_len)
        assert stream.epoch_size == len(expected)
        begin = epoch * stream.epoch_size
        samples = stream.samples(range(begin, begin + stream.epoch_size))
        for number, (sample, (tokens, owners)) in enumerate(zip(samples, expected, strict=True)):
            padding = seq_len - len(tokens)
            assert sample["id"] == number
            assert sample["n_real"] == len(tokens)
            assert sample["input_ids"].tolist() == tokens + [PAD] * padding
            assert sample["labels"].tolist() == tokens + [-100] * padding
            assert sample["document_ids"].tolist() == owners + [-1] * padding


MARKED = st.lists(st.tuples(st.integers(2, 65_535), st.booleans()), max_size=12)


@settings(deadline=None, max_examples=60)
@given(
    documents=st.lists(MARKED, min_size=1, max_size=30),
    seq_len=st.integers(1, 17),
    seed=st.integers(0, 2**64 - 1),
    mark=st.sampled_from([pa.bool_(), pa.uint8(), pa.float32()]),
)
def test_only_marked_tokens_are_targets(documents, seq_len, seed, mark) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Location.of(folder) / "documents"
        write_marked(place, documents, mark)
        stream = PackedStream(place, seq_len, seed, END, PAD, targets="learnt")
        order = Order(len(documents), seed, 0, True).at(range(len(documents))).tolist()
        labels: list[int] = []
        for number in order:
            marks = [is_learnt for _, is_learnt in documents[number]]
            # The end of a document is learnt where its last token is.
            marks.append(marks[-1] if marks else False)
            tokens = [*(token for token, _ in documents[number]), END]
            labels += [
                token if is_learnt else -100 for token, is_learnt in zip(tokens, marks, strict=True)
            ]
        labels += [-100] * (-len(labels) % seq_len)
        samples = stream.samples(range(stream.epoch_size))
        assert [label for sample in samples for label in sample["labels"].tolist()] == labels
        plain = PackedStream(place, seq_len, seed, END, PAD)
        assert stream.fingerprint != plain.fingerprint
        for marked, every in zip(samples, plain.samples(range(len(samples))), strict=True):
            assert marked["input_ids"].tolist() == every["input_ids"].tolist()


def write_marked(place: Location, documents, mark: pa.DataType) -> None:
    schema = pa.schema([("tokens", pa.list_(pa.uint16())), ("learnt", pa.list_(mark))])
    columns = {
        "tokens": [[token for token, _ in document] for document in documents],
        "learnt": [
            pa.array([is_learnt for _, is_learnt in document], pa.bool_()).cast(mark)
            for document in documents
        ],
    }
    with TableWriter(place, schema, {}) as writer:
        writer.write(pa.RecordBatch.from_pydict(columns, schema=schema))


def test_marks_that_are_not_there_or_too_few_are_named(write_documents, tmp_path) -> None:
    write_documents(Location.of(tmp_path / "plain"), [[5, 6]])
    stream = PackedStream(Location.of(tmp_path / "plain"), 8, 1, END, PAD, targets="learnt")
    with pytest.raises(DataError, match=r"has no column learnt; it has id, tokens"):
        stream.samples([0])
    schema = pa.schema([("tokens", pa.list_(pa.uint16())), ("learnt", pa.list_(pa.bool_()))])
    with TableWriter(Location.of(tmp_path / "short"), schema, {}) as writer:
        rows = {"tokens": [[5, 6]], "learnt": [[True]]}
        writer.write(pa.RecordBatch.from_pydict(rows, schema=schema))
    stream = PackedStream(Location.of(tmp_path / "short"), 8, 1, END, PAD, targets="learnt")
    with pytest.raises(DataError, match="tokens and learnt are not equally long everywhere"):
        stream.samples([0])


def test_packing_vector_of_the_specification(write_documents, tmp_path) -> None:
    """Row length 8, documents of 5, 9 and 3 tokens: 20 tokens, three rows, four pads."""
    documents = [[5] * 5, [9] * 9, [3] * 3]
    place = Location.of(tmp_path)
    write_documents(place, documents)
    for shuffle in (False, True):
        stream = PackedStream(place, 8, seed=1, end_of_text=END, pad=PAD, shuffle=shuffle)
        samples = stream.samples([0, 1, 2])
        assert stream.tokens_per_epoch == 20
        assert stream.epoch_size == 3
        assert samples[2]["n_real"] == 4
        assert samples[2]["input_ids"][4:].tolist() == [PAD] * 4
        assert samples[2]["labels"][4:].tolist() == [-100] * 4
        tokens = [t for sample in samples for t in sample["input_ids"] if t != PAD]
        found: list[list[int]] = [[]]
        for token in tokens:
            if token == END:
                found.append([])
            else:
                found[-1].append(int(token))
        assert found.pop() == []
        assert sorted(found) == sorted(documents)


@pytest.fixture(scope="module")
def many(write_documents, tmp_path_factory) -> Location:
    """150,000 short documents, so three groups of the order."""
    place = Location.of(tmp_path_factory.mktemp("many"))
    random = np.random.default_rng(5)
    lengths = random.integers(0, 12, 150_000)
    tokens = random.integers(2, 60_000, int(lengths.sum()))
    documents = np.split(tokens, np.cumsum(lengths)[:-1])
    write_documents(place, documents, rows_per_shard=40_000)
    return place


def test_all_tokens_come_once_in_an_epoch_of_a_large_set(many: Location) -> None:
    stream = PackedStream(many, 512, seed=3, end_of_text=END, pad=PAD)
    table = stream.table
    for epoch in (0, 1):
        order = Order(table.rows, 3, epoch).at(np.arange(table.rows))
        expected = [
            token
            for document in table.take(order).column("tokens").to_pylist()
            for token in [*document, END]
        ]
        begin = epoch * stream.epoch_size
        samples = stream.samples(range(begin, begin + stream.epoch_size))
        real = np.concatenate([sample["input_ids"][: sample["n_real"]] for sample in samples])
        assert real.tolist() == expected


def test_a_row_is_the_same_from_a_fresh_stream_and_out_of_order(many: Location) -> None:
    stream = PackedStream(many, 128, seed=3, end_of_text=END, pad=PAD)
    positions = [0, stream.epoch_size - 1, stream.epoch_size, 5 * stream.epoch_size + 77, 1234]
    together = stream.samples(positions)
    for position, sample in zip(positions, together, strict=True):
        fresh = pickle.loads(pickle.dumps(stream))
        assert fresh.samples([position])[0]["input_ids"].tolist() == sample["input_ids"].tolist()


def test_a_stream_is_light(many: Location) -> None:
    stream = PackedStream(many, 128, seed=3, end_of_text=END, pad=PAD)
    stream.samples([0])
    assert isinstance(stream, Stream)
    assert len(pickle.dumps(stream)) < 500


def test_head_gives_the_first_documents_only(write_documents, tmp_path) -> None:
    documents = [[n + 2] * 3 for n in range(100)]
    write_documents(Location.of(tmp_path), documents)

    def tokens(head: int | None) -> set[int]:
        stream = PackedStream(Location.of(tmp_path), 8, 1, END, PAD, head=head)
        samples = stream.samples(range(stream.epoch_size))
        return {int(t) for sample in samples for t in sample["input_ids"]} - {END, PAD}

    assert tokens(10) == set(range(2, 12))
    assert tokens(None) == tokens(100) == set(range(2, 102))


def test_fingerprints_are_equal_when_the_rows_are(write_documents, tmp_path) -> None:
    place, copy = Location.of(tmp_path) / "a", Location.of(tmp_path) / "b"
    other = Location.of(tmp_path) / "c"
    write_documents(place, [[5, 6], [7]])
    write_documents(copy, [[5, 6], [7]], metadata={"made": "later"})
    write_documents(other, [[5, 6], [8]])
    reference = PackedStream(place, 8, 1, END, PAD).fingerprint
    assert PackedStream(copy, 8, 1, END, PAD).fingerprint == reference
    assert PackedStream(place, 8, 1, END, PAD, head=2).fingerprint == reference
    unshuffled = PackedStream(place, 8, 1, END, PAD, shuffle=False)
    assert unshuffled.fingerprint == PackedStream(place, 8, 2, END, PAD, False).fingerprint
    for changed in (
        PackedStream(other, 8, 1, END, PAD),
        PackedStream(place, 9, 1, END, PAD),
        PackedStream(place, 8, 2, END, PAD),
        PackedStream(place, 8, 1, 9, PAD),
        PackedStream(place, 8, 1, END, 9),
        PackedStream(place, 8, 1, END, None),
        PackedStream(place, 8, 1, END, PAD, head=1),
        unshuffled,
    ):
        assert changed.fingerprint != reference


def test_unredacted_input_is_refused_by_name(write_documents, tmp_path) -> None:
    place = Location.of(tmp_path)
    write_documents(place, [[5]], metadata={"redactor_version": "2"})
    for require in ({"redactor_version": None}, {"redactor_version": "2"}, {}):
        assert PackedStream(place, 8, 1, END, PAD, require=require).epoch_size == 1
    with pytest.raises(DataError, match="has redactor_version '2'; expected '3'"):
        _ = PackedStream(place, 8, 1, END, PAD, require={"redactor_version": "3"}).epoch_size
    with pytest.raises(DataError, match="carries no tokenizer, and data without it are refused"):
        PackedStream(place, 8, 1, END, PAD, require={"tokenizer": None}).samples([0])


def test_padding_that_equals_end_of_text_or_occurs_in_the_text_is_refused(
    write_documents, tmp_path
) -> None:
    place = Location.of(tmp_path)
    write_documents(place, [[5, 6, 7]])
    with pytest.raises(DataError, match="padding token and the end-of-text token are both 0"):
        PackedStream(place, 8, 1, END, END)
    with pytest.raises(DataError, match="padding token 6 occurs in the text"):
        PackedStream(place, 8, 1, END, pad=6).samples([0])


def test_without_a_padding_token_labels_still_tell_padding(write_documents, tmp_path) -> None:
    write_documents(Location.of(tmp_path), [[5, 6, 7]])
    (sample,) = PackedStream(Location.of(tmp_path), 8, 1, END, pad=None).samples([0])
    assert sample["input_ids"].tolist() == [5, 6, 7, END, END, END, END, END]
    assert sample["labels"].tolist() == [5, 6, 7, END, -100, -100, -100, -100]


def test_tables_without_tokens_or_rows_are_refused(write_documents, tmp_path) -> None:
    here = Location.of(tmp_path)
    write_documents(here / "empty", [])
    with pytest.raises(DataError, match="has no rows"):
        _ = PackedStream(here / "empty", 8, 1, END, PAD).epoch_size
    schema = pa.schema([("text", pa.string())])
    with TableWriter(here / "text", schema, {}) as writer:
        writer.write(pa.RecordBatch.from_pydict({"text": ["a"]}, schema=schema))
    with pytest.raises(DataError, match="no column tokens; it has text"):
        _ = PackedStream(here / "text", 8, 1, END, PAD).epoch_size


@pytest.mark.parametrize("kind", [pa.uint16(), pa.uint32(), pa.int32(), pa.int64()])
def test_any_integer_type_of_tokens_is_read(tmp_path, kind: pa.DataType) -> None:
    schema = pa.schema([("tokens", pa.list_(kind))])
    with TableWriter(Location.of(tmp_path), schema, {}) as writer:
        writer.write(pa.RecordBatch.from_pydict({"tokens": [[7, 30_000]]}, schema=schema))
    (sample,) = PackedStream(Location.of(tmp_path), 4, 1, END, PAD).samples([0])
    assert sample["input_ids"].dtype == np.int64
    assert sample["input_ids"].tolist() == [7, 30_000, END, PAD]

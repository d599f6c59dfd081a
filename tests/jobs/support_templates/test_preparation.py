"""Preparation on simulated cases: redaction before tokens, sides that share nothing, caching."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heliostat.data.stream import PackedStream
from heliostat.data.table import Table, TableWriter
from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.corpora.tokenizer import TextCodec, train_tokenizer
from jobs.support_templates.contexts import ContextConfig
from jobs.support_templates.data.schema import read_cases, read_templates
from jobs.support_templates.data.sim_config import POOLS, SimConfig
from jobs.support_templates.data.support_sim import write_simulation
from jobs.support_templates.data_report import redaction_counts
from jobs.support_templates.preparation import (
    DOCUMENT_SCHEMA,
    documents,
    labelled_samples,
    redact_cases,
    redacted_case,
)
from jobs.support_templates.redaction.redactor import build_redactor
from jobs.support_templates.split import (
    PRETRAIN,
    PRETRAIN_VALIDATION,
    SideRule,
    check_no_shared_case,
)
from jobs.support_templates.tasks import LanguageModelling
from jobs.support_templates.transcript import transcript
from models.decoder_config import gpt_neox_config

SIMULATION = SimConfig(
    unlabelled_cases=260, labelled_cases=160, validation_cases=40, test_cases=80, personal_share=0.4
)
STRUCTURED = {"EMAIL", "PHONE", "CARD", "SSN", "IP", "URL", "IBAN", "HANDLE", "ACCOUNT", "DOB"}
CONTEXT = ContextConfig(max_tokens=96)
RULE = SideRule(None, "salt", test_share=0.5, validation_share=0.2)
SIDES = (PRETRAIN, PRETRAIN_VALIDATION, "train", "validation", "test")


@dataclass(frozen=True)
class Prepared:
    """Every table of a small simulated chat."""

    raw: Location
    cache: Location
    codec: TextCodec
    redacted: Table
    pretrain: Table
    held_out: Table
    samples: dict[str, Table]


def prepare_all(raw: Location, cache: Location, codec: TextCodec) -> Prepared:
    sources = [(raw / f"cases-{pool}.parquet", replace(RULE, pool=pool)) for pool in POOLS]
    redacted = redact_cases(
        sources,
        templates=frozenset(read_templates(raw / "templates.parquet")),
        presidio=False,
        cache=cache,
        workers=0,
    )
    return Prepared(
        raw=raw,
        cache=cache,
        codec=codec,
        redacted=redacted,
        pretrain=documents(redacted, (PRETRAIN,), codec, cache, 0),
        held_out=documents(redacted, (PRETRAIN_VALIDATION,), codec, cache, 0),
        samples={
            side: labelled_samples(redacted, side, codec, CONTEXT, cache, 0)
            for side in ("train", "validation", "test")
        },
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = Location.of(tmp_path_factory.mktemp("preparation"))
    write_simulation(SIMULATION, folder / "raw")
    codec = train_tokenizer(["the payment never arrived, so what can be done about it?"] * 5, 320)
    return prepare_all(folder / "raw", folder / "cache", codec)


def raw_messages(prepared: Prepared) -> dict[tuple[str, int], str]:
    return {
        (case.case_id, message.idx): message.text
        for pool in POOLS
        for cases in read_cases(prepared.raw / f"cases-{pool}.parquet")
        for case in cases
        for message in case.messages
    }


def gold_values(prepared: Prepared) -> dict[str, set[str]]:
    """The structured values that the simulator put into messages, by kind."""
    texts = raw_messages(prepared)
    values: dict[str, set[str]] = defaultdict(set)
    for row in pq.read_table((prepared.raw / "gold_spans.parquet").local_path).to_pylist():
        if row["kind"] in STRUCTURED:
            text = texts[row["case_id"], row["idx"]]
            values[row["kind"]].add(text[row["start"] : row["end"]])
    return values


def strings_of(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(strings_of, value.values()))
    elif isinstance(value, list):
        yield from itertools.chain.from_iterable(map(strings_of, value))


def written_text(cache: Location, codec: TextCodec) -> str:
    """Every string of every table under a folder, and every list of tokens as text."""
    found: list[str] = []
    files = [p for p in cache.local_path.rglob("*") if p.suffix in (".arrow", ".parquet")]
    assert files
    for file in files:
        if file.suffix == ".parquet":
            table = pq.read_table(file)
        else:
            with pa.memory_map(str(file)) as source:
                table = pa.ipc.open_file(source).read_all()
        tokens = "tokens" in table.column_names
        for row in table.to_pylist():
            found += strings_of(row)
            if tokens:
                found.append(codec.tokenizer.decode(row["tokens"], skip_special_tokens=False))
    return "\n".join(found)


def test_no_structured_value_is_in_any_written_table_or_its_tokens(prepared: Prepared) -> None:
    values = gold_values(prepared)
    assert values.keys() == STRUCTURED
    assert all(len(found) >= 5 for found in values.values())
    originals = "\n".join(raw_messages(prepared).values())
    written = written_text(prepared.cache, prepared.codec)
    # The search can find what is there: placeholders, and every value in the raw messages.
    assert "<EMAIL>" in written
    for kind, found in values.items():
        assert all(value in originals for value in found)
        assert [value for value in found if value in written] == [], kind


def test_no_structured_value_is_in_the_bytes_of_any_written_file(prepared: Prepared) -> None:
    files = [file for file in prepared.cache.local_path.rglob("*") if file.is_file()]
    everything = b"\0".join(file.read_bytes() for file in files)
    assert b"<EMAIL>" in everything
    leaked = {
        value
        for found in gold_values(prepared).values()
        for value in found
        if value.encode() in everything
    }
    assert leaked == set()


def test_memoised_redaction_is_that_of_each_message_alone(prepared: Prepared) -> None:
    redact = build_redactor(presidio=False).redact_text
    texts = raw_messages(prepared)
    originals: dict[str, list[str]] = defaultdict(list)
    for (case, _), text in texts.items():
        originals[case].append(text)
    rows = prepared.redacted.take(range(prepared.redacted.rows)).to_pylist()
    assert sorted(row["case_id"] for row in rows) == sorted(originals)
    for row in rows:
        expected = [redact(text) for text in originals[row["case_id"]]]
        assert [message["text"] for message in row["messages"]] == expected
    # Templates and short answers recur, or remembering them would be worth nothing.
    assert len(set(texts.values())) < 0.8 * len(texts)


def test_every_case_is_on_the_one_side_of_its_pool(prepared: Prepared) -> None:
    rows = prepared.redacted.take(range(prepared.redacted.rows)).to_pylist()
    assert len({row["case_id"] for row in rows}) == len(rows)
    sides = {"unlabelled": {PRETRAIN, PRETRAIN_VALIDATION}, "labelled": {"train"}}
    seen = set()
    for row in rows:
        pool = row["case_id"].split("-")[0]
        assert row["side"] in sides.get(pool, {pool})
        seen.add(row["side"])
    assert seen == set(SIDES)


def test_no_two_tables_share_a_case(prepared: Prepared) -> None:
    cases = {side: set(t.column("case_id").to_pylist()) for side, t in prepared.samples.items()}
    check_no_shared_case(cases)  # type: ignore[arg-type]
    everything = [
        set(prepared.pretrain.column("id").to_pylist()),
        set(prepared.held_out.column("id").to_pylist()),
        *cases.values(),
    ]
    assert all(everything)
    for first, second in itertools.combinations(everything, 2):
        assert not first & second


def test_sides_of_your_own_cases_do_not_change_when_cases_are_added() -> None:
    names = [f"case-{n}" for n in range(4000)]
    sides = {name: RULE.side(name) for name in names}
    assert {name: RULE.side(name) for name in reversed(names)} == sides
    shares = {side: sum(s == side for s in sides.values()) / len(names) for side in SIDES}
    assert shares["test"] == pytest.approx(0.5, abs=0.03)
    assert shares["validation"] == pytest.approx(0.1, abs=0.02)
    assert shares[PRETRAIN] == 0


def test_documents_decode_to_the_redacted_transcripts(prepared: Prepared) -> None:
    rows = prepared.redacted.take(range(prepared.redacted.rows)).to_pylist()
    cases = {str(row["case_id"]): redacted_case(row) for row in rows}
    for row in prepared.pretrain.take(range(prepared.pretrain.rows)).to_pylist():
        text = prepared.codec.tokenizer.decode(row["tokens"], skip_special_tokens=False)
        assert text == transcript(cases[row["id"]].messages)


def test_samples_end_before_the_reply_that_they_are_labelled_with(prepared: Prepared) -> None:
    rows = prepared.redacted.take(range(prepared.redacted.rows)).to_pylist()
    cases = {str(row["case_id"]): redacted_case(row) for row in rows}
    for table in prepared.samples.values():
        for row in table.take(range(table.rows)).to_pylist():
            case_id, _, position = row["sample_id"].rpartition("#")
            before = cases[case_id].messages[: int(position)]
            assert cases[case_id].messages[int(position)].template_id == row["template_id"]
            text = prepared.codec.tokenizer.decode(row["tokens"], skip_special_tokens=False)
            whole = "\n".join(message.text for message in before)
            assert whole.endswith(text) if row["cut_inside"] else text in whole
            assert whole.endswith(before[-1].text)
            assert text[-20:] == whole[-len(text[-20:]) :]
            assert len(row["tokens"]) <= CONTEXT.max_tokens
            assert row["redactor_version"] == prepared.redacted.metadata["redactor_version"]


def test_replaced_spans_are_counted_by_kind_and_case(prepared: Prepared) -> None:
    redactor = build_redactor(presidio=False)
    expected: dict[str, Counter[str]] = defaultdict(Counter)
    for (case_id, _), text in raw_messages(prepared).items():
        expected[case_id].update(redactor.redact(text).counts)
    rows = prepared.redacted.take(range(prepared.redacted.rows)).to_pylist()
    counted = {row["case_id"]: Counter(dict(row["redactions"])) for row in rows}
    assert counted == expected
    assert redaction_counts(prepared.redacted) == sum(counted.values(), Counter())
    assert set(redaction_counts(prepared.redacted)) >= STRUCTURED


def test_every_labelled_message_is_a_sample_or_counted(prepared: Prepared) -> None:
    for side, table in prepared.samples.items():
        rows = prepared.redacted.take(range(prepared.redacted.rows)).to_pylist()
        candidates = sum(
            message["template_id"] is not None
            for row in rows
            if row["side"] == side
            for message in row["messages"]
        )
        rejected = sum(json.loads(table.metadata["rejected"]).values())
        assert table.rows + rejected == candidates


def test_a_second_preparation_takes_under_two_seconds_and_writes_nothing(
    prepared: Prepared,
) -> None:
    files = {
        file: file.stat().st_mtime_ns
        for file in prepared.cache.local_path.rglob("*")
        if file.is_file()
    }
    began = time.perf_counter()
    again = prepare_all(prepared.raw, prepared.cache, prepared.codec)
    assert time.perf_counter() - began < 2
    assert again.redacted.location == prepared.redacted.location
    assert again.pretrain.location == prepared.pretrain.location
    assert again.samples["test"].fingerprint == prepared.samples["test"].fingerprint
    assert {
        file: file.stat().st_mtime_ns
        for file in prepared.cache.local_path.rglob("*")
        if file.is_file()
    } == files


def test_what_decides_the_rows_decides_where_they_lie(prepared: Prepared) -> None:
    other = train_tokenizer(["another text, another tokenizer altogether"] * 5, 310)
    shorter = replace(CONTEXT, max_tokens=20)
    redacted, cache = prepared.redacted, prepared.cache
    tables = [
        prepared.held_out,
        documents(redacted, (PRETRAIN_VALIDATION,), other, cache, 0),
        documents(redacted, ("validation",), prepared.codec, cache, 0),
        prepared.samples["validation"],
        labelled_samples(redacted, "validation", other, CONTEXT, cache, 0),
        labelled_samples(redacted, "validation", prepared.codec, shorter, cache, 0),
    ]
    assert len({table.location.uri for table in tables}) == len(tables)


def test_a_changed_raw_file_is_redacted_again(prepared: Prepared, tmp_path: Path) -> None:
    raw = Location.of(tmp_path / "raw")
    shutil.copytree(prepared.raw.local_path, raw.local_path)
    write_simulation(replace(SIMULATION, seed=1), raw)
    sources = [(raw / "cases-test.parquet", replace(RULE, pool="test"))]
    templates = frozenset(read_templates(raw / "templates.parquet"))
    table = redact_cases(
        sources, templates=templates, presidio=False, cache=prepared.cache, workers=0
    )
    assert table.location != prepared.redacted.location
    assert table.rows == SIMULATION.test_cases


def test_prepared_tables_carry_redactor_and_tokenizer(prepared: Prepared) -> None:
    version = build_redactor(presidio=False).version
    for table in (prepared.pretrain, prepared.held_out, *prepared.samples.values()):
        assert table.metadata["redactor_version"] == version
        assert table.metadata["tokenizer"] == prepared.codec.fingerprint


def test_the_packer_refuses_documents_without_a_redactor_version(
    prepared: Prepared, tmp_path: Path
) -> None:
    version = prepared.redacted.metadata["redactor_version"]
    folder = Location.of(tmp_path) / "unredacted"
    with TableWriter(folder, DOCUMENT_SCHEMA, {"tokenizer": "any"}) as writer:
        for batch in prepared.held_out.take([0, 1, 2]).to_batches():
            writer.write(batch)

    def packed(place: Location, expected: str) -> int:
        task = LanguageModelling(
            name="dapt",
            decoder=gpt_neox_config(vocab_size=320, width=16, layers=1, heads=2),
            documents=place,
            validation=place,
            seq_len=32,
            end_of_text=prepared.codec.end_of_text,
            pad=prepared.codec.pad,
            seed=0,
            validation_rows=4,
            redactor_version=expected,
        )
        return task.train_data().epoch_size

    assert packed(prepared.held_out.location, version) > 0
    with pytest.raises(DataError, match="carries no redactor_version"):
        packed(folder, version)
    with pytest.raises(DataError, match=f"has redactor_version '{version}'; expected 'older'"):
        packed(prepared.held_out.location, "older")


def test_packed_rows_of_prepared_documents_hold_no_padding_token(prepared: Prepared) -> None:
    stream = PackedStream(
        prepared.pretrain.location,
        seq_len=64,
        seed=0,
        end_of_text=prepared.codec.end_of_text,
        pad=prepared.codec.pad,
    )
    rows = stream.samples(range(stream.epoch_size))
    ends = sum(int((row["input_ids"] == prepared.codec.end_of_text).sum()) for row in rows)  # type: ignore[attr-defined]
    assert ends == prepared.pretrain.rows

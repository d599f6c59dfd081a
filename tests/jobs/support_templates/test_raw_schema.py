"""The raw tables: what is written comes back, what is wrong is refused with its place."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from heliostat.errors import DataError
from heliostat.storage import Location
from jobs.support_templates.data import schema
from jobs.support_templates.data.case_ids import CaseIds
from jobs.support_templates.data.rows import Case, Message, Template
from jobs.support_templates.data.schema import (
    CASES_SCHEMA,
    case_row,
    read_cases,
    read_templates,
    write_cases,
    write_templates,
)

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
SECRET = "my secret words"


def a_case(case_id: str = "c-1") -> Case:
    messages = (
        Message(0, "customer", SECRET, NOON),
        Message(1, "system", "joined", NOON + timedelta(seconds=2)),
        Message(2, "advocate", "Hello.", NOON + timedelta(seconds=9), "greet", "advocate-1"),
        Message(4, "customer", "it's naïve ✓", NOON + timedelta(seconds=31, microseconds=7)),
    )
    return Case(case_id, NOON, "en-US", messages)


def changed(position: int, **values: object) -> dict[str, object]:
    """The row of a case with some values of one message changed."""
    row = case_row(a_case())
    row["messages"][position].update(values)  # type: ignore[index]
    return row


def write_raw(path: Path, rows: list[dict[str, object]], arrow_schema: pa.Schema) -> Location:
    """Write rows without any check, as a user's own tool would; nulls are allowed anywhere."""
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema), path)
    return Location.of(path)


def nullable(arrow_schema: pa.Schema) -> pa.Schema:
    message = pa.struct([(one.name, one.type) for one in schema.MESSAGE_TYPE])
    return pa.schema(
        [
            (field.name, pa.list_(message) if field.name == "messages" else field.type)
            for field in arrow_schema
        ]
    )


def read_all(location: Location, templates: set[str] | None = None) -> list[Case]:
    return [case for batch in read_cases(location, templates) for case in batch]


def test_cases_come_back_as_they_were_written(tmp_path: Path) -> None:
    cases = [a_case(), a_case("c-2"), Case("empty", NOON, "de-DE", ())]
    location = Location.of(tmp_path / "cases.parquet")
    assert write_cases(location, iter(cases)) == 3
    assert read_all(location, {"greet"}) == cases
    assert pq.read_schema(location.local_path).equals(CASES_SCHEMA)


def test_templates_come_back_as_they_were_written(tmp_path: Path) -> None:
    templates = [
        Template("b", "B", "Bye.", "retired", NOON, NOON + timedelta(days=3), 2),
        Template("a", "A", "Hello."),
    ]
    location = Location.of(tmp_path / "templates.parquet")
    assert write_templates(location, templates) == 2
    assert list(read_templates(location).values()) == templates


def test_reading_holds_few_cases_at_a_time(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "cases.parquet")
    write_cases(location, (a_case(f"c-{number}") for number in range(5000)))
    sizes = [len(batch) for batch in read_cases(location)]
    assert sum(sizes) == 5000
    assert max(sizes) <= schema.BATCH_CASES


def test_a_folder_of_files_is_one_table(tmp_path: Path) -> None:
    write_cases(Location.of(tmp_path / "b.parquet"), [a_case("c-2")])
    write_cases(Location.of(tmp_path / "a.parquet"), [a_case("c-1")])
    (tmp_path / "notes.txt").write_text("not a table")
    assert [case.case_id for case in read_all(Location.of(tmp_path))] == ["c-1", "c-2"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (changed(2, idx=1), "message 3 of 4: idx 1 repeats idx 1"),
        (changed(2, idx=0), "message 3 of 4: idx 0 comes after idx 1"),
        (changed(2, role="agent"), "message 3 of 4: role is 'agent'; expected customer, system"),
        (changed(0, role="Customer"), "role is 'Customer'; expected customer, system, advocate (p"),
        (changed(0, template_id="greet"), "message 1 of 4: template_id is 'greet' on a customer"),
        (changed(1, template_id="greet"), "template_id is 'greet' on a system message"),
        (changed(2, template_id="great"), "template_id 'great' is not in the templates table; "),
        (changed(0, idx=None), "message 1 of 4: idx is null"),
        (changed(0, text=None), "message 1 of 4: text is null"),
        (changed(3, role=None), "message 4 of 4: role is null"),
        ({**case_row(a_case()), "messages": None}, "messages is null"),
    ],
)
def test_a_broken_case_is_refused_with_file_row_and_case(
    tmp_path: Path, row: dict[str, object], said: str
) -> None:
    good = case_row(a_case("good"))
    location = write_raw(tmp_path / "cases.parquet", [good, row], nullable(CASES_SCHEMA))
    with pytest.raises(DataError) as caught:
        read_all(location, {"greet", "close"})
    message = str(caught.value)
    assert f"{location.uri}, row 2, case 'c-1'" in message
    assert said in message
    assert "expected" in message
    assert SECRET not in message


@pytest.mark.parametrize("case_id", [None, ""])
def test_a_case_without_an_id_is_refused(tmp_path: Path, case_id: str | None) -> None:
    row = {**case_row(a_case()), "case_id": case_id}
    location = write_raw(tmp_path / "cases.parquet", [row], nullable(CASES_SCHEMA))
    with pytest.raises(DataError, match="row 1: case_id is empty or null; expected a unique id"):
        read_all(location)


def test_any_template_is_accepted_where_no_templates_are_given(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "cases.parquet")
    write_cases(location, [a_case()])
    assert read_all(location) == [a_case()]


def test_a_template_row_number_counts_over_batches(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "cases.parquet")
    cases = [a_case(f"c-{number}") for number in range(3000)]
    broken = replace(cases[2500].messages[2], template_id="gone")
    cases[2500] = replace(cases[2500], messages=(*cases[2500].messages[:2], broken))
    write_cases(location, cases)
    with pytest.raises(DataError, match=r"row 2501, case 'c-2500', message 3 of 3"):
        read_all(location, {"greet"})


def test_a_repeated_case_id_is_refused_with_both_places(tmp_path: Path) -> None:
    write_cases(Location.of(tmp_path / "a.parquet"), [a_case(f"c-{n}") for n in range(2000)])
    write_cases(Location.of(tmp_path / "b.parquet"), [a_case("d-1"), a_case("c-1234")])
    with pytest.raises(DataError) as caught:
        read_all(Location.of(tmp_path))
    assert f"{tmp_path / 'b.parquet'}, row 2: case_id 'c-1234'" in str(caught.value)
    assert f"row 1235 in {tmp_path / 'a.parquet'}" in str(caught.value)


def test_a_case_id_repeated_in_one_batch_is_refused(tmp_path: Path) -> None:
    location = Location.of(tmp_path / "cases.parquet")
    write_cases(location, [a_case("x"), a_case("y"), a_case("x")])
    with pytest.raises(DataError, match=r"row 3: case_id 'x' is already that of row 1"):
        read_all(location)


def test_ids_that_only_share_a_digest_are_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CaseIds, "add", lambda self, ids: list(range(len(ids))))
    location = Location.of(tmp_path / "cases.parquet")
    write_cases(location, [a_case("x"), a_case("y")])
    assert len(read_all(location)) == 2


def test_case_ids_are_found_again_in_eight_bytes_each() -> None:
    seen = CaseIds()
    for start in range(0, 100_000, 1000):
        assert seen.add([f"case-{number}" for number in range(start, start + 1000)]) == []
    assert len(seen) == 100_000
    assert sum(run.nbytes for run in seen._runs) == 800_000
    assert len(seen._runs) < 12
    assert seen.add(["new-1", "case-77777", "case-0", "new-2", "new-1"]) == [1, 2, 4]
    assert seen.add([]) == []


def retyped(table: pa.Table) -> pa.Table:
    """The same cases as another tool may have written them."""
    message = pa.struct(
        [
            ("text", pa.large_string()),
            ("role", pa.dictionary(pa.int8(), pa.string())),
            ("idx", pa.int64()),
            ("sent_at", pa.timestamp("ns")),
            ("template_id", pa.string()),
            ("advocate_id", pa.string()),
            ("mood", pa.float64()),
        ]
    )
    rows = table.to_pylist()
    for row in rows:
        row["started_at"] = row["started_at"].astimezone(UTC)
        for one in row["messages"]:
            one["sent_at"] = one["sent_at"].replace(tzinfo=None)
            one["mood"] = 0.5
    return pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [
                ("messages", pa.large_list(message)),
                ("case_id", pa.large_string()),
                ("started_at", pa.timestamp("ms", tz="America/New_York")),
                ("locale", pa.dictionary(pa.int32(), pa.string())),
                ("country", pa.string()),
            ]
        ),
    )


def test_types_that_lose_nothing_are_accepted_and_remarked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    location = Location.of(tmp_path / "cases.parquet")
    write_cases(location, [a_case()])
    pq.write_table(retyped(pq.read_table(location.local_path)), location.local_path)
    with caplog.at_level(logging.WARNING):
        assert read_all(location, {"greet"}) == [a_case()]
    for remark in (
        "messages.idx is int64, read as int32",
        "messages.sent_at is timestamp[ns], read as timestamp[us, tz=UTC], taking its times as UTC",
        "columns that are not read: country",
    ):
        assert remark in caplog.text


def test_absent_optional_columns_are_replaced_and_remarked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = pa.struct([("idx", pa.int32()), ("role", pa.string()), ("text", pa.string())])
    rows = [{"case_id": "c", "started_at": NOON, "messages": [{"idx": 0, "role": "customer",
                                                                "text": "Hi"}]}]  # fmt: skip
    arrow_schema = pa.schema(
        [("case_id", pa.string()), ("started_at", pa.timestamp("us", tz="UTC")),
         ("messages", pa.list_(message))]
    )  # fmt: skip
    location = write_raw(tmp_path / "cases.parquet", rows, arrow_schema)
    with caplog.at_level(logging.WARNING):
        cases = read_all(location)
    assert cases == [Case("c", NOON, "und", (Message(0, "customer", "Hi"),))]
    assert "no column locale; taken instead: und" in caplog.text
    assert "no column messages.template_id; taken instead: no template" in caplog.text


def test_a_case_starts_with_its_first_message_where_nothing_else_is_said(tmp_path: Path) -> None:
    row = {**case_row(a_case()), "started_at": None}
    location = write_raw(tmp_path / "cases.parquet", [row], nullable(CASES_SCHEMA))
    assert read_all(location)[0].started_at == NOON


def test_a_case_without_any_time_is_refused(tmp_path: Path) -> None:
    row = {**changed(0, sent_at=None), "started_at": None}
    location = write_raw(tmp_path / "cases.parquet", [row], nullable(CASES_SCHEMA))
    with pytest.raises(DataError, match="started_at and the first sent_at are null; expected one"):
        read_all(location)


def drop(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns([name])


def cast(name: str, arrow_type: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        position = table.schema.get_field_index(name)
        column = pa.chunked_array([pa.nulls(len(table), arrow_type)])
        return table.set_column(position, name, column)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("case_id"), "column case_id is missing; expected type string"),
        (drop("messages"), "column messages is missing; expected type list of structs"),
        (
            lambda table: table.rename_columns(["caseid", *table.column_names[1:]]),
            "did you mean its column 'caseid'?",
        ),
        (cast("case_id", pa.int64()), "column case_id is int64; expected string"),
        (cast("started_at", pa.string()), "column started_at is string; expected timestamp[us, tz"),
        (cast("messages", pa.string()), "column messages is string; expected a list of structs"),
        (cast("messages", pa.list_(pa.string())), "expected a list of structs"),
        (
            cast("messages", pa.list_(pa.struct([("idx", pa.int32()), ("role", pa.string())]))),
            "column messages.text is missing; expected type string",
        ),
        (
            cast(
                "messages",
                pa.list_(
                    pa.struct([("idx", pa.float64()), ("role", pa.string()), ("text", pa.string())])
                ),
            ),
            "column messages.idx is double; expected int32",
        ),
    ],
)
def test_columns_that_cannot_be_read_are_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], said: str
) -> None:
    table = pa.Table.from_pylist([case_row(a_case())], schema=nullable(CASES_SCHEMA))
    path = tmp_path / "cases.parquet"
    pq.write_table(change(table), path)
    with pytest.raises(DataError) as caught:
        read_all(Location.of(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_an_idx_beyond_32_bits_is_refused(tmp_path: Path) -> None:
    message = pa.struct([("idx", pa.int64()), ("role", pa.string()), ("text", pa.string())])
    row = {"case_id": "c", "started_at": NOON, "messages": [{"idx": 2**40, "role": "customer",
                                                             "text": "Hi"}]}  # fmt: skip
    arrow_schema = nullable(CASES_SCHEMA).remove(3).append(pa.field("messages", pa.list_(message)))
    location = write_raw(tmp_path / "cases.parquet", [row], arrow_schema)
    with pytest.raises(DataError, match=r"column messages\.idx holds a value that is no int32"):
        read_all(location)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected a Parquet file"):
        read_all(Location.of(tmp_path / "nowhere.parquet"))
    with pytest.raises(DataError, match=r"holds no \*\.parquet file"):
        read_all(Location.of(tmp_path))
    (tmp_path / "cases.parquet").write_text("case_id,text")
    with pytest.raises(DataError, match="is not a Parquet file"):
        read_all(Location.of(tmp_path / "cases.parquet"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"template_id": "a", "body": "x"}] * 2, "row 2: template_id 'a' was used in an earlier"),
        ([{"template_id": None, "body": "x"}], "row 1: template_id is empty or null"),
        ([{"template_id": "a", "body": ""}], "row 1, template 'a': body is empty"),
        (
            [{"template_id": "a", "body": "x", "status": "activ"}],
            "status is 'activ'; expected active, retired (perhaps 'active')",
        ),
    ],
)
def test_broken_templates_are_refused(
    tmp_path: Path, rows: list[dict[str, object]], said: str
) -> None:
    arrow_schema = pa.schema([(name, pa.string()) for name in ("template_id", "body", "status")])
    location = write_raw(tmp_path / "templates.parquet", rows, arrow_schema)
    with pytest.raises(DataError) as caught:
        read_templates(location)
    assert said in str(caught.value)


def test_templates_need_only_an_id_and_a_body(tmp_path: Path) -> None:
    arrow_schema = pa.schema([("template_id", pa.string()), ("body", pa.string())])
    rows: list[dict[str, object]] = [{"template_id": "a", "body": "Hello."}]
    location = write_raw(tmp_path / "templates.parquet", rows, arrow_schema)
    assert read_templates(location) == {"a": Template("a", "a", "Hello.")}

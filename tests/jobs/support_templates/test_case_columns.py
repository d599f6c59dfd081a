"""Cases checked as columns are the cases checked as rows, and what rows refuse columns refuse."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heliostat.errors import DataError
from jobs.support_templates.data.case_columns import case_columns
from jobs.support_templates.data.checks import cases_from_batch

MOMENTS = [None, datetime(2026, 5, 1, 12, tzinfo=UTC)]
TEMPLATES = frozenset({"greet", "close"})

messages = st.fixed_dictionaries(
    {
        "idx": st.sampled_from([0, 1, 2, 3, None]),
        "role": st.sampled_from(["customer", "system", "advocate", "advocate", "agent", None]),
        "text": st.sampled_from(["hi", "", None]),
        "sent_at": st.sampled_from(MOMENTS),
        "template_id": st.sampled_from([None, None, "greet", "great"]),
    }
)
sound_messages = st.lists(
    st.sampled_from(
        [("customer", None), ("system", None), ("advocate", None), ("advocate", "greet")]
    ),
    max_size=4,
).map(
    lambda kinds: [
        {"idx": 2 * at, "role": role, "text": f"t{at}", "sent_at": None, "template_id": template}
        for at, (role, template) in enumerate(kinds)
    ]
)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "case_id": st.sampled_from(["a", "b", "c", "d", "", None]),
            "started_at": st.sampled_from(MOMENTS),
            "locale": st.sampled_from([None, "", "en-US"]),
            "messages": st.one_of(
                sound_messages, sound_messages, st.lists(messages, max_size=3), st.none()
            ),
        }
    ),
    max_size=4,
)
MESSAGE = pa.struct(
    [
        ("idx", pa.int32()),
        ("role", pa.string()),
        ("text", pa.string()),
        ("sent_at", pa.timestamp("us", tz="UTC")),
        ("template_id", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("case_id", pa.string()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("locale", pa.string()),
        ("messages", pa.list_(MESSAGE)),
    ]
)


@settings(deadline=None, max_examples=300)
@given(rows=rows, templates=st.sampled_from([None, TEMPLATES, frozenset()]))
def test_columns_and_rows_agree(
    rows: list[dict[str, object]], templates: frozenset[str] | None
) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    try:
        cases = cases_from_batch(batch, "file", 1, templates)
    except DataError as error:
        reason = str(error)
        with pytest.raises(DataError, match=f"^{re.escape(reason)}$"):
            case_columns(batch, "file", 1, templates)
        return
    columns = case_columns(batch, "file", 1, templates)
    assert columns.case_id.to_pylist() == [case.case_id for case in cases]
    assert columns.started_at.to_pylist() == [case.started_at for case in cases]
    assert columns.locale.to_pylist() == [case.locale for case in cases]
    assert columns.ends.tolist() == [
        sum(len(case.messages) for case in cases[:number]) for number in range(len(cases) + 1)
    ]
    flat = [message for case in cases for message in case.messages]
    assert columns.role.to_pylist() == [message.role for message in flat]
    assert columns.text.to_pylist() == [message.text for message in flat]
    assert columns.template_id.to_pylist() == [message.template_id for message in flat]

"""From raw cases to tables that a model reads: redaction, then tokens.

Three kinds of prepared tables, each cached under everything it depends on:

    redacted     one row a case: every message redacted, and the side the case is on
    documents    one row a case: the transcript as tokens, for next-token training
    samples      one row a labelled message: its context as tokens, for the classifier

Redaction comes first, and nothing that follows ever sees the original text. A chat repeats itself:
templates and short answers recur, so each distinct message is redacted and tokenised once.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc

from heliostat.data.prepare import Outcome, PreparationKey, Rejected, code_of, content_of, prepare
from heliostat.data.table import Table
from heliostat.storage import Location
from jobs.corpora import tokenizer
from jobs.corpora.tokenizer import TextCodec
from jobs.support_templates import (
    case_redaction,
    contexts,
    samples,
    split,
    transcript,
    transcript_tokens,
)
from jobs.support_templates.case_redaction import REDACTED_SCHEMA, RedactCases
from jobs.support_templates.contexts import ContextConfig, context_marks, samples_of
from jobs.support_templates.data import case_columns
from jobs.support_templates.data import chunks as case_chunks
from jobs.support_templates.data.rows import Case, Message
from jobs.support_templates.redaction.redactor import build_redactor
from jobs.support_templates.samples import SAMPLE_SCHEMA, sample_table
from jobs.support_templates.split import SideRule
from jobs.support_templates.transcript_tokens import TOKENS, TranscriptTokeniser

BATCH_CASES = 512
ROWS_PER_CHUNK = 4096

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("tokens", TOKENS, nullable=False),
    ]
)


@dataclass(frozen=True)
class TokeniseTranscripts:
    """Redacted cases of some sides to rows of `DOCUMENT_SCHEMA`."""

    redacted: Location
    sides: tuple[str, ...]
    codec: TextCodec

    def __call__(self, rows: range) -> Iterator[Outcome]:
        tokeniser = TranscriptTokeniser(self.codec)
        for cases in _redacted_batches(self.redacted, rows, self.sides):
            tokens = tokeniser.tokens(cases.column("messages"))
            is_kept = pc.greater(pc.list_value_length(tokens), 0)
            kept = pa.record_batch([cases.column("case_id"), tokens], schema=DOCUMENT_SCHEMA)
            kept = kept.filter(is_kept)
            if kept.num_rows < cases.num_rows:
                yield Rejected("empty transcript", cases.num_rows - kept.num_rows)
            yield kept


@dataclass(frozen=True)
class BuildSamples:
    """Redacted cases of one side to rows of `SAMPLE_SCHEMA`."""

    redacted: Location
    side: str
    codec: TextCodec
    context: ContextConfig

    def __call__(self, rows: range) -> Iterator[Outcome]:
        marks = context_marks(self.context, self.codec.encode, self.codec.end_of_text)
        known: dict[str, list[int]] = {}

        def encode(texts: Sequence[str]) -> list[list[int]]:
            new = list(dict.fromkeys(text for text in texts if text not in known))
            known.update(zip(new, self.codec.encode(new), strict=True))
            return [known[text] for text in texts]

        skipped: Counter[str] = Counter()
        for cases in _redacted_cases(self.redacted, rows, (self.side,)):
            found = [
                sample
                for case, version in zip(cases, _versions(cases), strict=True)
                for sample in samples_of(
                    case,
                    side=self.side,  # type: ignore[arg-type]
                    redactor_version=version,
                    encode=encode,
                    marks=marks,
                    config=self.context,
                    skipped=skipped,
                )
            ]
            if found:
                yield from sample_table(found).combine_chunks().to_batches()
        for reason, count in skipped.items():
            yield Rejected(reason, count)


@dataclass(frozen=True)
class RedactedCase(Case):
    """A case whose texts are redacted, and by which version."""

    redactor_version: str = ""


def redact_cases(
    sources: Sequence[tuple[Location, SideRule]],
    *,
    templates: frozenset[str],
    presidio: bool,
    cache: Location,
    workers: int,
) -> Table:
    """The table of redacted cases."""
    redactor = build_redactor(presidio)
    chunks = [
        (chunk, rule) for location, rule in sources for chunk in case_chunks.chunks_of(location)
    ]
    rules = json.dumps([repr(rule) for _, rule in sources])
    key = PreparationKey(
        content=content_of([file for place, _ in sources for file in case_chunks.files_of(place)]),
        code=code_of(_module(), case_redaction, split, case_chunks, case_columns),
        settings={"redactor": redactor.version, "rules": rules},
    )
    return prepare(
        "redacted",
        chunks,
        RedactCases(presidio, templates),
        cache,
        key,
        workers,
        schema=REDACTED_SCHEMA,
        metadata={"redactor_version": redactor.version},
    )


def documents(
    redacted: Table, sides: tuple[str, ...], codec: TextCodec, cache: Location, workers: int
) -> Table:
    """Transcripts of some sides as token documents."""
    return prepare(
        "documents",
        row_chunks(redacted.rows),
        TokeniseTranscripts(redacted.location, sides, codec),
        cache,
        PreparationKey(
            content=redacted.fingerprint,
            code=code_of(_module(), transcript, transcript_tokens, tokenizer),
            tokenizer=codec.fingerprint,
            settings={"sides": ",".join(sides)},
        ),
        workers,
        schema=DOCUMENT_SCHEMA,
        metadata=_metadata(redacted, codec),
    )


def labelled_samples(
    redacted: Table,
    side: str,
    codec: TextCodec,
    context: ContextConfig,
    cache: Location,
    workers: int,
) -> Table:
    """The labelled contexts of one side."""
    return prepare(
        f"samples-{side}",
        row_chunks(redacted.rows),
        BuildSamples(redacted.location, side, codec, context),
        cache,
        PreparationKey(
            content=redacted.fingerprint,
            code=code_of(_module(), contexts, samples, transcript, tokenizer),
            tokenizer=codec.fingerprint,
            settings={"side": side, "context": repr(context)},
        ),
        workers,
        schema=SAMPLE_SCHEMA,
        metadata=_metadata(redacted, codec),
    )


def text_documents(
    texts: Iterable[str], codec: TextCodec, folder: Location, origin: dict[str, str]
) -> Table:
    """Token documents of plain texts (stage 0), written at once."""
    from heliostat.data.table import TableWriter

    with TableWriter(folder, DOCUMENT_SCHEMA, origin) as writer:
        for number, batch in enumerate(_batched(texts, BATCH_CASES)):
            ids = [f"{number}-{index}" for index in range(len(batch))]
            writer.write(
                pa.record_batch(
                    {
                        "id": pa.array(ids, pa.string()),
                        "tokens": pa.array(
                            codec.encode(batch), DOCUMENT_SCHEMA.field("tokens").type
                        ),
                    },
                    schema=DOCUMENT_SCHEMA,
                )
            )
    return Table.open(folder)


def row_chunks(rows: int) -> list[range]:
    """Rows of a table, cut for preparation."""
    return [range(at, min(at + ROWS_PER_CHUNK, rows)) for at in range(0, rows, ROWS_PER_CHUNK)]


def redacted_case(row: dict[str, object]) -> RedactedCase:
    """A row of the redacted table as a case."""
    messages: list[dict[str, str]] = row["messages"]  # type: ignore[assignment]
    return RedactedCase(
        case_id=str(row["case_id"]),
        started_at=row["started_at"],  # type: ignore[arg-type]
        locale=str(row["locale"]),
        messages=tuple(
            Message(index, message["role"], message["text"], template_id=message["template_id"])  # type: ignore[arg-type]
            for index, message in enumerate(messages)
        ),
        redactor_version=str(row["redactor_version"]),
    )


def _redacted_cases(
    location: Location, rows: range, sides: tuple[str, ...]
) -> Iterator[list[RedactedCase]]:
    for batch in _redacted_batches(location, rows, sides):
        yield [redacted_case(row) for row in batch.to_pylist()]


def _redacted_batches(
    location: Location, rows: range, sides: tuple[str, ...]
) -> Iterator[pa.RecordBatch]:
    """The cases of some sides, in batches that are not empty."""
    table = Table.open(location)
    wanted = pa.array(sides, pa.string())
    for start in range(rows.start, rows.stop, BATCH_CASES):
        batch = table.take(range(start, min(start + BATCH_CASES, rows.stop)))
        found = batch.filter(pc.is_in(batch.column("side"), wanted)).combine_chunks()
        yield from found.to_batches()


def _versions(cases: Sequence[RedactedCase]) -> list[str]:
    return [case.redactor_version for case in cases]


def _metadata(redacted: Table, codec: TextCodec) -> dict[str, str]:
    version = redacted.metadata["redactor_version"]
    return {"redactor_version": version, "tokenizer": codec.fingerprint}


def _batched(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _module() -> ModuleType:
    import sys

    return sys.modules[__name__]

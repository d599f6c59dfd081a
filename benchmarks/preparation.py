"""Redact, tokenise and pack: Heliostat against Hugging Face `datasets.map` with `group_texts`.

Both read the same Parquet file of simulated support cases with the same redactor, the same
tokenizer and the same number of processes (one tokenizer thread each), keep the result on disk, and
end with every packed row read once. The peer is the usual recipe: one batched map that redacts each
message and tokenises each transcript, then the batched map `group_texts` of the transformers
examples. Ours is `redact_cases`, `documents` and `PackedStream`; it also checks every row of the
input against the schema and keeps the redacted cases. What is ours is how the redactor and the
tokenizer are called: for each distinct message, and the redactor (with `remembering`) not again for
what it has searched, which is often the same around a redacted value.

Before the timing both are run on the same cases and their tokens are compared.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import workload
from benchmarks.result import Measure, at_least, options, report
from heliostat.data.stream import PackedStream
from heliostat.storage import Location
from jobs.corpora.tokenizer import TextCodec
from jobs.support_templates.data import support_sim
from jobs.support_templates.data.sim_config import SimConfig
from jobs.support_templates.preparation import documents, redact_cases
from jobs.support_templates.redaction.redactor import build_redactor
from jobs.support_templates.split import SideRule
from jobs.support_templates.transcript import MESSAGE_SEPARATOR, ROLE_TAGS

SEQ_LEN = 128
READ_ROWS = 64
LIMIT = 2.0


def main() -> None:
    """Run the benchmark."""
    parser = options(__doc__ or "", pairs=5)
    parser.add_argument("--cases", type=int, default=6000)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    codec, _ = workload.transcripts()
    raw = simulated(given.cases)
    if given.processes > 1:
        from heliostat.cluster.ray_cluster import connect

        connect("local")
    check_equal(raw, given.cases, codec)
    ours: list[dict[str, float]] = []
    peer: list[dict[str, float]] = []
    for pair in range(given.pairs):
        turns = [(ours, prepare_ours), (peer, prepare_with_datasets)]
        for samples, prepare in turns if pair % 2 == 0 else reversed(turns):
            samples.append(timed(prepare, raw, given.cases, codec, given.processes))
    report("preparation", compare(given.processes, ours, peer), inputs(raw, given.cases), given.out)


def compare(
    processes: int, ours: list[dict[str, float]], peer: list[dict[str, float]]
) -> list[Measure]:
    """The measures; processor time is known only where there is one process."""
    kinds = {"wall_s": "time"} | ({"cpu_s": "processor time"} if processes == 1 else {})
    on = "1 process" if processes == 1 else f"{processes} processes"
    return [
        at_least(
            f"redact + tokenise + pack, {on}, {word}: datasets / Heliostat",
            [sample[kind] for sample in ours],
            [sample[kind] for sample in peer],
            LIMIT,
        )
        for kind, word in kinds.items()
    ]


def simulated(cases: int) -> Location:
    """The raw cases, made once."""
    return support_sim.cached_simulation(_simulator(cases), workload.cache())


def inputs(raw: Location, cases: int) -> dict[str, object]:
    """What there was to prepare."""
    import pyarrow.parquet as pq

    column = pq.read_table(str(raw.local_path / "cases-unlabelled.parquet"))["messages"]
    texts = [message["text"] for case in column.to_pylist() for message in case]
    return {
        "cases": cases,
        "messages": len(texts),
        "distinct_messages": len(set(texts)),
        "characters": sum(map(len, texts)),
        "seq_len": SEQ_LEN,
    }


def timed(
    prepare: Callable[..., Any], raw: Location, cases: int, codec: TextCodec, processes: int
) -> dict[str, float]:
    """Wall-clock and processor time of one preparation in an empty folder."""
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as folder:
        began, cpu = time.perf_counter(), time.process_time()
        prepare(raw, cases, codec, processes, Path(folder))
        return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}


def prepare_ours(
    raw: Location, cases: int, codec: TextCodec, processes: int, folder: Path
) -> list[list[int]]:
    """Heliostat's preparation; returns the token documents without end-of-text."""
    workers = 0 if processes == 1 else processes
    cache = Location.of(folder)
    redacted = redact_cases(
        # A validation share of nothing: every case is prepared, as in the peer.
        [(raw / "cases-unlabelled.parquet", SideRule("unlabelled", "benchmark", 0.5, 1e-12))],
        templates=frozenset(t.template_id for t in support_sim.templates(_simulator(cases))),
        presidio=False,
        cache=cache,
        workers=workers,
    )
    table = documents(redacted, ("pretrain",), codec, cache, workers)
    stream = PackedStream(
        table.location, seq_len=SEQ_LEN, seed=0, end_of_text=codec.end_of_text, pad=codec.pad
    )
    for start in range(0, stream.epoch_size, READ_ROWS):
        stream.samples(range(start, min(start + READ_ROWS, stream.epoch_size)))
    return table.column("tokens")


def prepare_with_datasets(
    raw: Location, cases: int, codec: TextCodec, processes: int, folder: Path
) -> Any:
    """The same with `datasets`; returns the column of token documents with end-of-text."""
    import datasets

    datasets.disable_progress_bars()
    source = str(raw.local_path / "cases-unlabelled.parquet")
    cases_set = datasets.Dataset.from_parquet(source, cache_dir=str(folder))
    num_proc = None if processes == 1 else processes
    tokenised = cases_set.map(
        RedactAndTokenise(codec),
        batched=True,
        num_proc=num_proc,
        remove_columns=cases_set.column_names,
    )
    packed = tokenised.map(
        group_texts, batched=True, num_proc=num_proc, remove_columns=tokenised.column_names
    )
    rows = packed.with_format("numpy")
    for start in range(0, len(rows), READ_ROWS):
        rows[start : start + READ_ROWS]
    return tokenised["input_ids"]


class RedactAndTokenise:
    """A batched map from cases to token documents that end in end-of-text."""

    def __init__(self, codec: TextCodec) -> None:
        self.codec = codec
        self.redactor = build_redactor(False)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Redact every message, join them with their role tags, tokenise."""
        redact = self.redactor.redact_text
        texts = [
            MESSAGE_SEPARATOR.join(
                f"{ROLE_TAGS[message['role']]}: {redact(message['text'])}" for message in messages
            )
            for messages in batch["messages"]
        ]
        end = self.codec.end_of_text
        return {"input_ids": [[*ids, end] for ids in self.codec.encode(texts)]}


def group_texts(batch: dict[str, list[list[int]]]) -> dict[str, list[list[int]]]:
    """Concatenate and cut, as in transformers' examples/pytorch/language-modeling/run_clm.py."""
    joined = [token for ids in batch["input_ids"] for token in ids]
    total = len(joined) // SEQ_LEN * SEQ_LEN
    cut = [joined[at : at + SEQ_LEN] for at in range(0, total, SEQ_LEN)]
    return {"input_ids": cut, "labels": [list(ids) for ids in cut]}


def check_equal(raw: Location, cases: int, codec: TextCodec) -> None:
    """Both preparations give the same documents; also warms both up."""
    with tempfile.TemporaryDirectory(prefix="heliostat-benchmark-") as folder:
        ours = prepare_ours(raw, cases, codec, 1, Path(folder) / "ours").to_pylist()
        theirs = prepare_with_datasets(raw, cases, codec, 1, Path(folder) / "peer")
        if [[*ids, codec.end_of_text] for ids in ours] != [list(ids) for ids in theirs]:
            raise SystemExit("the two preparations give different documents")


def _simulator(cases: int) -> SimConfig:
    return SimConfig(unlabelled_cases=cases, labelled_cases=1, validation_cases=1, test_cases=1)


if __name__ == "__main__":
    main()

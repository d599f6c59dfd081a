"""Where a bundle comes from: run, config, data, code, measured claim and the metrics of its card.

It is gathered when a bundle is registered, from the bundle and from the folder of its run, and kept
as tags of the version, so that it outlives that folder. What a job notes down in the metadata of
its bundle counts: `run`, `config` (the digest of what in the config decides the result) and `data`
(the fingerprint of what it was trained on).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from heliostat.errors import UserError
from heliostat.runs.bundle import CARD_NAME, read_manifest
from heliostat.runs.card import card_metrics
from heliostat.runs.claim import CLAIM_NAME, read_claim
from heliostat.runs.manifest import Manifest
from heliostat.runs.mlflow_registry import DIGEST_TAG, VERSION_TAG
from heliostat.runs.opening import IDENTITY_NAME, read_identity
from heliostat.runs.record import RESULT_NAME, RunRecord, read_record
from heliostat.storage import Location

_RUN = "heliostat.run"
_CONFIG = "heliostat.config"
_DATA = "heliostat.data"
_COMMIT = "heliostat.commit"
_METRICS = "heliostat.metrics"
_VERSIONS = "heliostat.versions"
_CLAIM_HOLDS = "heliostat.claim_holds"
_CLAIM_DATE = "heliostat.claim_date"
_CLAIM_RUN = "heliostat.claim_run"
CLAIM_TAGS = (_CLAIM_HOLDS, _CLAIM_DATE, _CLAIM_RUN)
WITH_CHANGES = " with changes"


@dataclass(frozen=True)
class ClaimNote:
    """Whether the claim of a job was measured to hold, and when."""

    holds: bool
    date: str
    run: str
    """The run that measured it."""

    def __str__(self) -> str:
        return f"{'holds' if self.holds else 'does not hold'}, measured {self.date} by {self.run}"


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from; None stands for what is not known."""

    run: str | None
    config: str | None
    """Digest of the run's config."""
    data: str | None
    """Fingerprint of the data."""
    commit: str | None
    """The git commit, `with changes` when files differed from it."""
    claim: ClaimNote | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of the bundle's card, in its order."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of Python and of the libraries that decide a result."""

    def tags(self) -> dict[str, str]:
        """The tags that keep it; what is not known has none."""
        known = {
            _RUN: self.run,
            _CONFIG: self.config,
            _DATA: self.data,
            _COMMIT: self.commit,
            _METRICS: json.dumps(dict(self.metrics)),
            _VERSIONS: json.dumps(dict(self.versions)),
        }
        claim = {}
        if self.claim is not None:
            holds = "true" if self.claim.holds else "false"
            claim = dict(zip(CLAIM_TAGS, (holds, self.claim.date, self.claim.run), strict=True))
        return {**{name: value for name, value in known.items() if value is not None}, **claim}


def provenance_of_tags(tags: Mapping[str, str]) -> Provenance:
    """What was kept as tags."""
    claim = None
    if _CLAIM_HOLDS in tags:
        holds = tags[_CLAIM_HOLDS] == "true"
        claim = ClaimNote(holds, tags.get(_CLAIM_DATE, "-"), tags.get(_CLAIM_RUN, "-"))
    return Provenance(
        run=tags.get(_RUN),
        config=tags.get(_CONFIG),
        data=tags.get(_DATA),
        commit=tags.get(_COMMIT),
        claim=claim,
        metrics=json.loads(tags.get(_METRICS, "{}")),
        versions=json.loads(tags.get(_VERSIONS, "{}")),
    )


def provenance_of_bundle(
    bundle: Location, manifest: Manifest, record: RunRecord | None
) -> Provenance:
    """What the bundle and the record of its run say."""
    metadata = manifest.metadata
    run = metadata.get("run", record and record.id)
    config = metadata.get("config", record and record.digest)
    data = metadata.get("data")
    code = record.code if record else {}
    commit = code.get("commit")
    return Provenance(
        run=None if run is None else str(run),
        config=None if config is None else str(config),
        data=None if data is None else str(data),
        commit=f"{commit}{WITH_CHANGES if code.get('dirty') else ''}" if commit else None,
        metrics=card_metrics((bundle / CARD_NAME).read_text()),
        versions=record.versions if record else {},
    )


def version_tags(manifest: Manifest, provenance: Provenance) -> dict[str, str]:
    """All tags of a version: what the content is, and where it comes from."""
    identity = {VERSION_TAG: manifest.version, DIGEST_TAG: manifest.digest}
    return {**identity, **provenance.tags()}


def tags_of_bundle(
    bundle: Location, record: RunRecord | None, claim: ClaimNote | None
) -> dict[str, str]:
    """All tags of a bundle that is about to be registered."""
    manifest = read_manifest(bundle)
    provenance = provenance_of_bundle(bundle, manifest, record)
    return version_tags(manifest, replace(provenance, claim=claim))


def with_newest_claim(provenance: Provenance, out: Location, job: str) -> Provenance:
    """The same with the claim of a job as it was measured last, also since the registration."""
    found = latest_claim(out, job)
    kept = provenance.claim
    if found is None or (kept is not None and kept.date >= found.date):
        return provenance
    return replace(provenance, claim=found)


def run_folder_of(bundle: Location, run: str | None, out: Location) -> Location | None:
    """The folder of the run that made a bundle: the one around it, or one of its name in `out`."""
    candidates = [bundle.parent] + ([out / run] if run else [])
    for folder in candidates:
        if (folder / IDENTITY_NAME).exists() and (folder / RESULT_NAME).exists():
            identity = read_identity(folder)
            if run is None or identity.id == run:
                return folder
    return None


def record_of(folder: Location | None) -> RunRecord | None:
    """The record in a run folder, where there is one."""
    return None if folder is None else read_record(folder)


def latest_claim(out: Location, job: str) -> ClaimNote | None:
    """What the newest measurement of a job's claim among the runs in `out` found."""
    notes = []
    for folder in out.list():
        file = folder / CLAIM_NAME
        if not file.exists():
            continue
        try:
            claim = read_claim(file)
        except UserError:
            continue  # a foreign or damaged file says nothing of the claim
        if claim.job == job:
            notes.append(ClaimNote(claim.holds, claim.date, folder.name))
    return max(notes, key=lambda note: note.date, default=None)

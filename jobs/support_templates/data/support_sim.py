"""The simulated support chat: seeded cases of a payments app with advocates, templates and time.

Which template is right depends on the issue (often named only two messages back), on the step
already taken, and on which of two issues is the current one. The unlabelled pool holds transcripts
with the advocates' replies, so a model that learns to predict their next token learns which reply
follows which complaint, though it never sees an opening of the other pools.

Two things come on top of complaint, reply and farewell, so that no label and no field of the schema
goes unused: some customers first complain without naming anything and get the template `clarify`,
and some advocates write a line of their own before they choose a template. Every case has random
streams of its own, derived from the seed, the pool and its number: cases are the same whichever
others are generated, and switching personal data off changes nothing else.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from hashlib import sha256
from itertools import accumulate
from random import Random

import pyarrow as pa
from faker import Faker

from heliostat.data.exclusive import only_one
from heliostat.data.key import code_of
from heliostat.storage import Location, digest
from jobs.support_templates.data.chat import Chat, GoldSpan
from jobs.support_templates.data.issues import Phrases, issues, phrases
from jobs.support_templates.data.rows import Case, Template
from jobs.support_templates.data.schema import write_cases, write_rows, write_templates
from jobs.support_templates.data.sim_config import POOLS, Pool, SimConfig
from jobs.support_templates.data.topics import Opening, Topic, topics
from jobs.support_templates.data.writing import Piece

GREETS_FIRST = 0.35
"""Share of cases that start with a bare greeting."""
VAGUE_FIRST = 0.1
"""Share of cases whose customer complains without naming anything before the opening."""
FREE_TEXT = 0.1
"""Share of issues where the advocate writes a line before the first template."""
FIX_FAILS = 0.5
"""Share of fixes that do not help."""
INSISTS = 0.4
"""Share of status replies after which the customer insists and is escalated."""
SECOND_ISSUE = 0.3
"""Share of cases with a second issue."""
SAYS_NO_MORE = 0.6
"""Share of cases whose customer answers the last question and gets the closing template."""

_AMOUNTS = (15, 20, 45, 60, 99, 120, 250, 800)

GOLD_SPANS_SCHEMA = pa.schema(
    [
        pa.field("case_id", pa.string(), nullable=False),
        pa.field("idx", pa.int32(), nullable=False),
        pa.field("start", pa.int32(), nullable=False),
        pa.field("end", pa.int32(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
    ]
)


def simulate(config: SimConfig, pool: Pool) -> Iterator[Case]:
    """The cases of a pool, oldest first."""
    for case, _ in simulate_with_spans(config, pool):
        yield case


def gold_spans(config: SimConfig, pool: Pool) -> Iterator[GoldSpan]:
    """Where the personal data are in the cases of a pool."""
    for _, spans in simulate_with_spans(config, pool):
        yield from spans


def simulate_with_spans(
    config: SimConfig, pool: Pool
) -> Iterator[tuple[Case, tuple[GoldSpan, ...]]]:
    """The cases of a pool, oldest first, each with the spans of its personal data."""
    known = topics(config)
    weights = list(accumulate((rank + 1) ** -config.zipf_exponent for rank in range(len(known))))
    replies = {template.template_id: template for template in templates(config)}
    fake = Faker("en_US")
    number_of_cases = config.cases(pool)
    for number in range(number_of_cases):
        case_id = f"{pool}-{number:07d}"
        random = Random(f"{config.seed}/{case_id}")
        days = config.span_days * (number + random.random()) / number_of_cases
        started_at = config.begin + timedelta(seconds=int(days * 86_400))
        chat = Chat(case_id, config, fake, replies, started_at, random)
        _converse(chat, pool, known, weights)
        yield chat.case(), tuple(chat.spans)


def templates(config: SimConfig) -> tuple[Template, ...]:
    """The templates of the simulated company, general ones first."""
    made = [
        _template(f"general.{name}", text["title"], text["body"], None, number, config)
        for number, (name, text) in enumerate(phrases().general.items())
    ]
    for topic in topics(config):
        for step, body in topic.templates.items():
            title = f"{topic.title} ({step})"
            template_id = topic.template_id(step)
            made.append(_template(template_id, title, body, topic, len(made), config))
    return tuple(made)


def write_simulation(config: SimConfig, folder: Location) -> dict[Pool, int]:
    """Write `cases-POOL.parquet`, `templates.parquet` and `gold_spans.parquet`; cases by pool."""
    spans: list[GoldSpan] = []
    written: dict[Pool, int] = {}
    for pool in POOLS:
        written[pool] = write_cases(folder / f"cases-{pool}.parquet", _collect(config, pool, spans))
    write_templates(folder / "templates.parquet", templates(config))
    write_rows(folder / "gold_spans.parquet", GOLD_SPANS_SCHEMA, spans, _span_row)
    return written


def cached_simulation(config: SimConfig, cache: Location) -> Location:
    """The folder with what `write_simulation` writes, made once."""
    own = (f"{__package__}.{name}" for name in ("support_sim", "chat", "topics", "writing"))
    code = code_of(*(sys.modules[name] for name in own))
    texts = f"{issues()!r}{phrases()!r}"
    if config.seed_utterances is not None:
        texts += digest(Location.of(config.seed_utterances))
    key = sha256(f"{code}{texts}{config!r}".encode()).hexdigest()[:16]
    folder = cache / f"support-sim-{key}"
    with only_one(folder):
        # The spans come last, so a folder that has them is complete.
        if not (folder / "gold_spans.parquet").exists():
            write_simulation(config, folder)
    return folder


def _collect(config: SimConfig, pool: Pool, into: list[GoldSpan]) -> Iterator[Case]:
    for case, spans in simulate_with_spans(config, pool):
        into.extend(spans)
        yield case


def _span_row(span: GoldSpan) -> dict[str, object]:
    return {name: getattr(span, name) for name in GOLD_SPANS_SCHEMA.names}


def _template(
    template_id: str, title: str, body: str, topic: Topic | None, number: int, config: SimConfig
) -> Template:
    """One template; those that were always there came over two years, one after another."""
    introduced = topic.introduced_at if topic else None
    retired = topic.retired_at if topic else None
    return Template(
        template_id=template_id,
        title=title,
        body=body,
        status="retired" if retired else "active",
        introduced_at=introduced or config.begin - timedelta(days=30 + 17 * number % 730),
        retired_at=retired,
        version=1 + number % 3,
    )


def _converse(chat: Chat, pool: Pool, known: Sequence[Topic], weights: Sequence[float]) -> None:
    """One case from greeting to farewell."""
    words = phrases()
    if chat.chance(GREETS_FIRST):
        chat.customer(chat.one_of(words.greetings))
        chat.say("system", chat.one_of(words.joined))
        chat.reply("general.greet")
    if chat.chance(VAGUE_FIRST):
        chat.customer(chat.one_of(words.vague))
        chat.reply("general.clarify")
    topic = _draw_topic(chat, known, weights, other_than=None)
    opening = chat.one_of(topic.openings[pool])
    chat.opening(_opening_pieces(chat, opening))
    _handle(chat, topic, opening, words)
    if chat.chance(SECOND_ISSUE):
        topic = _draw_topic(chat, known, weights, other_than=topic)
        opening = chat.one_of(topic.openings[pool])
        lead_in = chat.one_of(words.second_issue).removesuffix("{opening}")
        chat.opening([Piece(lead_in), *_opening_pieces(chat, opening)])
        _handle(chat, topic, opening, words)
    chat.customer(chat.one_of(words.thanks))
    chat.reply("general.anything_else")
    if chat.chance(SAYS_NO_MORE):
        chat.customer(chat.one_of(words.no_more))
        chat.reply("general.close")


def _handle(chat: Chat, topic: Topic, opening: Opening, words: Phrases) -> None:
    """The replies to one issue."""
    if chat.chance(FREE_TEXT):
        chat.say("advocate", chat.one_of(words.free_text))
    chat.reply(topic.template_id(opening.first))
    if opening.first == "info":
        chat.customer(_details(chat, words))
        insistence = words.news
    elif chat.chance(FIX_FAILS):
        chat.customer(chat.one_of(words.not_helped))
        insistence = words.not_helped_again
    else:
        return
    chat.reply(topic.template_id("status"))
    if chat.chance(INSISTS):
        chat.customer(chat.one_of(insistence))
        chat.reply("general.escalate")


def _draw_topic(
    chat: Chat, known: Sequence[Topic], weights: Sequence[float], other_than: Topic | None
) -> Topic:
    """A topic of that time by the law of frequencies; drawing again keeps the proportions."""
    while True:
        topic = chat.random.choices(known, cum_weights=weights)[0]
        if topic is not other_than and topic.is_current(chat.clock):
            return topic


def _opening_pieces(chat: Chat, opening: Opening) -> list[Piece]:
    if not opening.noun:
        return [Piece(opening.text, is_verbatim=True)]
    carrier = chat.one_of(phrases().carriers)
    text = carrier.format(noun=opening.noun, problem=opening.text)
    return [Piece(text[0].upper() + text[1:])]


def _details(chat: Chat, words: Phrases) -> str:
    return chat.one_of(words.answers).format(
        amount=f"${chat.random.choice(_AMOUNTS)}",
        day=chat.one_of(words.days),
        city=chat.one_of(words.cities),
        order=chat.random.randint(10_000, 99_999),
    )

"""Small closed lists that the rules for names ask: titles, particles, and words that are no names.

The large lists, names by the thousand, are in `lexicon`.
"""

from __future__ import annotations

from jobs.support_templates.redaction.lexicon import word_set

TITLES = word_set("mr mrs ms mx dr prof professor")
CAPITAL_TITLES = word_set("miss sir madam madame lady lord rev reverend capt captain sgt")
"""Titles that are also ordinary words, so that only a capital letter makes them titles."""

SUFFIXES = word_set("jr sr ii iii iv md dds dvm phd esq cpa mba msc")
DOTTED = word_set("jr sr esq")
PARTICLES = word_set(
    "de da do dos das di del della van von der den ter la le bin bint ibn al el st san y"
)
MODALS = frozenset({"will", "may", "can"})

NEVER_NAMES = word_set(
    "ai an angle art brain carry chance china date desire dot else era ha hang hung in loan "
    "long ma man manual many mi min miss my numbers ok pa page ping season see so soon spring "
    "ta the van vi buddy dear guy honey lady love man son sunshine sweet sir"
)
"""Words of the list of given names that no cue turns into a name."""

CALENDAR = word_set("january february march april june july august monday friday saturday sunday")
"""Given names that are dates, unless capitalised beside a surname."""

NEVER_CUED = NEVER_NAMES | CALENDAR
NEVER_ALONE = NEVER_CUED | MODALS

NEVER_MENTIONED = word_set(
    "africa america asia carolina china dallas france georgia houston india ireland israel "
    "kenya london milan paris tennessee virginia york alpha chase clay crystal dell delta "
    "diamond echo genesis liberty loan major marina max meta nova omega royal sage sierra "
    "star sterling trinity valentine"
)
"""Given names that after "to" or "from" are places, shops, banks or currencies."""

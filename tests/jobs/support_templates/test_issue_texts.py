"""The packaged texts: enough of them, and none that gives two answers to one complaint."""

from __future__ import annotations

from itertools import product
from string import Formatter

from jobs.support_templates.data.issues import FIRST_STEPS, issues, phrases
from jobs.support_templates.data.writing import KINDS


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def test_every_issue_has_its_nouns_problems_and_templates() -> None:
    assert len(issues()) >= 24
    for issue in issues():
        assert len(set(issue.nouns)) >= 5
        problems = [problem for step in FIRST_STEPS for problem in issue.problems[step]]
        assert len(set(problems)) == len(problems) >= 5
        assert set(issue.templates) == {"info", "fix", "status"}


def test_no_complaint_has_two_answers() -> None:
    complaints = [
        f"{noun} {problem}"
        for issue in issues()
        for step in FIRST_STEPS
        for noun, problem in product(issue.nouns, issue.problems[step])
    ]
    assert len(set(complaints)) == len(complaints)


def test_no_two_templates_say_the_same() -> None:
    bodies = [body for issue in issues() for body in issue.templates.values()]
    bodies += [text["body"] for text in phrases().general.values()]
    assert len(set(bodies)) == len(bodies)


def test_a_template_shares_a_word_with_its_issue_or_title() -> None:
    for issue in issues():
        own = f"{issue.title} {' '.join(issue.nouns)} {issue.id.replace('_', ' ')}"
        stems = {word[:5] for word in own.lower().split() if len(word) > 2}
        for body in issue.templates.values():
            assert any(word[:5] in stems for word in body.lower().replace(",", "").split()), body


def test_there_are_at_least_twelve_carriers_with_both_fields() -> None:
    assert len(set(phrases().carriers)) >= 12
    assert all(fields(one) == {"noun", "problem"} for one in phrases().carriers)
    assert all(one.endswith("{opening}") for one in phrases().second_issue)


def test_every_kind_of_personal_data_has_sentences() -> None:
    assert set(phrases().personal) == set(KINDS)
    for kind, sentences in phrases().personal.items():
        assert len(sentences) >= 5
        assert all(fields(one) == {kind} for one in sentences)

"""Tables and sentences of judged claims, from a few made-up ones."""

import re

import pytest
from test_claims import GOOD, judgement

from calib_study.claims import Claim, Judged
from calib_study.claims_tables import (
    claims_table,
    count_table,
    describe_counts,
    describe_reliance,
    of_paper,
    untested_table,
    verdict_frame,
)

CHAPTERS = ("01_data_sources", "11_measuring")


def claim(name: str, **change: object) -> Claim:
    return Claim.model_validate(GOOD | {"id": name, "title": f"Title of {name}", "chapters": CHAPTERS} | change)


@pytest.fixture
def rows() -> list[Judged]:
    """Return one supported claim, one mixed, one half computed, one not tested; the last two of another paper."""
    both = [(CHAPTERS[0], judgement("J2")), (CHAPTERS[1], judgement("J2", "not supported"))]
    other = {"paper": "shin2024rethinking"}
    untested = claim("S2", rule=None, chapters=(), untested="No time | nor room.", **other)
    return [
        Judged(claim("J1"), ((CHAPTERS[0], judgement("J1")), (CHAPTERS[1], judgement("J1")))),
        Judged(claim("J2", untested="Other models."), tuple(both)),
        Judged(claim("S1", **other), ((CHAPTERS[1], judgement("S1")),), ((CHAPTERS[0], "not computed: run it"),)),
        Judged(untested),
    ]


def cells(line: str) -> list[str]:
    """Return the cells of a row of a Markdown table."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_a_row_for_each_judgement(rows: list[Judged]) -> None:
    frame = verdict_frame(rows)
    assert frame["id"].tolist() == ["J1", "J1", "J2", "J2", "S1", "S2"]
    assert frame["word"].tolist() == ["supported"] * 2 + ["mixed"] * 2 + ["supported", "not tested"]
    assert frame["verdict"].tolist() == ["supported"] * 3 + ["not supported", "supported", "not tested"]
    assert frame["chapter"].tolist()[:5] == [*CHAPTERS, *CHAPTERS, CHAPTERS[1]] and frame["chapter"].isna()[5]


def test_verdicts_are_counted_by_paper(rows: list[Judged]) -> None:
    table = count_table(rows)
    assert table.index.tolist() == ["Ji et al. 2025", "Shin et al. 2024", "all"]
    assert table.loc["all"].to_dict() == {
        "supported": 2, "not supported": 0, "inconclusive": 0, "mixed": 1, "not computed": 0, "not tested": 1,
    }  # fmt: skip
    assert table.loc["Ji et al. 2025", ["supported", "mixed"]].tolist() == [1, 1]
    said = describe_counts(rows)
    assert said == ("4 claims: 2 supported, 1 mixed, 1 not tested. They rest on 5 judgements of 2 chapters.")


def test_the_table_lists_all_judgements_with_links(rows: list[Judged]) -> None:
    head, rule, *lines = claims_table(rows).splitlines()
    assert [len(cells(line)) for line in (head, rule, *lines)] == [4] * 6
    word, *found = cells(lines[1])[3].split("<br>")
    assert word == "**mixed**"
    assert found == [
        "• 0.1 [0.0, 0.2] nats per token: supported ([chapter 1](01_data_sources.html), "
        "[figure](01_data_sources.html#fig-x))",
        "• 0.1 [0.0, 0.2] nats per token: not supported ([chapter 11](11_measuring.html), "
        "[figure](11_measuring.html#fig-x))",
    ]
    assert cells(lines[1])[1].endswith("*(first hand: the abstract)*")
    assert cells(lines[2])[3].endswith("<br>• [chapter 1](01_data_sources.html): not computed: run it")
    assert cells(lines[3])[2:] == ["–", r"**not tested**<br>No time \| nor room."]


def test_what_is_not_tested_of_which_claim(rows: list[Judged]) -> None:
    lines = untested_table(rows).splitlines()[2:]
    assert [cells(line) for line in lines] == [
        ["**J2** Title of J2", "part of it", "Other models."],
        ["**S2** Title of S2", "all of it", r"No time \| nor room."],
    ]


def test_what_a_reader_may_rely_on(rows: list[Judged]) -> None:
    assert describe_reliance(rows).splitlines() == [
        "- **Holds for this model, at these sizes** (2 of 4): Title of J1 (J1); Title of S1 (S1).",
        "- **Holds in part: judgements differ** (1 of 4): Title of J2 (J2, 1 supported, 1 not supported).",
        "- **Not tested** (1 of 4): Title of S2 (S2).",
    ]


def test_claims_of_one_paper(rows: list[Judged]) -> None:
    assert [row.claim.id for row in of_paper(rows, "shin2024rethinking")] == ["S1", "S2"]

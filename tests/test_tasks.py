"""Scores of models whose answers are known, on every task, and the harness's own evaluation as a check."""

import math
from functools import cache
from pathlib import Path

import lm_eval
import numpy as np
import pytest
import yaml
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from numpy.testing import assert_allclose, assert_array_equal
from task_answers import ARCHIVE, NAMES, TABLES, Fake, gold, noise, preferring, table

from calib_study.errors import InputError, NumericalError
from calib_study.fetch import read_member
from calib_study.study import Laboratory
from calib_study.task_data import choose_items, task_entry
from calib_study.task_items import TaskResult
from calib_study.task_prompts import prepare
from calib_study.tasks import run_tasks

pytestmark = pytest.mark.real
LIMIT = 20


@cache
def random_scores(num_fewshot: int | None = None) -> dict[str, TaskResult]:
    return {result.task: result for result in run_tasks(Fake(noise), NAMES, limit=LIMIT, num_fewshot=num_fewshot)}


# --- known answers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", NAMES)
def test_a_model_that_prefers_the_right_answer_scores_one(task: str) -> None:
    right = gold(task)
    (result,) = run_tasks(preferring(lambda request: request.idx == right[request.doc_id]), [task], limit=LIMIT)
    assert result.n_total == len(right)
    assert {name: metric.value for name, metric in result.metrics.items()} == dict.fromkeys(result.metrics, 1.0)
    assert result.value == 1.0 and result.correct.all() and result.correct.shape == (LIMIT,)
    assert_array_equal(result.chosen, result.gold)
    assert_array_equal(result.gold, [right[item] for item in result.item_ids])


@pytest.mark.parametrize("task", NAMES)
def test_a_model_that_prefers_the_first_answer_scores_its_base_rate(task: str) -> None:
    """All answers alike is the same: the first of equals is taken."""
    right = [gold(task)[item] for item in choose_items(task, len(gold(task)), LIMIT, 0)]
    rate = sum(answer == 0 for answer in right) / LIMIT
    for model in (preferring(lambda request: request.idx == 0), Fake(lambda _: (-1.0, True))):
        (result,) = run_tasks(model, [task], limit=LIMIT)
        assert_allclose(result.metrics["acc"].value, rate, rtol=1e-12)
        assert_array_equal(result.chosen, np.zeros(LIMIT))
        if result.correct_norm is not None and result.loglikelihoods.min() < -1:
            assert_allclose(result.metrics["acc_norm"].value, rate, rtol=1e-12)


def test_a_model_that_is_never_right_scores_nothing() -> None:
    right = gold("hellaswag")
    model = preferring(lambda request: request.idx == (right[request.doc_id] + 1) % 4)
    (result,) = run_tasks(model, ["hellaswag"], limit=LIMIT)
    assert [metric.value for metric in result.metrics.values()] == [0, 0] and not result.correct.any()
    (result,) = run_tasks(Fake(lambda _: (-2.0, False)), ["lambada_openai"], limit=LIMIT)
    assert result.value == 0 and set(result.chosen.tolist()) == {-1}
    assert_allclose(result.metrics["perplexity"].value, math.exp(2), rtol=1e-12)


# --- against the harness's own evaluation -----------------------------------------------------------------


def pooled(result: TaskResult) -> float:
    """Standard error of a mean over items of k subjects: (sum of squares within subjects / (n - k) / n) ** 0.5."""
    within = 0.0
    for part in range(len(result.parts)):
        own = result.correct[result.part_of == part]
        within += ((own - own.mean()) ** 2).sum()
    return math.sqrt(within / (LIMIT - len(result.parts)) / LIMIT)


def test_scores_equal_those_of_the_harness_on_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same definitions, run by `lm_eval.evaluator.evaluate`: every metric, and the standard errors of means."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    made = {name: prepare(name, LIMIT, 0, None) for name in NAMES}
    loaded = {
        "tasks": {leaf.task_name: leaf for prepared in made.values() for leaf in prepared.leaves},
        "groups": {"mmlu": made["mmlu"].group},
    }
    theirs = lm_eval.evaluate(lm=Fake(noise), task_dict=loaded, bootstrap_iters=1000, log_samples=False)["results"]
    for name, ours in random_scores().items():
        metrics = {key.split(",")[0] for key in theirs[name] if ",none" in key and "_stderr" not in key}
        assert set(ours.metrics) == metrics
        for key, metric in ours.metrics.items():
            assert_allclose(metric.value, theirs[name][f"{key},none"], rtol=1e-12)
            stderr = theirs[name][f"{key}_stderr,none"]
            if name == "mmlu":
                assert stderr == "N/A"  # the harness gives up where a subject has one item
                stderr = pooled(ours)
            # Perplexity: to first order, against a bootstrap; the distribution is skewed.
            assert_allclose(metric.stderr, stderr, rtol=0.3 if key == "perplexity" else 1e-9)
            assert metric.n == LIMIT and metric.higher_is_better is (key != "perplexity")


def test_scores_equal_those_of_definitions_loaded_by_the_harness(tmp_path: Path) -> None:
    """Its own loader, the whole split read by `datasets` from a file, and the items chosen by its `samples`."""
    paths = {
        "piqa": ("piqa/piqa.yaml", {"validation": "piqa/plain_text/validation"}),
        "copa": ("super_glue/copa/default.yaml", {"validation": "super_glue/copa/validation"}),
        "mmlu_professional_law": (
            "mmlu/default/mmlu_professional_law.yaml",
            {split: f"hails/mmlu_no_train/professional_law/{split}" for split in ("dev", "test")},
        ),
    }
    folder = Path(lm_eval.__file__).parent / "tasks"
    for name, (file_name, splits) in paths.items():
        files = {split: tmp_path / f"{name}-{split}.arrow" for split in splits}
        for split, file in files.items():
            file.write_bytes(read_member(ARCHIVE, TABLES.format(splits[split])))
        data = {
            "data_files": {split: str(file) for split, file in files.items()},
            "cache_dir": str(tmp_path / "cache"),
        }
        own = {"include": str(folder / file_name), "task": f"own_{name}", "dataset_path": "arrow"}
        (tmp_path / f"{name}.yaml").write_text(
            yaml.safe_dump({**own, "dataset_name": None, "dataset_kwargs": data, "training_split": None})
        )
    before = [subject for subject in task_entry("mmlu").subjects if subject < "professional_law"]
    start = sum(len(table(f"hails/mmlu_no_train/{subject}/test")) for subject in before)
    ours = random_scores()
    mmlu = ours["mmlu"].item_ids[ours["mmlu"].part_of == ours["mmlu"].parts.index("mmlu_professional_law")] - start
    ids = {"own_piqa": ours["piqa"].item_ids, "own_copa": ours["copa"].item_ids, "own_mmlu_professional_law": mmlu}
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    for shots in (0, 5):
        chosen = {name: found.tolist() for name, found in ids.items() if ("mmlu" in name) == (shots == 5)}
        loaded = manager.load(list(chosen))
        for definition in loaded["tasks"].values():
            definition.set_config("num_fewshot", shots)
        theirs = lm_eval.evaluate(Fake(noise), loaded, samples=chosen, bootstrap_iters=0)["samples"]
        for name, samples in theirs.items():
            result = ours[name.removeprefix("own_").split("_")[0]]
            row = {item: index for index, item in enumerate(result.item_ids.tolist())}
            assert len(samples) > 0
            for sample in samples:
                index = row[sample["doc_id"] + (start if "mmlu" in name else 0)]
                values = [answer[0] for answer in sample["filtered_resps"]]
                assert_array_equal(result.loglikelihoods[index], np.float32(values))
                assert result.correct[index] == sample["acc"]
                if "acc_norm" in sample:
                    assert result.correct_norm is not None and result.correct_norm[index] == sample["acc_norm"]


# --- results ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", NAMES)
def test_a_result_can_be_computed_again_from_its_items(task: str) -> None:
    result = random_scores()[task]
    given = ~np.isnan(result.loglikelihoods)
    assert_array_equal(given, result.n_bytes > 0)
    assert_array_equal(given, result.n_chars > 0)
    for i, (values, chars) in enumerate(zip(result.loglikelihoods.astype(float), result.n_chars, strict=True)):
        n = given[i].sum()
        if n > 1:
            assert result.chosen[i] == max(range(n), key=lambda j: (values[j], -j))
            assert result.correct[i] == (result.chosen[i] == result.gold[i])
        if result.correct_norm is not None:
            best = max(range(n), key=lambda j: (values[j] / chars[j], -j))
            assert result.correct_norm[i] == (best == result.gold[i])
    p = result.correct.mean()
    assert_allclose(result.metrics["acc"].value, p, rtol=1e-12)
    if len(result.parts) == 1:
        assert_allclose(result.metrics["acc"].stderr, math.sqrt(p * (1 - p) / (LIMIT - 1)), rtol=1e-9)
    if task == "lambada_openai":
        nats = result.loglikelihoods[:, 0].astype(float)
        perplexity = math.exp(-nats.mean())
        assert_allclose(result.metrics["perplexity"].value, perplexity, rtol=1e-12)
        assert_allclose(
            result.metrics["perplexity"].stderr, perplexity * nats.std(ddof=1) / math.sqrt(LIMIT), rtol=1e-9
        )


def test_lengths_are_of_the_answers_and_of_what_is_scored() -> None:
    result = random_scores()["piqa"]
    rows = table("piqa/plain_text/validation")
    for i, item in enumerate(result.item_ids):
        answers = [rows[item]["sol1"], rows[item]["sol2"]]
        assert result.n_chars[i].tolist() == [len(answer) for answer in answers]
        assert result.n_bytes[i].tolist() == [1 + len(answer.encode()) for answer in answers]  # and a space


def test_the_average_over_subjects_is_that_over_items() -> None:
    """A model that is right in one subject only: its items / all items, whatever the number of subjects."""
    right = gold("mmlu")
    model = preferring(
        lambda request: (request.idx == right[request.doc_id]) == (request.task_name == "mmlu_professional_law")
    )
    (result,) = run_tasks(model, ["mmlu"], limit=LIMIT)
    law = result.parts.index("mmlu_professional_law")
    assert_array_equal(result.correct, result.part_of == law)
    assert_allclose(result.metrics["acc"].value, (result.part_of == law).mean(), rtol=1e-12)
    assert result.metrics["acc"].stderr == 0  # no subject varies within itself
    assert result.parts == tuple(sorted(result.parts)) and len(result.parts) < 57


def test_a_score_of_one_item_has_no_standard_error() -> None:
    for result in run_tasks(Fake(noise), ["copa", "mmlu", "lambada_openai"], limit=1):
        assert [metric.stderr for metric in result.metrics.values()] == [None] * len(result.metrics)
        assert len(result.item_ids) == result.metrics["acc"].n == 1


def test_the_same_seed_scores_the_same_items_and_another_others() -> None:
    first, again, other = (run_tasks(Fake(noise), ["sciq"], limit=20, seed=seed)[0] for seed in (5, 5, 6))
    assert_array_equal(first.item_ids, again.item_ids)
    assert_array_equal(first.loglikelihoods, again.loglikelihoods)
    assert (first.limit, first.seed, other.seed) == (20, 5, 6)
    assert len(np.intersect1d(first.item_ids, other.item_ids)) < 5
    assert_array_equal(np.unique(first.item_ids), first.item_ids)


def test_each_call_asks_the_model_and_tasks_do_not_share_calls() -> None:
    """What is kept for the process are prompts: another model gets other scores."""
    (one,) = run_tasks(preferring(lambda request: request.idx == 0), ["copa"])
    (two,) = run_tasks(preferring(lambda request: request.idx == 1), ["copa"])
    assert one.value + two.value == 1 and one.value != two.value
    calls: list[int] = []

    class Counting(Fake):
        def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
            calls.append(len(requests))
            return super().loglikelihood(requests)

    results = run_tasks(Counting(noise), ["rte", "copa"], limit=7)
    assert [result.task for result in results] == ["rte", "copa"] and calls == [14, 14]


# --- what goes wrong --------------------------------------------------------------------------------------


def test_what_cannot_be_asked_is_refused_before_the_model_is() -> None:
    model = Fake(noise)
    for names, options in ((["copa", "pica"], {}), (["copa"], {"limit": 0}), (["copa"], {"num_fewshot": 1})):
        with pytest.raises(InputError):
            run_tasks(model, names, **options)
    assert not model.asked


def test_a_loglikelihood_that_is_not_a_number_is_an_error_with_the_tasks_name() -> None:
    with pytest.raises(NumericalError, match="task 'copa': the model gives log-likelihoods that are not finite"):
        run_tasks(Fake(lambda request: (math.nan, False)), ["copa"], limit=3)
    with pytest.raises(NumericalError, match="are not finite"):
        run_tasks(Fake(lambda request: (-math.inf, False)), ["lambada_openai"], limit=3)
    with pytest.raises(NumericalError, match=r"task 'lambada_openai': perplexity is too large .* is -1000"):
        run_tasks(Fake(lambda request: (-1000.0, False)), ["lambada_openai"], limit=3)


# --- a real model -----------------------------------------------------------------------------------------


def test_the_default_model_answers_better_than_chance(smollm: Laboratory) -> None:
    """Measured 11 of 16 items of COPA, where chance is 8, in the harness's own model class."""
    smollm.dense.restore()
    model = HFLM(pretrained=smollm.dense.model, tokenizer=smollm.dense.tokenizer, device="cpu", batch_size=16)
    (result,) = run_tasks(model, ["copa"], limit=16)
    assert result.correct.sum() >= 10

"""Prompts: those of another harness, examples before an item, and tasks of the hub."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import lm_eval
import pytest
import yaml
from lm_eval.tasks import TaskManager
from numpy.testing import assert_allclose
from task_answers import Fake, noise, preferring, requests, table

from calib_study.errors import DataError, InputError
from calib_study.task_data import choose_items
from calib_study.task_prompts import prepare
from calib_study.tasks import run_tasks

pytestmark = pytest.mark.real
LIMIT = 10


def asked(task: str, **options: Any) -> dict[int, list[tuple[str, str]]]:
    """What a model is asked, by item."""
    model = Fake(noise)
    run_tasks(model, [task], **options)
    found: dict[int, list[tuple[str, str]]] = {}
    for request in model.asked:
        found.setdefault(request.doc_id, []).append(request.args)
    return found


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ("hellaswag", "hellaswag/rc_0shot"),
        ("winogrande", "winogrande/rc_0shot"),
        ("lambada_openai", "lambada/bpb_0shot"),
    ],
)
def test_prompts_equal_those_of_another_harness(task: str, path: str) -> None:
    """The archive has ready requests in the same format for these tasks.

    Of two full stops in a row, which brackets cut out of HellaSwag leave, that harness keeps one.
    """
    ours = asked(task, limit=LIMIT)
    theirs: dict[int, list[tuple[str, ...]]] = {}
    for request in requests(path, ours):
        text = request["request"]
        theirs.setdefault(request["doc_id"], []).append((text["context"], text["continuation"]))
    for item, found in ours.items():
        if task == "hellaswag":
            found = [tuple(text.replace("..", ".") for text in pair) for pair in found]
        assert found == theirs[item]


def test_the_prompt_of_an_item() -> None:
    assert asked("rte", limit=None)[0] == [
        (
            "Dana Reeve, the widow of the actor Christopher Reeve, has died of lung cancer at age 44, according to the "
            "Christopher Reeve Foundation.\nQuestion: Christopher Reeve had an accident. True or False?\nAnswer:",
            answer,
        )
        for answer in (" True", " False")
    ]


def test_examples_come_before_the_items_of_mmlu() -> None:
    with_examples, without = asked("mmlu", limit=LIMIT), asked("mmlu", limit=LIMIT, num_fewshot=0)
    assert with_examples.keys() == without.keys()
    for item, ((context, answer), *_) in with_examples.items():
        bare = without[item][0][0]
        head, _, question = bare.partition("\n\n")
        assert head.startswith("The following are multiple choice questions (with answers) about")
        assert context.startswith(head) and context.endswith("\n\n" + question) and answer == " A"
        assert context.count("\nAnswer:") - question.count("\nAnswer:") == 5


def test_the_examples_of_a_subject_are_the_first_of_its_dev_split() -> None:
    model = Fake(noise)
    run_tasks(model, ["mmlu"], limit=5, num_fewshot=2)
    for request in model.asked:
        examples = table(f"hails/mmlu_no_train/{request.task_name.removeprefix('mmlu_')}/dev")
        blocks = request.args[0].split("\n\n")
        assert len(blocks) >= 4
        for block, example in zip(blocks[1:3], examples, strict=False):
            assert block.startswith(example["question"]) and block.endswith("Answer: " + "ABCD"[example["answer"]])


def test_preparing_leaves_the_harness_as_it_was() -> None:
    run_tasks(Fake(noise), ["rte"], limit=3, seed=99)
    assert "from_string" not in vars(lm_eval.utils.env)
    assert not datasets.are_progress_bars_disabled()


# --- tasks of the hub -------------------------------------------------------------------------------------

TOY = [{"question": f"{i} + 1?", "answers": [str(i), str(i + 1)], "right": 1} for i in range(7)]
OWN: dict[str, Any] = {
    "dataset_path": "nobody/toy",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "answers",
    "doc_to_target": "right",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A harness that has registered only the definitions given, and a hub with one data set."""

    def register(rows: Sequence[dict[str, Any]] = TOY, **definitions: dict[str, Any]) -> None:
        for name, definition in definitions.items():
            (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(definition))
        manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
        monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda: manager)
        found = datasets.DatasetDict({"test": datasets.Dataset.from_list(list(rows))})
        monkeypatch.setattr("datasets.load_dataset", lambda **_: found)
        prepare.cache_clear()

    return register


def test_any_registered_definition_can_be_run_as_it_is(hub: Callable[..., None]) -> None:
    hub(toy={**OWN, "task": "toy"})
    (result,) = run_tasks(preferring(lambda request: request.idx == 1), ["hub:toy"], limit=5)
    assert (result.task, result.split, result.n_total, result.value) == ("hub:toy", "test", 7, 1.0)
    assert result.item_ids.tolist() == choose_items("toy", 7, 5, 0)
    (result,) = run_tasks(preferring(lambda request: request.idx == 0), ["hub:toy"])
    assert result.value == 0 and len(result.item_ids) == 7


def test_a_registered_group_is_averaged_as_it_says(hub: Callable[..., None]) -> None:
    group = {"group": "both", "task": ["one", "two"], "aggregate_metric_list": [{"metric": "acc"}]}
    hub(one={**OWN, "task": "one"}, two={**OWN, "task": "two"}, both=group)
    (result,) = run_tasks(preferring(lambda r: r.idx == (r.task_name == "one")), ["hub:both"], limit=10)
    assert result.parts == ("one", "two") and result.n_total == 14 and len(result.item_ids) == 10
    assert_allclose(result.value, (result.item_ids < 7).mean(), rtol=1e-12)


def test_what_a_registered_definition_cannot_be(hub: Callable[..., None]) -> None:
    written = {**OWN, "task": "written", "output_type": "generate_until", "doc_to_choice": None}
    scored = {**OWN, "task": "scored", "metric_list": [{"metric": "mcc"}]}
    hub(
        toy={**OWN, "task": "toy", "tag": "both"},
        wrong={**OWN, "task": "wrong", "doc_to_target": "{{9 if question[0] == '3' else 1}}", "tag": "both"},
        written={**written, "metric_list": [{"metric": "exact_match"}]},
        scored=scored,
    )
    model = Fake(noise)
    for name, said in (
        ("hub:toi", "unknown task of lm-evaluation-harness 'toi'. Did you mean 'toy'"),
        ("hub:written", "scored by generate_until; only log-likelihoods"),
        ("hub:scored", r"metrics of its own \(mcc\); can be: acc, acc_norm, perplexity"),
        ("hub:both", "stands for 2 tasks without an average"),
    ):
        with pytest.raises(InputError, match=said):
            run_tasks(model, [name])
    with pytest.raises(DataError, match="task wrong, item 3: 9 is none of its 2 answers"):
        run_tasks(model, ["hub:wrong"])
    assert not model.asked

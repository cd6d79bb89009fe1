"""What a task asks of a model: prompts and answers, made by the official definitions of lm-evaluation-harness.

None of it depends on the model, so it is prepared once for the process, and an evaluation costs its forwards.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import lm_eval.tasks
import lm_eval.utils
import numpy as np
from lm_eval.api.group import Group
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml
from numpy.typing import NDArray

from calib_study.catalogue import SUBJECT, TaskEntry
from calib_study.errors import DataError, InputError, unknown
from calib_study.progress import bar
from calib_study.task_data import HUB, choose_items, load_split, task_entry
from calib_study.task_items import Ints

FEWSHOT_SEED = 1234  # the harness's own, for definitions that draw their examples
METRICS = ("acc", "acc_norm", "perplexity")  # those that calib_study.tasks computes
LONG = 2000  # items whose preparation takes long enough for a progress bar


@dataclass(frozen=True)
class _Leaf:
    """A definition without subtasks: how many items it has, and how to make the task and documents of some of them."""

    n: int
    make: Callable[[list[int]], tuple[ConfigurableTask, Sequence[Mapping[str, Any]]]]


@dataclass(frozen=True)
class _Item:
    """What is asked of a model about one document: a request for each answer, whose lengths are in characters."""

    item_id: int
    part: int
    requests: tuple[Instance, ...]
    n_chars: tuple[int, ...]
    gold: int


@dataclass(frozen=True, eq=False)
class Prepared:
    """All of an evaluation that does not depend on the model; `given` (n, most answers) says which answers exist."""

    split: str
    n_total: int
    leaves: tuple[ConfigurableTask, ...]
    group: Group | None
    requests: tuple[Instance, ...]
    given: NDArray[np.bool_]
    part_of: Ints
    item_ids: Ints
    gold: Ints
    n_chars: Ints
    n_bytes: Ints


def padded(given: NDArray[np.bool_], values: Sequence[Any], fill: float, dtype: type) -> NDArray[Any]:
    """Return the values of all answers, item by item, as a table with `fill` where there is no answer."""
    table: NDArray[Any] = np.full(given.shape, fill, dtype)
    table[given] = values
    return table


@cache
def prepare(name: str, limit: int | None, seed: int, num_fewshot: int | None) -> Prepared:
    """Return the chosen items of a task with their requests; kept for the life of the process."""
    with _preparing():
        if name.startswith(HUB):
            leaves, group, split = _from_hub(name)
            shots = num_fewshot
        else:
            entry = task_entry(name)
            leaves, group, split = _from_catalogue(entry)
            shots = entry.num_fewshot if num_fewshot is None else num_fewshot
        n_total = sum(leaf.n for leaf in leaves)
        chosen = choose_items(name.removeprefix(HUB), n_total, limit, seed)
        made, items = _make_items(name, leaves, chosen, shots)
    if group is not None:
        for task in made:
            group.add(task)
    requests = tuple(request for item in items for request in item.requests)
    counts = np.array([len(item.requests) for item in items])
    given = np.arange(counts.max()) < counts[:, None]
    arrays = {
        "given": given,
        "part_of": np.array([item.part for item in items]),
        "item_ids": np.array([item.item_id for item in items]),
        "gold": np.array([item.gold for item in items]),
        "n_chars": padded(given, [n for item in items for n in item.n_chars], 0, np.int64),
        "n_bytes": padded(given, [len(request.args[1].encode()) for request in requests], 0, np.int64),
    }
    for array in arrays.values():
        array.setflags(write=False)  # results share them
    return Prepared(split, n_total, tuple(made), group, requests, **arrays)


def _make_items(
    name: str, leaves: Sequence[_Leaf], chosen: Sequence[int], shots: int | None
) -> tuple[list[ConfigurableTask], list[_Item]]:
    """Return the tasks that have chosen items, and these items in order. Ids count through the leaves."""
    made: list[ConfigurableTask] = []
    items: list[_Item] = []
    start = 0
    with bar(len(chosen), f"prepare {name}", "item", shown=len(chosen) > LONG) as shown:
        for leaf in leaves:
            own = [item - start for item in chosen if start <= item < start + leaf.n]
            if own:
                task, docs = leaf.make(own)
                _check_scorable(name, task)
                if shots is not None or task.config.num_fewshot is None:
                    task.set_config("num_fewshot", shots or 0)
                task.set_fewshot_seed(FEWSHOT_SEED)
                for row, doc in zip(own, docs, strict=True):
                    items.append(_item(task, doc, start + row, len(made)))
                    shown.update(1)
                made.append(task)
            start += leaf.n
    return made, items


def _item(task: ConfigurableTask, doc: Mapping[str, Any], item_id: int, part: int) -> _Item:
    """Return the requests of one document, made by its official definition, and the index of the right answer."""
    prefix = task.doc_to_prefix(doc)
    context = task.fewshot_context(doc, num_fewshot=task.config.num_fewshot, gen_prefix=prefix)
    requests = task.construct_requests(doc=doc, ctx=context, metadata=(task.task_name, item_id, 1))
    if isinstance(requests, Instance):  # one answer, which is right if greedy decoding writes it
        return _Item(item_id, part, (requests,), (len(requests.args[1]),), 0)
    answers = task.doc_to_choice(doc)
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    if isinstance(gold, str) and gold in answers:
        gold = answers.index(gold)
    if not isinstance(gold, int) or not 0 <= gold < len(answers):
        raise DataError(f"task {task.task_name}, item {item_id}: {gold!r} is none of its {len(answers)} answers.")
    return _Item(item_id, part, tuple(requests), tuple(len(answer) for answer in answers), gold)


def _check_scorable(name: str, task: ConfigurableTask) -> None:
    """Raise InputError for a task that is not scored by log-likelihoods, or by a metric we do not compute."""
    if task.OUTPUT_TYPE not in ("multiple_choice", "loglikelihood"):
        raise InputError(f"task {name!r} is scored by {task.OUTPUT_TYPE}; only log-likelihoods of answers can be.")
    others = sorted(set(task.aggregation()) - set(METRICS))
    if others or task.config.filter_list or callable(task.config.process_results):
        raise InputError(f"task {name!r} has metrics of its own ({', '.join(others)}); can be: {', '.join(METRICS)}.")


def _from_catalogue(entry: TaskEntry) -> tuple[list[_Leaf], Group | None, str]:
    """Return the definitions of a task with the catalogue's data, how to average them, and the split scored."""
    folder = Path(lm_eval.tasks.__file__).parent
    leaves = [_catalogue_leaf(entry, folder, subject) for subject in entry.subjects or (None,)]
    group = Group.from_config(load_yaml(folder / entry.group)) if entry.group else None
    return leaves, group, entry.split


def _catalogue_leaf(entry: TaskEntry, folder: Path, subject: str | None) -> _Leaf:
    parts = {part.split: part for part in entry.data_of(subject)}
    scored = load_split(parts.pop(entry.split))

    def make(rows: list[int]) -> tuple[ConfigurableTask, Sequence[Mapping[str, Any]]]:
        tables = {split: load_split(part) for split, part in parts.items()} | {entry.split: scored.take(rows)}
        data = {split: datasets.Dataset(datasets.table.InMemoryTable(table)) for split, table in tables.items()}
        config = load_yaml(folder / entry.definition.replace(SUBJECT, subject or ""))
        config.pop("tag", None)
        config.update(
            custom_dataset=lambda **_: data,
            training_split=None,
            validation_split="validation" if entry.split == "validation" else None,
            test_split="test" if entry.split == "test" else None,
        )
        if not entry.max_fewshot:
            config["fewshot_config"] = {"samples": []}
        task = ConfigurableTask(config=config)
        return task, task.task_docs

    return _Leaf(scored.num_rows, make)


def _from_hub(name: str) -> tuple[list[_Leaf], Group | None, str]:
    """Return the definitions of a task as the harness has registered them, with their own data."""
    manager = lm_eval.tasks.TaskManager()
    asked = name.removeprefix(HUB)
    if asked not in manager.all_tasks:
        raise unknown("task of lm-evaluation-harness", asked, manager.all_tasks)
    found = manager.load([asked])
    tasks = list(found["tasks"].values())
    registered = found.get("groups", {}).get(asked)
    group = None
    if registered is not None and registered.has_aggregation:
        group = Group(asked, aggregate_metric_list=registered.aggregate_metric_list)
    elif len(tasks) > 1:
        raise InputError(f"{name!r} stands for {len(tasks)} tasks without an average; name one of them.")
    return [_hub_leaf(task) for task in tasks], group, "test" if tasks[0].has_test_docs() else "validation"


def _hub_leaf(task: ConfigurableTask) -> _Leaf:
    return _Leaf(len(task.task_docs), lambda rows: (task, task.task_docs.select(rows)))


@contextmanager
def _preparing() -> Iterator[None]:
    """Within the block the harness compiles each template once, not once an item, and it and `datasets` are silent."""
    log, templates = logging.getLogger("lm_eval"), lm_eval.utils.env
    level, shown = log.level, not datasets.are_progress_bars_disabled()
    log.setLevel(logging.ERROR)  # it reports on each of 57 subjects
    datasets.disable_progress_bars()
    templates.from_string = cache(templates.from_string)
    try:
        yield
    finally:
        del templates.from_string
        log.setLevel(level)
        if shown:
            datasets.enable_progress_bars()

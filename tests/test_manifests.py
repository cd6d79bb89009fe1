"""Requests: every problem is named, and what is left out is what the paper's code does."""

from typing import Any

import pytest
from pydantic import ValidationError

from calib_study.errors import InputError
from calib_study.manifests import Filter, Manifest, Synthesis, TextFacts, checked_request, parse_drop

GOOD: dict[str, Any] = {"model": "m", "prefix_source": "c4", "n_texts": 3, "new_tokens": 5}


def test_defaults_are_the_papers() -> None:
    request = checked_request(Synthesis, **GOOD)
    rules = (request.temperature, request.top_k, request.top_p, request.repetition_penalty, request.prefix_len)
    assert rules == (0.6, 50, 0.95, 1.2, 2)
    assert (request.end_of_text, request.seed, request.start_token) == ("stop", 0, True)
    assert request.origin == "text that m wrote after 2 tokens of c4"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temprature": 1}, "unknown parameter 'temprature'. Did you mean 'temperature'?"),
        ({"temperature": 0}, "temperature = 0: Input should be greater than 0"),
        ({"temperature": float("inf")}, "temperature = inf: Input should be a finite number"),
        ({"top_k": -1}, "top_k = -1: Input should be greater than or equal to 0"),
        ({"top_p": 1.1}, "top_p = 1.1: Input should be less than or equal to 1"),
        ({"repetition_penalty": 0}, "repetition_penalty = 0: Input should be greater than 0"),
        ({"n_texts": 0}, "n_texts = 0"),
        ({"new_tokens": 0}, "new_tokens = 0"),
        ({"seed": -1}, "seed = -1"),
        (
            {"end_of_text": "stpo"},
            "unknown end-of-text policy 'stpo'. Did you mean 'stop'? Allowed: ban, continue, stop.",
        ),
        ({"end_of_text": 3}, "unknown end-of-text policy '3'"),
        ({"prefix_source": None}, "prefixes of 2 tokens need a source; or ask for prefix_len 0."),
        ({"prefix_len": 0}, "prefixes of 0 tokens come from no source; leave it out."),
        ({"prefix_len": 0, "prefix_source": None, "start_token": False}, "has to begin with the start token"),
    ],
)
def test_bad_requests_of_a_synthesis(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match="bad request of a synthesis") as caught:
        checked_request(Synthesis, **(GOOD | change))
    assert said in str(caught.value)


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        checked_request(Synthesis, **GOOD, topk=3, temperature=-1)
    assert "'topk'" in str(caught.value) and "temperature = -1" in str(caught.value)


def test_no_prefix_needs_no_source() -> None:
    request = checked_request(Synthesis, **(GOOD | {"prefix_len": 0, "prefix_source": None}))
    assert request.origin == "text that m wrote after nothing"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tpo:20", "unknown end to drop 'tpo'. Did you mean 'top'?"),
        ("top", "drop 'top': expected an end and a percentage between 0 and 100, like 'top:20'"),
        ("top:x", "drop 'top:x'"),
        ("bottom:0", "like 'bottom:20'"),
        ("random:100", "drop 'random:100'"),
        ("top:nan", "drop 'top:nan'"),
    ],
)
def test_bad_filters(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_drop(text)
    assert said in str(caught.value)
    with pytest.raises(InputError, match="bad request of a filter"):
        checked_request(Filter, parent="c4", parent_hash="0", drop=text)


def test_a_manifest_survives_its_file() -> None:
    parent = checked_request(Synthesis, **GOOD)
    manifest = Manifest(
        request=checked_request(Filter, parent="selfgen:a", parent_hash="0", drop="top:20"),
        parents=(parent,),
        documents_sha256="0",
        counts={"before": 2, "kept": 1},
        texts=(TextFacts(index=1, n_scored=2, perplexity=3.5),),
        environment={"threads": 1, "versions": {"torch": "2"}},
        finished="now",
    )
    assert Manifest.model_validate_json(manifest.model_dump_json(exclude_none=True)) == manifest
    assert manifest.request.origin == "selfgen:a without 20 % of its texts (top perplexities)"
    with pytest.raises(ValidationError, match="finite number"):
        TextFacts(index=0, n_scored=1, perplexity=float("nan"))

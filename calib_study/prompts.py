"""What a synthesis continues, and how token ids become text: prompts, their random numbers, ends of texts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calib_study.errors import InputError
from calib_study.manifests import EndOfText, Synthesis
from calib_study.sources import load_documents
from calib_study.windows import separator_id, tokenized

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prompt:
    """What a text continues: token ids, of which the first `n_start` are no part of it, and its random numbers.

    Attributes:
        index: the text's number.
        uniforms: a number in [0, 1) for each token that is to be drawn.
    """

    index: int
    tokens: tuple[int, ...]
    n_start: int
    uniforms: NDArray[np.float64]


@dataclass(frozen=True)
class Ends:
    """The ids that end a text, and what happens when one is drawn; `manifests.Synthesis` says what each policy does."""

    ids: tuple[int, ...]
    policy: EndOfText = "stop"


def prompts_of(request: Synthesis, tokenizer: "PreTrainedTokenizerBase") -> list[Prompt]:
    """Return the prompt of every text: start token, first tokens of a document, random numbers from (seed, index).

    Raises InputError if fewer documents than texts have so many tokens.
    """
    start = [start_id(tokenizer)] if request.start_token else []
    prefixes: list[Sequence[int]] = [()] * request.n_texts
    if request.prefix_source is not None:
        documents = tokenized(load_documents(request.prefix_source, "calibration"), tokenizer)
        order = np.random.default_rng(request.seed).permutation(len(documents))
        long_enough = [documents[i] for i in order if len(documents[i]) >= request.prefix_len]
        check_enough(request, len(long_enough), f"documents of {request.prefix_len} tokens or more")
        prefixes = [document[: request.prefix_len].tolist() for document in long_enough[: request.n_texts]]
    return [
        Prompt(index, (*start, *prefix), len(start), uniforms(request.seed, index, request.new_tokens))
        for index, prefix in enumerate(prefixes)
    ]


def uniforms(seed: int, index: int, n: int) -> NDArray[np.float64]:
    """Return the random numbers of one text: those of text `index` under `seed`, whatever other texts there are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,))).random(n)


def start_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the token that a text begins after: what the tokenizer puts before one, or else what ends the last."""
    opening = tokenizer("")["input_ids"]
    return int(opening[0]) if opening else separator_id(tokenizer)


def ends_of(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", request: Synthesis) -> Ends:
    """Return the ids that end a text, the separator of documents first, with the policy for them."""
    named = [tokenizer.eos_token_id]
    if model.generation_config is not None:
        stops = model.generation_config.eos_token_id
        named += stops if isinstance(stops, list) else [stops]
    ids = dict.fromkeys([separator_id(tokenizer), *(int(token) for token in named if token is not None)])
    return Ends(tuple(ids), request.end_of_text)


def decoded(ids: Sequence[int], tokenizer: "PreTrainedTokenizerBase", ends: Ends) -> str:
    """Return the text of token ids: end-of-text as it is written, no other special token, no half character at the end.

    Tokenised again, it gives the same ids except where a tokenizer would have cut the text elsewhere.
    """
    pieces: list[list[int]] = [[]]
    for token in ids:
        if token in ends.ids:
            pieces.append([])
        else:
            pieces[-1].append(token)
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    separator = str(tokenizer.convert_ids_to_tokens(ends.ids[0]))
    return separator.join(str(tokenizer.decode(piece, **options)) for piece in pieces).rstrip("\ufffd")


def check_enough(request: Synthesis, n_documents: int, what: str) -> None:
    """Raise InputError unless there are as many documents as texts; `what` says which documents were counted."""
    if n_documents < request.n_texts:
        raise InputError(
            f"source {request.prefix_source!r} has {n_documents} calibration {what}, and each begins one text: "
            f"{request.n_texts} texts were asked. Ask for fewer, or take another source."
        )

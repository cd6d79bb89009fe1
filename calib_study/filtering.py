"""The perplexity filter: the texts of a source that are left when one end of their perplexities is dropped.

Source: Ji et al. 2025, section 4, and their code: the dense model scores every text of its own, perplexity =
exp(mean loss of a token), and what is not strictly below the 80th percentile (numpy's) is dropped. Differs in that
other ends, shares and scorers can be chosen; dropping as many at random is the control.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib_study.errors import InputError
from calib_study.export import dtype_on
from calib_study.generated import check_target, document_lines, generated_folder, read_manifest, write_generated
from calib_study.manifests import Filter, Manifest, TextFacts, checked_request, parse_drop
from calib_study.model_files import ModelRef, resolve_model
from calib_study.preflight import check_lengths
from calib_study.progress import bar
from calib_study.prompts import start_id
from calib_study.sources import content_hash, load_documents, resolve_source
from calib_study.synthesis import Echo, content_of, default_name, summary, target

if TYPE_CHECKING:
    from calib_study.models import DenseModel

MAX_TOKENS = 2048  # of a text, as the papers' windows
TEXTS_AT_ONCE = 64  # between two steps of the progress bar


def kept(perplexities: ArrayLike, drop: str, seed: int = 0) -> tuple[NDArray[np.bool_], float | None]:
    """Return which texts a filter keeps, and the perplexity at which it cuts (None for random ones).

    top:p keeps what is strictly below the (100 - p)th percentile, bottom:p what is strictly above the pth. The
    percentile is numpy's: linear between the two nearest. random:p treats a permutation as if it were perplexities,
    and so drops as many as top:p does where no two are equal.

    >>> kept([1.0, 9.0, 2.0, 3.0, 4.0, 5.0], "top:20")[0].tolist()  # 80th percentile: 5.0
    [True, False, True, True, True, False]
    """
    end, percent = parse_drop(drop)
    values = np.asarray(perplexities, dtype=np.float64)
    if end == "random":
        ranks = np.random.default_rng(seed).permutation(len(values))
        return kept(ranks, f"top:{percent}")[0], None
    if end == "bottom":
        cut = float(np.percentile(values, percent))
        return values > cut, cut
    cut = float(np.percentile(values, 100 - percent))
    return values < cut, cut


@dataclass(frozen=True)
class FilterJob:
    """A checked request of `calib-study filter`.

    Attributes:
        scorer: None if the parent's manifest has the perplexities, or none are needed.
        folder, source: where the filtered source will be, and how it is called.
    """

    request: Filter
    scorer: ModelRef | None
    folder: Path
    source: str
    device: str

    @classmethod
    def checked(
        cls,
        *,
        source: str,
        drop: str,
        seed: int = 0,
        scorer: str | None = None,
        max_tokens: int | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        name: str | None = None,
        out: Path | None = None,
        remote_code: bool = False,
    ) -> "FilterJob":
        """Return the job. Raises InputError for anything that would fail later, without loading a model."""
        end, _ = parse_drop(drop)
        if seed and end != "random":
            raise InputError(f"--seed is for random:P; {drop!r} drops by perplexity alone.")
        if max_tokens is not None and scorer is None:
            raise InputError("--max-tokens is for --scorer; without one, perplexities are those of the generator.")
        parent = resolve_source(source)
        folder = generated_folder(parent)
        has_scores = folder is not None and all(text.perplexity is not None for text in read_manifest(folder).texts)
        if not has_scores and scorer is None and end != "random":
            raise InputError(f"no model has scored the texts of {source!r}: name a --scorer.")
        fields: dict[str, Any] = {"parent": parent, "drop": drop, "seed": seed}
        ref = None
        if scorer is not None:
            ref = resolve_model(scorer, remote_code=remote_code)
            tokens = min(MAX_TOKENS, (ref.context_length or MAX_TOKENS) - 1) if max_tokens is None else max_tokens
            check_lengths(ref, {"start token + --max-tokens =": tokens + 1})
            fields |= {"scorer": ref.name, "dtype": dtype_on(device, dtype), "max_tokens": tokens}
            fields["scorer_hash"] = content_of(ref)
        fields["parent_hash"] = content_hash(load_documents(parent, "calibration"))
        request = checked_request(Filter, **fields)
        folder, called = target(name, out, default_name(request))
        check_target(folder, request)
        return cls(request, ref, folder, called, device)

    def run(self, echo: Echo) -> Manifest:
        """Write the source unless it is there, and return its manifest; `echo` gets a few lines for the user."""
        if not check_target(self.folder, self.request):
            self._write()
        manifest = read_manifest(self.folder)
        if manifest.threshold is not None:
            echo(f"cut at perplexity {manifest.threshold:.4f}")
        for line in summary(manifest):
            echo(line)
        return manifest

    def _write(self) -> None:
        from calib_study.environment import describe_environment
        from calib_study.matmul import select_float32_matmul

        parent, documents = self.request.parent, load_documents(self.request.parent, "calibration")
        folder = generated_folder(parent)
        manifest = read_manifest(folder) if folder else None
        facts = list(manifest.texts) if manifest else [TextFacts(index=i, n_scored=0) for i in range(len(documents))]
        matmul = select_float32_matmul() if self.device == "cpu" else "default"
        weights = None
        if self.scorer is not None:
            facts, weights = self._scored(documents, facts)
        values = [float("nan") if text.perplexity is None else text.perplexity for text in facts]
        chosen, threshold = kept(values, self.request.drop, self.request.seed)
        if not chosen.any():
            raise InputError(f"{self.request.drop} leaves none of the {len(documents)} texts of {parent!r}.")
        write_generated(
            self.folder,
            document_lines([text for text, stays in zip(documents, chosen, strict=True) if stays]),
            request=self.request,
            parents=(manifest.request, *manifest.parents) if manifest else (),
            counts={"before": len(documents), "kept": int(chosen.sum())},
            weights_sha256=weights,
            threshold=threshold,
            texts=tuple(text for text, stays in zip(facts, chosen, strict=True) if stays),
            environment=describe_environment(self.device, matmul).model_dump(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _scored(self, documents: Sequence[str], facts: Sequence[TextFacts]) -> tuple[list[TextFacts], str]:
        """Return the facts with the scorer's perplexities instead, and the hash of its weights."""
        from calib_study.models import check_device, load_model

        assert self.scorer is not None and self.request.max_tokens is not None
        check_device(self.device)
        dense = load_model(self.scorer, dtype=self.request.dtype or "float32", device=self.device, keep=False)
        scores = text_perplexities(dense, documents, max_tokens=self.request.max_tokens)
        new = [
            text.model_copy(update={"perplexity": float(f"{value:.5g}"), "n_scored": n})
            for text, (value, n) in zip(facts, scores, strict=True)
        ]
        return new, dense.weights_sha256()


def text_perplexities(dense: "DenseModel", texts: Sequence[str], *, max_tokens: int) -> list[tuple[float, int]]:
    """Return the perplexity of each text and how many tokens it is over: all, up to `max_tokens`, after a start token.

    exp of the mean of -ln p(token | those before it). Raises NumericalError if one is not finite.
    """
    from calib_study.perplexity import padded, perplexity

    start = [start_id(dense.tokenizer)]
    scores: list[tuple[float, int]] = []
    with bar(len(texts), "scoring", "text") as progress:
        for first in range(0, len(texts), TEXTS_AT_ONCE):
            some = list(texts[first : first + TEXTS_AT_ONCE])
            ids = dense.tokenizer(some, add_special_tokens=False, return_attention_mask=False)["input_ids"]
            windows, scored = padded([np.array([*start, *row], np.int64) for row in ids], seq_len=1 + max_tokens)
            found = perplexity(dense.model, windows, scored)
            scores += zip(found.mean_window_perplexity.by_window, found.tokens_by_window, strict=True)
            progress.update(len(some))
    return scores

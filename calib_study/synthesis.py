"""Text of a model's own as a calibration source: from a request to a folder that is a source like any other.

Source: Ji et al. 2025, sections 4 and 5, and their code: the model continues a few tokens of real documents. Differs
in that a prefix never comes from held-out text, that the start token is not counted in it, and that the random numbers
of a text are its own, so that neither the batch nor the other texts decide it.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calib_study.catalogue import load_catalogue
from calib_study.errors import InputError
from calib_study.export import dtype_on
from calib_study.generated import (
    SELFGEN,
    check_target,
    document_lines,
    named_folder,
    read_manifest,
    write_generated,
)
from calib_study.manifests import Filter, Manifest, Synthesis, checked_request
from calib_study.model_files import ModelRef, resolve_model
from calib_study.preflight import check_lengths
from calib_study.progress import bar
from calib_study.prompts import Ends, Prompt, check_enough, decoded, ends_of, prompts_of
from calib_study.sources import clean, content_hash, load_documents, normalised, resolve_source
from calib_study.text_parts import Parts, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Echo = Callable[[str], Any]


@dataclass(frozen=True)
class SynthesisJob:
    """A checked request of `calib-study synthesize`.

    Attributes:
        folder: where the source will be.
        source: the name under which it can be used: "selfgen:NAME", or the folder's path.
    """

    ref: ModelRef
    request: Synthesis
    folder: Path
    source: str
    device: str
    batch_size: int | None

    @classmethod
    def checked(
        cls,
        *,
        model: str,
        prefix_source: str | None,
        dtype: str = "float32",
        device: str = "cpu",
        batch_size: int | None = None,
        name: str | None = None,
        out: Path | None = None,
        remote_code: bool = False,
        **parameters: Any,
    ) -> "SynthesisJob":
        """Return the job. Raises InputError for anything that would fail later, without loading a model.

        `parameters` are the other fields of `manifests.Synthesis`.
        """
        if batch_size is not None and batch_size < 1:
            raise InputError(f"--batch-size {batch_size}: at least 1 text is written at a time.")
        ref = resolve_model(model, remote_code=remote_code)
        fields: dict[str, Any] = {"model": ref.name, "dtype": dtype_on(device, dtype), **parameters}
        request = checked_request(Synthesis, **fields, prefix_source=prefix_source and resolve_source(prefix_source))
        check_lengths(ref, {"start token + prefix + new tokens =": 1 + request.prefix_len + request.new_tokens})
        fields["model_hash"] = content_of(ref)
        if request.prefix_source is not None:
            documents = load_documents(request.prefix_source, "calibration")
            fields |= {"prefix_source": request.prefix_source, "prefix_hash": content_hash(documents)}
            check_enough(request, len(documents), "documents")
        request = checked_request(Synthesis, **fields)
        folder, source = target(name, out, default_name(request))
        check_target(folder, request)
        return cls(ref, request, folder, source, device, batch_size)

    def run(self, echo: Echo) -> Manifest:
        """Write the source, or what is missing of it, and return its manifest; `echo` gets a few lines for the user."""
        parts = Parts(self.request)
        with parts.locked(echo):
            if not check_target(self.folder, self.request):
                self._write(parts)
        manifest = read_manifest(self.folder)
        for line in summary(manifest):
            echo(line)
        return manifest

    def _write(self, parts: Parts) -> None:
        from calib_study.environment import describe_environment
        from calib_study.matmul import keep_freed_memory, select_float32_matmul
        from calib_study.models import check_device, load_model, load_tokenizer

        check_device(self.device)
        prompts = prompts_of(self.request, load_tokenizer(self.ref))
        matmul = select_float32_matmul() if self.device == "cpu" else "default"
        keep_freed_memory()
        dense = load_model(self.ref, dtype=self.request.dtype, device=self.device, keep=False)
        ends = ends_of(dense.model, dense.tokenizer, self.request)
        self._write_missing(parts, prompts, dense.model, ends)
        found = parts.read()
        chosen = [found[prompt.index] for prompt in prompts]
        kept, counts = usable(chosen, [decoded(row.ids, dense.tokenizer, ends) for row in chosen])
        if not kept:
            raise InputError(f"none of the {len(chosen)} texts can be used: {counts}. Ask for more, or longer ones.")
        write_generated(
            self.folder,
            document_lines([text for text, _ in kept], [row.ids for _, row in kept]),
            request=self.request,
            counts=counts,
            weights_sha256=dense.weights_sha256(),
            texts=tuple(row.facts for _, row in kept),
            environment=describe_environment(self.device, matmul).model_dump(),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def _write_missing(self, parts: Parts, prompts: Sequence[Prompt], model: "PreTrainedModel", ends: Ends) -> None:
        """Write the texts that are not there yet, and keep each as soon as it is finished."""
        from calib_study.generation import check_written, write
        from calib_study.sampling import Sampling

        there = parts.read()
        missing = [prompt for prompt in prompts if prompt.index not in there]
        steps = len(prompts[0].tokens) + self.request.new_tokens - 1  # of a text that is not stopped
        rules = self.request.model_dump(include={"temperature", "top_k", "top_p", "repetition_penalty"})
        checked, done = False, steps * (len(prompts) - len(missing))
        with bar(steps * len(prompts), f"writing {len(missing)} texts", "token", initial=done) as progress:
            for finished in write(
                model,
                missing,
                sampling=Sampling(**rules),
                ends=ends,
                batch_size=self.batch_size,
                on_step=progress.update,
            ):
                if finished and not checked:
                    check_written(model, finished[0])
                    checked = True
                parts.put([Row.of(text) for text in finished])
                progress.update(sum(steps - text.read for text in finished))


def content_of(ref: ModelRef) -> str | None:
    """Return what pins a model's content: the hash of its files, a hub commit, or the catalogue's hash."""
    return load_catalogue().models[ref.name].sha256 if ref.kind == "packaged" else ref.content_hash()


def target(name: str | None, out: Path | None, default: str) -> tuple[Path, str]:
    """Return the folder to write to, and how a source there is called. Raises InputError for two targets."""
    if name is not None and out is not None:
        raise InputError("give --name or --out, not both.")
    if out is not None:
        folder = out.expanduser().resolve()
        return folder, str(folder)
    folder = named_folder(name or default)
    return folder, SELFGEN + folder.name


def default_name(request: Synthesis | Filter) -> str:
    """Return a name that says what is requested, and differs where anything does."""
    if isinstance(request, Synthesis):
        said = [request.model, Path(request.prefix_source or "start").stem, str(request.prefix_len)]
    else:
        said = [Path(request.parent.removeprefix(SELFGEN)).name, request.drop]
    digest = hashlib.sha256(request.model_dump_json().encode()).hexdigest()[:8]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join([*said, digest])).lstrip("._-")


def summary(manifest: Manifest) -> list[str]:
    """Return a few lines about a generated source."""
    counts = ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in manifest.counts.items() if number)
    lines = [f"{len(manifest.texts)} texts ({counts})"]
    if scored := [text.perplexity for text in manifest.texts if text.perplexity is not None]:
        low, middle, high = np.percentile(scored, [10, 50, 90])
        lines.append(f"perplexity of a text: median {middle:.2f}, 10th to 90th percentile {low:.2f} to {high:.2f}")
    if shares := [text.repeated for text in manifest.texts if text.repeated is not None]:
        loops = sum(share > 0.5 for share in shares)
        lines.append(f"4-grams that a text had before: {np.mean(shares):.1%}; more than half in {loops} texts")
    return lines


def usable(rows: Iterable[Row], texts: Iterable[str]) -> tuple[list[tuple[str, Row]], dict[str, int]]:
    """Return the texts that can be documents, cleaned as documents are, and how many are what.

    Not usable are texts without letters or a score, with a broken character, or equal to an earlier one.
    """
    kept: dict[str, tuple[str, Row]] = {}
    counts = dict.fromkeys(("asked", "kept", "end_of_text", "empty", "broken", "repeated"), 0)
    for row, text in zip(rows, texts, strict=True):
        counts["asked"] += 1
        counts["end_of_text"] += bool(row.facts.ends)
        if not normalised(text) or row.facts.perplexity is None:
            counts["empty"] += 1
        elif not (cleaned := clean([text])):
            counts["broken"] += 1
        elif normalised(text) in kept:
            counts["repeated"] += 1
        else:
            kept[normalised(text)] = (cleaned[0], row)
    counts["kept"] = len(kept)
    return list(kept.values()), counts

"""One pruned model as a directory: weights, tokenizer, calibration tokens and the record, written all or not at all."""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib_study.errors import InputError
from calib_study.methods import Pattern, method_named
from calib_study.model_files import ModelRef, resolve_model
from calib_study.preflight import check_new_directory, check_spec
from calib_study.sources import resolve_source, source_hash
from calib_study.specs import Evaluation, RunSpec, make_spec
from calib_study.windows import Windows, load_tokens

N_SAMPLES, SEQ_LEN = 32, 256
DTYPES = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class PruneJob:
    """A checked request of `calib-study prune`."""

    ref: ModelRef
    spec: RunSpec
    tokens_file: Path | None
    device: str
    out: Path

    @classmethod
    def checked(
        cls,
        *,
        model: str,
        method: str,
        sparsity: float | None,
        pattern: str,
        source: str | None,
        n_samples: int | None,
        seq_len: int | None,
        seed: int,
        policy: str,
        calibration_tokens: Path | None,
        evaluate: str,
        remote_code: bool,
        dtype: str,
        device: str,
        out: Path,
    ) -> "PruneJob":
        """Return the job. Raises InputError for anything that would fail later, without loading a model."""
        needs = method_named(method)
        sparsity = _sparsity(sparsity, pattern, method)
        if calibration_tokens is not None and source is not None:
            raise InputError("give --source or --calibration-tokens, not both.")
        if not needs.needs_calibration and calibration_tokens is not None:
            raise InputError(f"method {method!r} uses no calibration text; leave --calibration-tokens out.")
        if source is not None:
            resolve_source(source)
        ref = resolve_model(model, remote_code=remote_code)
        windows = None
        if calibration_tokens is not None:
            windows = load_tokens(calibration_tokens, vocab_size=ref.vocab_size, n_samples=n_samples, seq_len=seq_len)
            source = f"tokens:{calibration_tokens.name}"
        shape = windows.tokens.shape if windows else (n_samples, seq_len)
        spec = make_spec(
            model=ref.name,
            model_hash=ref.content_hash(),
            method=method,
            sparsity=sparsity,
            pattern=pattern,
            source=source,
            source_hash=source_hash(source) if source and not windows else None,
            policy=policy,
            n_samples=N_SAMPLES if shape[0] is None else shape[0],
            seq_len=SEQ_LEN if shape[1] is None else shape[1],
            seed=seed,
            dtype=_dtype(dtype, device),
            tokens_sha256=windows.sha256 if windows else None,
            evaluation=Evaluation(sources=tuple(name for name in evaluate.split(",") if name)),
        )
        check_spec(spec, ref)
        check_new_directory(out)
        return cls(ref, spec, calibration_tokens, device, out)

    def run(self, echo: Callable[[str], Any]) -> None:
        """Prune, evaluate and write the directory; `echo` gets a few lines for the user."""
        from calib_study.study import Laboratory

        lab = Laboratory(self.ref, dtype=self.spec.dtype, device=self.device, tokens_file=self.tokens_file)
        record = lab.run(self.spec, progress=True)
        self._write(lab, record.to_json(), lab.calibration_windows(self.spec))
        echo(f"{self.spec.title}: {record.sparsity.overall:.4%} of the block linears' weights are zero.")
        for metric in record.metrics:
            if metric.name == "perplexity":
                echo(f"perplexity on held-out {metric.dataset}: {metric.value:.2f} ({metric.n:,} tokens)")

    def _write(self, lab: Any, record: str, windows: Windows | None) -> None:
        """Write everything beside the target, then put it in place, replacing an earlier output."""
        from calib_study.windows import save_tokens

        with tempfile.TemporaryDirectory(prefix=f".{self.out.name}.", dir=self.out.parent) as folder:
            new = Path(folder) / "new"
            lab.dense.model.save_pretrained(new)
            lab.dense.tokenizer.save_pretrained(new)
            (new / "record.json").write_text(record, encoding="utf-8")
            if windows is not None:
                save_tokens(windows, new / "calibration_tokens.npy")
            if self.out.exists():
                shutil.move(self.out, Path(folder) / "old")
            shutil.move(new, self.out)


def _sparsity(sparsity: float | None, pattern: str, method: str) -> float:
    """Return the sparsity asked for, or the one that an N:M pattern implies."""
    implied = Pattern.parse(pattern).sparsity
    if sparsity is not None:
        return sparsity
    if implied is None and method != "dense":
        raise InputError("--sparsity is needed for the unstructured pattern, for example --sparsity 0.5.")
    return implied or 0.0


def _dtype(dtype: str, device: str) -> str:
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: allowed are {', '.join(DTYPES)}.")
    if dtype != "auto":
        return dtype
    from calib_study.models import choose_dtype

    return choose_dtype(dtype, device)

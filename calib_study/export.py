"""One pruned model as a directory: weights, tokenizer, calibration tokens and the record, written all or not at all."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from calib_study.errors import InputError
from calib_study.methods import Pattern, method_named
from calib_study.model_files import ModelRef, resolve_model
from calib_study.preflight import check_new_directory, check_specs, evaluation_of
from calib_study.sources import resolve_source, source_hash
from calib_study.specs import RunSpec, checked_owl, make_spec
from calib_study.windows import Windows, load_tokens

N_SAMPLES, SEQ_LEN, EVAL_SEQ_LEN = 32, 256, 512
DTYPES = ("float32", "bfloat16", "auto")


@dataclass(frozen=True)
class PruneJob:
    """A checked request of `calib-study prune`."""

    ref: ModelRef
    spec: RunSpec
    tokens_file: Path | None
    device: str
    out: Path
    offload: bool = False
    hidden: Literal["device", "cpu", "file"] = "device"

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
        schedule: str = "block",
        offload: bool = False,
        hidden: Literal["device", "cpu", "file"] = "device",
        options: Mapping[str, float | str] | None = None,
        owl: Mapping[str, float] | None = None,
    ) -> "PruneJob":
        """Return the job. Raises InputError for anything that would fail later, without loading a model.

        `owl`: values for `specs.Owl`, which then allocates the sparsity; None for the same sparsity everywhere.
        """
        sparsity = _sparsity(sparsity, pattern, method)
        if offload and device == "cpu":
            raise InputError("--offload moves blocks from the CPU to a device, so name another device than cpu.")
        _check_calibration(
            method, owl is not None, source, calibration_tokens, {"--n-samples": n_samples, "--seq-len": seq_len}
        )
        ref = resolve_model(model, remote_code=remote_code)
        out = _checked_output(out, ref)
        text: dict[str, Any] = {
            "source": source and resolve_source(source),
            "n_samples": N_SAMPLES if n_samples is None else n_samples,
            "seq_len": SEQ_LEN if seq_len is None else seq_len,
        }
        if calibration_tokens is not None:
            windows = load_tokens(calibration_tokens, vocab_size=ref.vocab_size, n_samples=n_samples, seq_len=seq_len)
            text = {"source": f"tokens:{calibration_tokens.name}", "tokens_sha256": windows.sha256}
            text["n_samples"], text["seq_len"] = windows.tokens.shape
        fields: dict[str, Any] = {
            "model": ref.name,
            "method": method,
            "sparsity": sparsity,
            "pattern": pattern,
            "policy": policy,
            "seed": seed,
            "schedule": schedule,
            "options": options,
            "allocation": None if owl is None else checked_owl(**owl),
            "dtype": dtype_on(device, dtype),
            "evaluation": evaluation_of(
                [name.strip() for name in evaluate.split(",") if name.strip()],
                seq_len=min(EVAL_SEQ_LEN, ref.context_length or EVAL_SEQ_LEN),
            ),
            **text,
        }
        make_spec(**fields)  # before the hashes, which take time for large files
        own = source_hash(text["source"]) if source else None
        spec = make_spec(**fields, model_hash=ref.content_hash(), source_hash=own)
        check_specs([spec], ref)
        return cls(ref, spec, calibration_tokens, device, out, offload, hidden)

    def run(self, echo: Callable[[str], Any]) -> None:
        """Prune, evaluate and write the directory; `echo` gets a few lines for the user."""
        from calib_study.study import Laboratory

        lab = Laboratory(
            self.ref,
            dtype=self.spec.dtype,
            device=self.device,
            tokens_file=self.tokens_file,
            offload=self.offload,
            hidden=self.hidden,
            once=True,
        )
        record = lab.run(self.spec, progress=True).record
        self._write(lab, record.to_json(), lab.calibration_windows(self.spec))
        echo(f"{self.spec.title}: {record.sparsity.overall:.4%} of the block linears' weights are zero.")
        for metric in record.metrics:
            if metric.name == "perplexity":
                scored = f"{metric.n:,} tokens in windows of {self.spec.evaluation.seq_len}"
                echo(f"perplexity on held-out {metric.dataset}: {metric.value:.2f} ({scored})")

    def _write(self, lab: Any, record: str, windows: Windows | None) -> None:
        """Write everything beside the target, then put it in place, replacing an earlier output."""
        from calib_study.windows import save_tokens

        self.out.parent.mkdir(parents=True, exist_ok=True)
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
    method_named(method)
    implied = Pattern.parse(pattern).sparsity
    if sparsity is not None:
        return sparsity
    if implied is None and method != "dense":
        raise InputError("--sparsity is needed for the unstructured pattern, for example --sparsity 0.5.")
    return implied or 0.0


def _check_calibration(
    method: str, owl: bool, source: str | None, tokens: Path | None, counts: Mapping[str, int | None]
) -> None:
    """Raise InputError for options about calibration that contradict each other or the method."""
    if tokens is not None and source is not None:
        raise InputError("give --source or --calibration-tokens, not both.")
    if tokens is not None and not (owl or method_named(method).needs_calibration):
        raise InputError(f"method {method!r} uses no calibration text; leave --calibration-tokens out.")
    for option, count in counts.items():
        if tokens is not None and count is not None and count < 1:
            raise InputError(f"{option} {count}: at least 1 is needed.")


def _checked_output(out: Path, ref: ModelRef) -> Path:
    """Return the absolute path of a directory that can be written; InputError if it is in use, or is the model."""
    out = out.expanduser().resolve()
    check_new_directory(out)
    if ref.location is not None and out == Path(ref.location).resolve():
        raise InputError(f"output {out} is the model itself; name another directory.")
    return out


def dtype_on(device: str, dtype: str) -> str:
    """Return the dtype that was asked, for "auto" the one that suits the device. Raises InputError for any other."""
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r}: allowed are {', '.join(DTYPES)}.")
    if dtype != "auto":
        return dtype
    from calib_study.models import check_device, choose_dtype

    check_device(device)
    return choose_dtype(dtype, device)

"""What a record says of the machine and the code that computed it."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from calib_study import paths
from calib_study.records import Environment

PACKAGES = ("torch", "transformers", "numpy", "tokenizers", "calib-study")
# What decides a number: other files may change without touching a record.
CODE = ("calib_study", "data/catalogue.toml", "requirements.txt")


def describe_environment(device: str, float32_matmul: str) -> Environment:
    """Return the environment of this process."""
    commit, dirty = _git_state()
    return Environment(
        versions={name: version(name) for name in PACKAGES},
        python=platform.python_version(),
        platform=f"{platform.system()}-{platform.machine()}",
        processor=_processor(device),
        device=device,
        threads=torch.get_num_threads(),
        float32_matmul=float32_matmul,
        git_commit=commit,
        git_dirty=dirty,
    )


def differences(there: Environment, here: Environment) -> list[str]:
    """Return what differs between two environments, as "processor (A there, B here)"; the commit is left out.

    The commit is another in nearly all pairs, since records are committed after they were computed.
    """
    one, other = _fields(there), _fields(here)
    return [
        f"{name} ({one.get(name, 'none')} there, {other.get(name, 'none')} here)"
        for name in one | other
        if one.get(name) != other.get(name)
    ]


def _fields(environment: Environment) -> dict[str, str]:
    """Return the fields that may explain a number, with one for each package: "versions.torch"."""
    fields = environment.model_dump(exclude={"versions", "git_commit", "git_dirty"})
    named = {f"versions.{name}": text for name, text in environment.versions.items()}
    return named | {name: str(value) for name, value in fields.items()}


def _processor(device: str) -> str:
    """Return the chip's name, with its vector instructions where torch knows them."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def _git_state() -> tuple[str | None, bool | None]:
    """Return the commit of the code and whether files that decide numbers differ from it; None outside git."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return commit, bool(_git("status", "--porcelain", "--", *CODE).strip())
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=paths.root(),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout


def peak_memory_mb(device: str) -> float | None:
    """Return the peak memory of this process so far (on a GPU: allocated there), in MB; None where unknown."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if platform.system() == "Windows":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if platform.system() == "Darwin" else peak * 1024 / 1e6

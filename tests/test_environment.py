"""What a record says of its machine and code."""

import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from calib_study import environment, paths
from calib_study.environment import describe_environment, differences


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the project: the code and some prose, not in version control yet."""
    for name in ("calib_study/prune.py", "data/catalogue.toml", "requirements.txt", "book/intro.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("first\n")
    monkeypatch.setattr(paths, "root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=Nobody", "-c", "user.email=nobody@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit_all(folder: Path) -> str:
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "First")
    return git(folder, "rev-parse", "HEAD")


def test_it_says_what_the_machine_and_the_code_are() -> None:
    found = describe_environment("cpu", "onednn")
    assert found.versions["torch"] == torch.__version__ == version("torch")
    assert found.versions["numpy"] == np.__version__
    assert set(found.versions) == {"torch", "transformers", "numpy", "tokenizers", "calib-study"}
    assert found.python == platform.python_version()
    assert platform.machine() in found.platform
    assert torch.backends.cpu.get_cpu_capability() in found.processor
    assert (found.device, found.float32_matmul, found.threads) == ("cpu", "onednn", torch.get_num_threads())


def test_it_can_be_stored_and_read() -> None:
    found = describe_environment("cpu", "default")
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_equal_environments_do_not_differ_whatever_the_commit() -> None:
    here = describe_environment("cpu", "default")
    committed = here.model_copy(update={"git_commit": "ab" * 20, "git_dirty": not here.git_dirty})
    assert differences(here, here) == differences(committed, here) == []


@pytest.mark.parametrize("field", ["python", "platform", "processor", "device", "threads", "float32_matmul"])
def test_a_field_that_differs_is_named_with_both_values(field: str) -> None:
    here = describe_environment("cpu", "onednn")
    there = here.model_copy(update={field: 99 if field == "threads" else "99"})
    assert differences(there, here) == [f"{field} (99 there, {getattr(here, field)} here)"]


@pytest.mark.parametrize("package", environment.PACKAGES)
def test_another_version_is_named(package: str) -> None:
    here = describe_environment("cpu", "onednn")
    there = here.model_copy(update={"versions": here.versions | {package: "0.0"}})
    assert differences(there, here) == [f"versions.{package} (0.0 there, {version(package)} here)"]


def test_a_package_of_one_side_only_is_a_difference() -> None:
    here = describe_environment("cpu", "onednn")
    there = here.model_copy(update={"versions": {"torch": here.versions["torch"], "jax": "9"}})
    named = differences(there, here)
    assert "versions.jax (9 there, none here)" in named
    assert f"versions.numpy (none there, {np.__version__} here)" in named
    assert len(named) == 5  # jax, and all but torch of the five


def test_a_clean_checkout(checkout: Path) -> None:
    commit = commit_all(checkout)
    found = describe_environment("cpu", "default")
    assert (found.git_commit, found.git_dirty) == (commit, False)


@pytest.mark.parametrize(
    "name", ["calib_study/prune.py", "calib_study/new.py", "data/catalogue.toml", "requirements.txt"]
)
def test_a_change_of_what_decides_numbers_is_seen(checkout: Path, name: str) -> None:
    commit = commit_all(checkout)
    (checkout / name).write_text("second\n")
    found = describe_environment("cpu", "default")
    assert (found.git_commit, found.git_dirty) == (commit, True)


def test_a_change_of_prose_is_not(checkout: Path) -> None:
    commit_all(checkout)
    (checkout / "book" / "intro.md").write_text("second\n")
    assert describe_environment("cpu", "default").git_dirty is False


def test_code_outside_version_control_has_no_commit(checkout: Path) -> None:
    found = describe_environment("cpu", "default")
    assert (found.git_commit, found.git_dirty) == (None, None)
    git(checkout, "init", "--quiet")  # a repository without a commit
    assert describe_environment("cpu", "default").git_commit is None


def test_a_machine_without_git_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert environment._git_state() == (None, None)


MEASURE = """
import numpy as np
from calib_study.environment import peak_memory_mb

before = peak_memory_mb("cpu")
block = np.ones(int(before * 1e6 + 200e6) // 8)
size = block.nbytes / 1e6
del block
print(before, size, peak_memory_mb("cpu"))
"""


def test_peak_memory_is_in_megabytes_and_does_not_fall() -> None:
    """In a process of its own, whose peak so far is that of the libraries, or of the tests that started it."""
    done = subprocess.run([sys.executable, "-c", MEASURE], check=True, capture_output=True, text=True)
    before, size, after = map(float, done.stdout.split())
    assert 50 < before < 20_000  # megabytes: not kilobytes, not bytes; a process inherits the peak of its parent
    assert before < size <= after <= before + size + 50

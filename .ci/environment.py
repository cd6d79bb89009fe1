"""Make or refresh the virtual environment that the Makefile works in; nothing happens when it is current.

    python3 .ci/environment.py VENV [EXTRA ...]

It needs only Python 3.11 and pip. What was installed is remembered as a hash of pyproject.toml,
requirements.txt and the Python version, so that touching a file reinstalls nothing and changing a pin does.
Two of these at once take turns.
"""

import hashlib
import os
import subprocess
import sys
import time

OLDEST = (3, 11)
HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
STAMP = "calib-study-environment.txt"


def main(arguments):
    """Install the project and the given extras into the folder VENV; return the exit status."""
    if sys.version_info < OLDEST:
        sys.stderr.write(
            f"This project needs Python {OLDEST[0]}.{OLDEST[1]} or newer; {sys.executable} is "
            f"{sys.version.split()[0]}.\nName a newer one: make book PYTHON=python3.11\n"
        )
        return 2
    venv, wanted = os.path.abspath(arguments[0]), set(arguments[1:])
    os.makedirs(venv, exist_ok=True)
    with open(os.path.join(venv, "calib-study-environment.lock"), "w") as lock:
        take_turn(lock)
        current, installed = fingerprint(), read_stamp(venv)
        if installed[:1] == [current] and wanted <= set(installed[1:]):
            return 0
        extras = sorted(wanted | (set(installed[1:]) if installed[:1] == [current] else set()))
        status = install(venv, extras)
        if status == 0:
            with open(os.path.join(venv, STAMP), "w") as stamp:
                stamp.write("\n".join([current, *extras]) + "\n")
    return status


def take_turn(lock):
    """Wait until no other process holds the lock; it goes when the file closes or the process dies."""
    if os.name == "nt":
        return  # make on Windows runs under WSL, which is not "nt"
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        print("Another make is installing into this environment; waiting for it.", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def fingerprint():
    """Return a hash of everything that decides what is installed, the extras apart."""
    digest = hashlib.sha256(sys.version.encode() + HERE.encode())
    for name in ("pyproject.toml", "requirements.txt"):
        with open(os.path.join(HERE, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def read_stamp(venv):
    """Return what was last installed, as [fingerprint, extra, ...]; empty if nothing or only a part was."""
    try:
        with open(os.path.join(venv, STAMP)) as stamp:
            return stamp.read().split()
    except FileNotFoundError:
        return []


def install(venv, extras):
    """Create the environment if there is none and install into it; return pip's exit status."""
    python = os.path.join(venv, "Scripts" if os.name == "nt" else "bin", "python")
    stamp = os.path.join(venv, STAMP)
    if os.path.exists(stamp):
        os.remove(stamp)
    if not os.path.exists(python):
        print(f"Creating {venv} with Python {sys.version.split()[0]}", flush=True)
        if subprocess.call([sys.executable, "-m", "venv", venv]) != 0:
            sys.stderr.write("Python's venv module failed; on Debian and Ubuntu: apt install python3-venv\n")
            return 1
    target = "." + ("[" + ",".join(extras) + "]" if extras else "")
    print(f"Installing {target} and its pinned dependencies (2 to 5 minutes the first time)", flush=True)
    began = time.time()
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    status = subprocess.call([*pip, "--editable", target, "--constraint", "requirements.txt"], cwd=HERE)
    if status == 0:
        print(f"Installed in {time.time() - began:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

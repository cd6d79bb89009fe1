"""The kernel a notebook runs in: this very interpreter, reached without a TCP port where that is possible."""

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

SOCKET_PATH_LIMIT = 80  # bytes of folder name; the system allows about 104 for a whole socket path


class ThisPythonKernelManager(AsyncKernelManager):
    """Starts `sys.executable`, whatever kernel called python3 is installed elsewhere on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """Return the kernel of this interpreter, which has the packages that the notebook was written for."""
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3",
            language="python",
        )


class IPCKernelManager(ThisPythonKernelManager):
    """Talks through socket files in a folder of its own instead of TCP ports.

    Kernels that start side by side choose free TCP ports at the same moment and sometimes collide ("Address
    already in use"); files in separate folders cannot.
    """

    def __init__(self, **settings: Any) -> None:
        """Make the folder of the sockets; it goes when the kernel's resources are cleaned up."""
        self._folder = _socket_folder()
        super().__init__(transport="ipc", connection_file=str(self._folder / "kernel.json"), **settings)

    async def cleanup_resources(self, restart: bool = False) -> None:  # type: ignore[override]
        """Remove the sockets and their folder, unless the kernel is to start again."""
        await super().cleanup_resources(restart=restart)
        if not restart:
            shutil.rmtree(self._folder, ignore_errors=True)


def _socket_folder() -> Path:
    """Return a new private folder whose name is short enough for a socket path."""
    folder = Path(tempfile.mkdtemp(prefix="cs-"))
    if len(os.fsencode(folder)) <= SOCKET_PATH_LIMIT:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix="cs-", dir="/tmp"))


def manager_class() -> str:
    """Return the dotted name of the kernel manager for this system, as papermill takes it."""
    name = "ThisPythonKernelManager" if sys.platform == "win32" else "IPCKernelManager"
    return f"{__name__}.{name}"

"""Synthesis by a tiny model as a process of its own, so slow that it can be killed: python tests/tiny_synthesis.py"""

import sys
import time
from pathlib import Path
from typing import Any

from calib_study.synthesis import SynthesisJob
from calib_study.text_parts import Parts, Row

N_TEXTS, NEW_TOKENS = 12, 20


def tiny_job(model: Path, source: Path, **changes: Any) -> SynthesisJob:
    """Return the job: 12 texts of 20 new tokens, three at a time."""
    fields: dict[str, Any] = {"model": str(model), "prefix_source": str(source), "name": "tiny", "batch_size": 3}
    return SynthesisJob.checked(**fields | {"n_texts": N_TEXTS, "new_tokens": NEW_TOKENS} | changes)


def main(model: str, source: str, pause: str) -> None:
    """Write the texts, `pause` seconds after each part."""
    put = Parts.put

    def slow_put(parts: Parts, rows: list[Row]) -> None:
        put(parts, rows)
        time.sleep(float(pause) if rows else 0)

    Parts.put = slow_put  # type: ignore[method-assign, assignment]
    print("ready", flush=True)
    tiny_job(Path(model), Path(source)).run(echo=print)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The parameters of the chapter on where a calibration text shows, and the measurements that they ask for."""

from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from calib_study.catalogue import RANDOM
from calib_study.export import dtype_on
from calib_study.grids import Drawn, OneSize, OneSparsity, Readers
from calib_study.measurements import BlockSwap, Draw, LayerProfile, PruningRequest, checked_measurement
from calib_study.model_files import resolve_model
from calib_study.preflight import evaluation_of
from calib_study.records import OWL_SUFFIX
from calib_study.sources import source_hash
from calib_study.specs import Calibration, Evaluation, problem


class Mechanism(Drawn, OneSize, OneSparsity, Readers):
    """Parameters of 09_mechanism: profiles of the layers under each draw of each text, and swaps of single blocks.

    Statistics are those of the dense model. `error_windows`: of each held-out text, for the errors of layers' outputs.
    `stride`: every so many blocks are swapped, and have such errors.
    """

    error_windows: int = Field(ge=1)
    stride: int = Field(ge=1)

    @field_validator("sources")
    @classmethod
    def _texts_only(cls, sources: list[str]) -> list[str]:
        if RANDOM in sources:
            raise problem(f"{RANDOM!r} is no text; leave it out.")
        return sources

    @field_validator("methods")
    @classmethod
    def _one_plain(cls, methods: list[str]) -> list[str]:
        if len(methods) != 1 or methods[0].endswith(OWL_SUFFIX):
            raise problem("name one method, without OWL; for example 'wanda'.")
        return methods

    @field_validator("eval_sources")
    @classmethod
    def _own_and_foreign(cls, held_out: list[str], info: ValidationInfo) -> list[str]:
        if lacking := [name for name in info.data.get("sources", ()) if name not in held_out]:
            raise problem(
                "each of `sources` must be among them, so that there is own and foreign text; "
                f"missing: {', '.join(lacking)}."
            )
        return held_out

    def requests(self) -> list[PruningRequest]:
        """Return all measurements: profiles, then single blocks pruned, then blocks of another text or another draw.

        The other text of a text is the next one; the other draw of a draw is the next one.
        """
        ref = resolve_model(self.model)
        alike: dict[str, Any] = {"model": ref.name, "model_hash": ref.content_hash()}
        alike |= {"dtype": dtype_on(self.device, self.dtype), "method": self.methods[0]}
        alike |= {"sparsity": self.sparsity, "pattern": self.pattern, "stride": self.stride}
        swaps = alike | {"evaluation": self._evaluation(self.eval_windows)}
        alike |= {"evaluation": self._evaluation(self.error_windows)}
        cells = [(source, seed) for seed in range(self.n_seeds) for source in self.sources]
        draws = {cell: self._draw(*cell) for cell in cells}
        found: list[PruningRequest] = [checked_measurement(LayerProfile, draw=draw, **alike) for draw in draws.values()]
        found += [checked_measurement(BlockSwap, other=draw, **swaps) for draw in draws.values()]
        next_text = dict(zip(self.sources, [*self.sources[1:], self.sources[0]], strict=True))
        for source, seed in cells:
            for other in ((next_text[source], seed), (source, (seed + 1) % self.n_seeds)):
                base = draws[source, seed]
                found.append(checked_measurement(BlockSwap, base=base, other=draws[other], **swaps))
        return found

    def _evaluation(self, n_windows: int) -> Evaluation:
        return evaluation_of(self.eval_sources, seq_len=self.eval_seq_len, n_windows=n_windows)

    def _draw(self, source: str, seed: int) -> Draw:
        size: dict[str, Any] = {"policy": self.policy, "n_samples": self.n_samples, "seq_len": self.seq_len}
        return Draw(text=Calibration(source=source, source_hash=source_hash(source), **size), seed=seed)

"""The verdicts of the chapter on likeness: J7 from its records, J11 from its measurements."""

from collections.abc import Sequence

from calib_study.likeness_tables import Scores, grouped, judge_familiar, membership_table
from calib_study.measurements import MeasurementStore, TextScores
from calib_study.records import Record, to_frame
from calib_study.similarity_parameters import Similarity
from calib_study.similarity_tables import cell_table, crossed_records, judge_likeness
from calib_study.verdicts import Judgement


def judge(cfg: Similarity, records: Sequence[Record], store: MeasurementStore | None = None) -> list[Judgement]:
    """Return the verdict on J7, and that on J11 if all that it takes is measured."""
    cells = cell_table(to_frame(crossed_records(cfg, records)), cfg.corpora)
    found = [judge_likeness(cells, cfg, cfg.trained())]
    scores = stored_scores(cfg.requests(), store or MeasurementStore.default())
    if scores is not None:
        membership = membership_table({name: grouped(scores[name]) for name in cfg.glass_models})
        found.append(judge_familiar(scores[cfg.model], cfg.own_sources, membership))
    return found


def stored_scores(
    requests: dict[str, list[TextScores]], store: MeasurementStore
) -> dict[str, dict[str, Scores]] | None:
    """Return by model and source the arrays of every request; None if one is not measured."""
    found: dict[str, dict[str, Scores]] = {}
    for model, asked in requests.items():
        for request in asked:
            measurement = store.get(request.measurement_id)
            if measurement is None:
                return None
            found.setdefault(model, {})[request.draw.text.source] = store.arrays(measurement)
    return found

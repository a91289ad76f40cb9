"""Every part of a real mesh is killed or stopped in every phase of a call, once."""

import pytest
from chaos.pairs import POSTGRESQL, SQLITE, Pair, quick, quick_postgresql, shuffled
from chaos.part import play
from chaos.report import Report

pytestmark = [pytest.mark.plane, pytest.mark.timeout(1500)]

SEED = 7
PARTS = 3


@pytest.mark.parametrize(
    ("store", "pairs"), [(SQLITE, quick()), (POSTGRESQL, quick_postgresql())], ids=[SQLITE, POSTGRESQL]
)
def test_nothing_is_lost_unrecorded_or_doubled(tmp_path_factory, store: str, pairs: list[Pair]):
    """Every pair hits its phase, every run ends with the right answer, every effect was allowed."""
    report, left = Report.fresh(SEED), set(pairs)
    for _ in range(PARTS):  # a busy machine lets a kill miss its phase now and then
        root, order = tmp_path_factory.mktemp("c"), shuffled(sorted(left), SEED)
        report.add(play(root, order, turn=0, say=print, store=store))
        left -= set(report.counts())
        if not left or not report.good:
            break
    print("\n".join(report.lines()))  # noqa: T201 - seen with pytest -s, or when it fails
    assert report.findings == []
    assert {name: report.sums[name] for name in ("lost", "unrecorded", "doubled")} == {
        "lost": 0, "unrecorded": 0, "doubled": 0,
    }  # fmt: skip
    assert left == set(), report.missed

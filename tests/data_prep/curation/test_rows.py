from data_prep.curation.rows import partition_of
from data_prep.seen_ids import SeenIds

BROKEN = "3_\ud800"  # JSON can hold it, UTF-8 cannot


def test_a_lone_surrogate_in_an_id_stops_nothing():
    assert partition_of(BROKEN, 1) == 0
    assert len({partition_of(f"{BROKEN}{number}", 4) for number in range(64)}) == 4
    seen = SeenIds()
    assert [seen.add(text) for text in (BROKEN, BROKEN, "3_")] == [True, False, True]

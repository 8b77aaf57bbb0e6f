from __future__ import annotations

from server.store.states import ALLOWED, ENDED, HELD, JobState, sources


def test_every_state_has_a_row_and_nothing_follows_an_end() -> None:
    assert set(ALLOWED) == set(JobState)
    assert {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELED} == ENDED


def test_sources_is_the_inverse_of_the_table() -> None:
    for state, following in ALLOWED.items():
        for target in JobState:
            assert (state in sources(target)) == (target in following)


def test_every_state_can_be_reached_and_ended() -> None:
    reached = {JobState.QUEUED}
    while more := {after for state in reached for after in ALLOWED[state]} - reached:
        reached |= more
    assert reached == set(JobState)
    assert all(ALLOWED[state] & ENDED for state in HELD | {JobState.QUEUED})

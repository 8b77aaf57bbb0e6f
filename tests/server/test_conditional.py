from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.web.conditional import byte_range, matches, prefers
from server.web.problems import Problem

TAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("BYTES=2-5", (2, 6)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=1--2", None),
        ("lines=1-2", None),
        ("", None),
    ],
)
def test_ranges_of_ten_bytes(header: str | None, expected: tuple[int, int] | None) -> None:
    assert byte_range(header, None, TAG, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_ranges_beyond_the_end(header: str) -> None:
    with pytest.raises(Problem) as caught:
        byte_range(header, None, TAG, 10)
    assert caught.value.status_code == 416
    assert caught.value.headers is not None
    assert caught.value.headers["Content-Range"] == "bytes */10"


@given(st.text("0123456789-, a", max_size=9), st.integers(1, 100))
def test_any_text_is_a_range_within_the_file_or_none(text: str, length: int) -> None:
    with suppress(Problem):
        part = byte_range(f"bytes={text}", None, TAG, length)
        assert part is None or 0 <= part[0] < part[1] <= length


def test_if_range_is_a_strong_comparison() -> None:
    assert byte_range("bytes=1-2", TAG, TAG, 10) == (1, 3)
    for other in ('"abd"', 'W/"abc"', "Sun, 06 Nov 1994 08:49:37 GMT"):
        assert byte_range("bytes=1-2", other, TAG, 10) is None
        assert byte_range("bytes=99-", other, TAG, 10) is None


@pytest.mark.parametrize(
    ("header", "strong", "weak"),
    [
        ("*", True, True),
        ('"abc"', True, True),
        ('W/"abc"', False, True),
        ('"x", "abc"', True, True),
        ('"x",W/"abc" , "y"', False, True),
        ('"x"', False, False),
        ("abc", False, False),
        ("", False, False),
        ('"a,b", "abc"', True, True),
        ('"xabc"', False, False),
    ],
)
def test_lists_of_entity_tags(header: str, strong: bool, weak: bool) -> None:
    assert matches(header, TAG, weak=False) is strong
    assert matches(header, TAG, weak=True) is weak


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, False),
        ("", False),
        ("*/*", False),
        ("application/*", False),
        ("application/json", False),
        ("application/jose", True),
        ("Application/JOSE ; q=0.5", True),
        ("application/jose, application/json", True),
        ("application/jose;q=0.8, application/json;q=0.9", False),
        ("application/jose;q=0.9, application/json;q=0.8", True),
        ("application/jose;q=0, */*", False),
        ("application/jose;q=many", False),
        (";;,,q=", False),
    ],
)
def test_the_media_type_that_is_preferred(accept: str | None, expected: bool) -> None:
    assert prefers(accept, "application/jose", "application/json") is expected

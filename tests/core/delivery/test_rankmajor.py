"""The delivery format: what is written is what was packed, every prefix is a file, damage is noticed."""

import hashlib
import itertools
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load

from mdc_core.delivery import rankmajor
from mdc_core.delivery.rankmajor import SetInfo
from mdc_core.errors import ConfigError, DataError, FormatError

INFO = SetInfo(
    ipc=3, factor=2, classes=("cat", "Hündchen"), mean=(0.5,), std=(0.25,), image_size=7, channels=1
)


def tiles_of(info: SetInfo) -> rankmajor.Tiles:
    return np.random.default_rng(0).integers(0, 256, info.tile_shape(info.ipc), dtype=np.uint8)


TILES = tiles_of(INFO)
OBJECT = rankmajor.pack(TILES, INFO)
DIGESTS = rankmajor.digests(OBJECT, INFO)


@st.composite
def infos(draw: st.DrawFn) -> SetInfo:
    side = draw(st.integers(1, 9))
    channels = draw(st.integers(1, 4))
    floats = st.tuples(*[st.floats(0.01, 1)] * channels)
    return SetInfo(
        ipc=draw(st.integers(1, 12)),
        factor=draw(st.integers(1, side)),
        classes=tuple(draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=3))),
        mean=draw(floats),
        std=draw(floats),
        image_size=side,
        channels=channels,
    )


@given(infos())
def test_every_subset_is_a_prefix_that_safetensors_reads_too(info: SetInfo) -> None:
    tiles = tiles_of(info)
    obj = rankmajor.pack(tiles, info)
    for k in range(1, info.ipc + 1):
        file = rankmajor.subset(obj, info, k)
        assert len(file) == rankmajor.subset_size(info, k)
        read_info, read_tiles = rankmajor.read(file)
        assert read_info == info
        np.testing.assert_array_equal(read_tiles, tiles[:k])
        np.testing.assert_array_equal(load(file)["tiles"], read_tiles)


def test_the_object_is_the_file_of_the_whole_set() -> None:
    assert rankmajor.subset(OBJECT, INFO, 3) == OBJECT
    assert DIGESTS.object == DIGESTS.subsets[-1] == hashlib.sha256(OBJECT).hexdigest()


def test_cifar10_has_the_sizes_of_the_format() -> None:
    classes = tuple(str(c) for c in range(10))
    info = SetInfo(10, 2, classes, (0.5,) * 3, (0.2,) * 3, image_size=32, channels=3)
    assert info.rank_bytes == 30_720
    assert rankmajor.header_size(info) == 4096
    assert rankmajor.subset_size(info, 10) == 311_296


def test_header_layout_is_as_documented() -> None:
    head = rankmajor.header(INFO, 2)
    (length,) = struct.unpack_from("<Q", head)
    assert length == len(head) - 8 == 4088
    text = head[8:].rstrip(b" ")
    assert text == (
        b'{"__metadata__":{"format":"rankmajor/1","ipc":"3","factor":"2",'
        b'"classes":"[\\"cat\\",\\"H\\\\u00fcndchen\\"]","mean":"[0.5]","std":"[0.25]",'
        b'"image_size":"7","channels":"1"},'
        b'"tiles":{"dtype":"U8","shape":[2,2,4,1,4,4],"data_offsets":[0,256]}}'
    )


def test_a_header_too_long_for_a_page_takes_as_many_pages_for_every_k() -> None:
    info = SetInfo(100, 1, tuple(f"class number {c}" for c in range(300)), (0.5,), (0.5,), 2, 1)
    sizes = {len(rankmajor.header(info, k)) for k in (1, 9, 10, 99, 100)}
    assert sizes == {rankmajor.header_size(info)}
    assert rankmajor.header_size(info) % 4096 == 0
    assert rankmajor.header_size(info) > 4096
    tiles = tiles_of(info)
    file = rankmajor.subset(rankmajor.pack(tiles, info), info, 7)
    np.testing.assert_array_equal(rankmajor.read(file)[1], tiles[:7])


def test_the_header_is_as_long_where_one_digit_crosses_a_page() -> None:
    # A name that fills the page to the last byte for k = 9 leaves no room for the digits of k = 10.
    def info_with(length: int) -> SetInfo:
        return SetInfo(10, 1, ("x" * length,), (0.5,), (0.5,), 1, 1)

    spare = 4096 - len(rankmajor.header(info_with(1), 9).rstrip(b" "))
    info = info_with(1 + spare)
    assert len(rankmajor.header(info, 9).rstrip(b" ")) == 4096
    assert {len(rankmajor.header(info, k)) for k in (1, 9, 10)} == {8192}


def test_ranges_meet_and_cover_the_object() -> None:
    assert rankmajor.subset_range(INFO, 2) == (4096, 4096 + 2 * INFO.rank_bytes)
    ends = [rankmajor.rank_range(INFO, r) for r in (1, 2, 3)]
    assert ends[0][0] == 4096
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    assert ends[-1][1] == len(OBJECT)
    for r, (start, end) in enumerate(ends):
        assert OBJECT[start:end] == TILES[r].tobytes()


@pytest.mark.parametrize("k", [0, 4, -1, True, 1.0])
def test_a_subset_that_is_not_there_is_an_error_with_the_limit(k: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.3"):
        rankmajor.header(INFO, k)


def test_packing_takes_only_the_tiles_of_this_set() -> None:
    with pytest.raises(ConfigError, match="this set has uint8"):
        rankmajor.pack(TILES[:2], INFO)
    with pytest.raises(ConfigError, match="float32"):
        rankmajor.pack(TILES.astype(np.float32), INFO)
    strided = np.asfortranarray(TILES)
    assert rankmajor.pack(strided, INFO) == OBJECT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ipc": 0}, "ipc is 0"),
        ({"factor": 8}, r"factor is 8: give a whole number 1\.\.7"),
        ({"channels": 5}, "channels is 5"),
        ({"classes": ()}, "classes"),
        ({"classes": ("a", "")}, "classes"),
        ({"mean": (0.5, 0.5)}, "mean has 2 values"),
        ({"classes": ("a", "\ud800")}, "half of a surrogate pair"),
        ({"classes": ("a" * 101_000_000,)}, "shorten the class names"),
        ({"std": (0.0,)}, "std is .0.0,.: give numbers from 1e-06 to 1e.06"),
        ({"std": (5e-324,)}, "std is .5e-324"),
        ({"std": ("0.25",)}, "std is .'0.25'"),
        ({"mean": (True,)}, "mean is .True"),
        ({"mean": (float("nan"),)}, "mean is .nan"),
        ({"mean": (10**400,)}, r"mean is \(1000.*…: give numbers"),
        ({"ipc": 10**4290}, "ipc is 1000.*…: give a whole number"),
    ],
)
def test_an_impossible_set_is_refused_with_value_and_limit(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(INFO, **change)  # type: ignore[arg-type]


def test_equal_sets_have_equal_headers() -> None:
    whole = replace(INFO, mean=(0,))
    point = replace(INFO, mean=(0.0,))
    assert rankmajor.header(whole, 1) == rankmajor.header(point, 1)


def test_quantise_rounds_half_to_even_and_clamps() -> None:
    values = np.array([0.5, 1.5, 2.5, 254.5, -3.0, 300.0]) / 255
    np.testing.assert_array_equal(rankmajor.quantise(values), [0, 2, 2, 254, 0, 255])
    steps = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(rankmajor.quantise((steps / 255).astype(np.float32)), steps)
    with pytest.raises(DataError, match="contain NaN"):
        rankmajor.quantise(np.array([0.1, np.nan]))


FILE = rankmajor.subset(OBJECT, INFO, 2)
HEADER = json.loads(FILE[8:4096])


def damaged(old: bytes, new: bytes) -> bytes:
    assert FILE.count(old) == 1
    return FILE.replace(old, new)


def with_json(old: bytes, new: bytes) -> bytes:
    """The file with a header as long as it takes."""
    text = FILE[8:4096].rstrip(b" ").replace(old, new)
    return struct.pack("<Q", len(text)) + text + FILE[4096:]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (FILE[:-1], "has 4351 bytes"),
        (FILE + b"\0", "has 4353 bytes"),
        (FILE[:100], "states a header of"),
        (b"", "0 bytes"),
        (struct.pack("<Q", 2**63) + FILE[8:], "rankmajor/1 headers have at most"),
        (struct.pack("<Q", 2) + b"[]", r"not a rankmajor/1 file"),
        (struct.pack("<Q", 4) + b'"\xff\xfe"', r"not a rankmajor/1 file"),
        (damaged(b"rankmajor/1", b"rankmajor/2"), "'rankmajor/2'.*'rankmajor/1'"),
        (damaged(b'"ipc":"3"', b'"ipc":"x"'), "an impossible set"),
        (damaged(b'"factor":"2"', b'"factor":"9"'), "an impossible set"),
        (damaged(b'"[0.5]"', b'"[0.q]"'), "an impossible set"),
        (damaged(b'"ipc":"3"', b'"ipc":1e999'), "an impossible set"),
        (damaged(b'"ipc":"3"', b'"ipc":true'), "an impossible set"),
        (damaged(b'"ipc":"3"', b'"ipc":"+3"'), "ipc is '.3': it should be a whole number"),
        (with_json(b'"ipc":"3"', b'"ipc":"' + b"9" * 4290 + b'"'), "ipc is '9999.*…"),
        (with_json(b'"ipc":"3"', b'"ipc":' + b"9" * 4290), "ipc is 9999.*…"),
        (with_json(b'"[0.5]"', b'"[' + b"9" * 4290 + b']"'), "mean is .9999.*…"),
        (with_json(b"[2,2,4", b"[" + b"9" * 4290 + b",2,4"), "subset size"),
        (with_json(b'"[0.5]"', b'"' + b"[" * 100_000 + b'"'), "mean is '.*…: it should be a JSON list"),
        (damaged(b'"[0.5]"', b'"[1e9]"'), "mean is .1000000000.0"),
        (damaged(b"[2,2,4", b"[9,2,4"), r"subset size .*1\.\.3"),
        (damaged(b"[2,2,4", b"[2,3,4"), "damaged"),
        (damaged(b'"U8"', b'"I8"'), "damaged"),
        (damaged(b"}}   ", b"}} \t "), "damaged"),
    ],
)
def test_the_reader_refuses_what_is_not_exactly_the_format(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        rankmajor.read(data)


def test_digests_are_those_of_the_pieces_cut_by_hand() -> None:
    size = INFO.rank_bytes
    for k in (1, 2, 3):
        file = rankmajor.header(INFO, k) + OBJECT[4096 : 4096 + k * size]
        assert DIGESTS.subsets[k - 1] == hashlib.sha256(file).hexdigest()
        assert DIGESTS.headers[k - 1] == hashlib.sha256(file[:4096]).hexdigest()
        assert DIGESTS.ranks[k - 1] == hashlib.sha256(file[-size:]).hexdigest()
    with pytest.raises(FormatError, match="object has"):
        rankmajor.digests(OBJECT[:-1], INFO)


def test_the_metadata_are_strings_as_safetensors_demands() -> None:
    document = json.loads(rankmajor.header(INFO, 1)[8:])
    assert all(isinstance(value, str) for value in document["__metadata__"].values())


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, 10**4290, 2**31, 2**63, -1, 0])
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.sampled_from(
        ["3", "[0.5]", "[1e999]", "[NaN]", '["a","b"]', "[[", "9" * 4290, "\ud800", '["\\ud800"]']
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.sampled_from(sorted(HEADER["__metadata__"])), JSON_VALUES, max_size=2),
    JSON_VALUES | st.just(HEADER["tiles"]),
    st.lists(st.integers(0, 7), max_size=2),
)
def test_no_header_makes_the_reader_fail_in_another_way(
    metadata: dict[str, object], tiles: object, flips: list[int]
) -> None:
    text = json.dumps({"__metadata__": HEADER["__metadata__"] | metadata, "tiles": tiles}).encode()
    for flip in flips:
        text = text.replace(b'[]{}",:0'[flip : flip + 1], b"", 1)
    with pytest.raises(FormatError):
        rankmajor.read(struct.pack("<Q", len(text)) + text)

"""One corpus of good and bad files of the format `rankmajor/1`, the same in every run, for readers in any language."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from mdc_core.delivery import rankmajor
from mdc_core.delivery.rankmajor import SetInfo

COUNT = 1000
NAMES = (
    "cat", "dog", "a b", "Hündchen", "狗", "🐕", "é", "e\u0301", '"', "\\", "\\u0041", "/", "]", "a,b", '\\"', "\\\\",
    "\n", "\t\r", "\b", "\f", "\0", "\x1f", "\x7f", "\x80", "\u2028", "\ufeff", "\ufffe", "\uffff", "\U0010ffff", " ",
    "constructor", "__proto__", "null", "0.5", "'", "<>&", "x" * 300,
)  # fmt: skip
MOMENTS = (
    0.5,
    0.25,
    1.0,
    1e-3,
    1e-4,
    9.999e-5,
    1e-5,
    1e-6,
    1e6,
    999999.9,
    123456.789,
    0.1 + 0.2,
    1 / 3,
    5e-6,
    100.0,
)
MEANS = (0.0, -0.0, -0.5, -1e6, -1e-7, 5e-324, 1e-300, -2.2250738585072014e-308, 1.7976931348623157e-308)
LIMITS = (
    0,
    1,
    4,
    5,
    2**31 - 1,
    2**31,
    2**48,
    2**48 + 1,
    2**53,
    2**63,
    2**64,
    10**19,
    10**400,
    10**4290,
    10**5000,
)
FLOATS = [
    *re.split(
        " ", "0 1 0.50 5e-1 .5 +0.5 5E-01 1e-5 1e-05 1E-05 0.00001 1e-005 0.1000000000000000055 -0 -0.0 1e999"
    ),
    *re.split(
        " ",
        "-1e999 NaN Infinity null true [0.5] 1000000.1 1e6 1e+06 1000000.0 1e-07 9.99e-07 0.0 0x1 1_0 0,5",
    ),
    *re.split(
        " ",
        '4.9e-324 5e-324 3e-324 0.30000000000000004 0.30000000000000003 123456.78899999999 nan(1) 1e "0.5"',
    ),
    *("0.5 ", " 0.5", ""),
]
ESCAPES = [
    *re.split(
        " ", r"\\u0041 \\u007F \\u007f \\u00FC \\u00fc \\ud83d \\udc15 \\ud83d\\udc15 \\udc15\\ud83d \\ud83dx"
    ),
    *re.split(
        " ",
        r"\\ud83d\\u0041 \\n \\u000a \\u000b \\v \\/ / \\b \\u0008 \\ \\\\ \\\" \" \ \n \u0041 \u0000 \\u0000",
    ),
    *re.split(" ", r"\\u00 \\u+041 \\u_041 \\uD83D\\uDC15 \",\" ,"),
    *('"', "\0", "\t", "\n", "\x7f", "\x80", "\xff", "é", "\\\\u 041"),
]
JSON = (
    " ",
    "\t",
    "\n",
    "\0",
    ",",
    "{",
    "}",
    "[",
    "]",
    '"',
    ":",
    "\\",
    "0",
    "1",
    "-",
    "e",
    ".",
    "null",
    "true",
    "\xa0",
    "é",
)
Edit = Callable[[str, random.Random], str]


def corpus(seed: int = 0, count: int = COUNT) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of `count` files: every third is good, the others differ from a good one in one to three places.

    What a difference is worth is for the readers to say: some of the differing files are good too.
    """
    draw = random.Random(seed)
    for number in range(count):
        info = _info(draw)
        k = draw.choice([1, info.ipc, draw.randint(1, info.ipc)])
        head = rankmajor.header(info, k)
        tiles = draw.randbytes(k * info.rank_bytes)
        if number % 3 == 0:
            yield f"{number:04}-good", head + tiles
            continue
        kind = draw.choice(list(_KINDS))
        yield f"{number:04}-{kind}", _KINDS[kind](head, tiles, draw)


def _info(draw: random.Random) -> SetInfo:
    side, channels = draw.randint(1, 5), draw.randint(1, 4)
    info = SetInfo(
        ipc=draw.choice([1, 2, 9, 10, 12]),
        factor=draw.randint(1, side),
        classes=tuple(draw.choice(NAMES) for _ in range(draw.randint(1, 5))),
        mean=tuple(draw.choice([draw.choice(MEANS), _moment(draw)]) for _ in range(channels)),
        std=tuple(_moment(draw) for _ in range(channels)),
        image_size=side,
        channels=channels,
    )
    if draw.random() < 0.15:  # the last bytes of a page, and the first of the next
        room = -len(rankmajor.header(info, draw.choice([1, info.ipc])).rstrip(b" ")) % rankmajor.HEADER_STEP
        info = replace(info, classes=(*info.classes, "y" * max(1, room - 7 + draw.randint(-1, 4))))
    return info


def _moment(draw: random.Random) -> float:
    """A number from 1e-6 to 1e6 with few or many figures, or a power of two, whose neighbours are not equally far."""
    power = 2.0 ** draw.randint(-19, 19)
    near = draw.choice([power, math.nextafter(power, 0), math.nextafter(power, 9e9)])
    return draw.choice([draw.choice(MOMENTS), near, round(draw.random() + 0.01, draw.randint(2, 17)),
                        10 ** draw.uniform(-5.9, 5.9)])  # fmt: skip


def _edited(*edits: Edit) -> Callable[[bytes, bytes, random.Random], bytes]:
    """Files whose JSON is edited; its place is filled up again, or it is given a place of its own length."""

    def differing(head: bytes, tiles: bytes, draw: random.Random) -> bytes:
        text = head[8:].decode().rstrip(" ")
        for _ in range(draw.choice([1, 1, 1, 2, 3])):
            text = draw.choice(edits)(text, draw)
        encoded = text.encode("latin-1", errors="replace") if draw.random() < 0.5 else text.encode()
        length = len(head) - 8
        if len(encoded) > length or draw.random() < 0.1:
            length = len(encoded) + -(len(encoded) + 8) % draw.choice([1, 8, 4096])
        return length.to_bytes(8, "little") + encoded.ljust(length) + tiles

    return differing


def _number(text: str, draw: random.Random) -> str:
    """One whole number spelled in another way, or another number."""
    name = draw.choice(
        ['"ipc":"', '"factor":"', '"image_size":"', '"channels":"', '"shape":[', '"data_offsets":[']
    )
    before, _, rest = text.partition(name)
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    value = int(digits[:20] or "0")
    spellings = [
        f"0{digits}",
        f"+{digits}",
        f"-{digits}",
        f" {digits}",
        f"{digits} ",
        f"{digits}.0",
        f"{digits}e0",
    ]
    nonsense = ["", "٣", "0x1", "1_0", "true", "null", "NaN", "1e999"]
    numbers = [_digits(limit) for limit in (value + 1, max(value - 1, 0), value * 2, *draw.sample(LIMITS, 4))]
    other = draw.choice([*spellings, *nonsense, *numbers])
    return before + name + other + rest[len(digits) :]


def _digits(value: int) -> str:
    """In decimal, however long: Python itself writes no more than 4300 digits."""
    high, low = divmod(value, 10**2000)
    return f"{low}" if not high else f"{_digits(high)}{low:02000}"


def _float(text: str, draw: random.Random) -> str:
    """One number of a mean or deviation spelled in another way, or another number."""
    name = draw.choice(['"mean":"[', '"std":"['])
    before, _, rest = text.partition(name)
    values = rest.partition("]")[0].split(",")
    place = draw.randrange(len(values))
    changes = [
        draw.choice(FLOATS),
        values[place] + "0",
        "0" + values[place],
        repr(_near(values[place], draw)),
    ]
    change = draw.choice(changes)
    others = [*values[:place], change, *values[place + 1 :]]
    if draw.random() < 0.1:
        others = draw.choice([others[:-1], [*others, "0.5"]])
    return before + name + ",".join(others) + rest[len(",".join(values)) :]


def _near(text: str, draw: random.Random) -> float:
    try:
        return math.nextafter(float(text), draw.choice([-9e9, 9e9]))
    except ValueError:
        return 0.5


def _name(text: str, draw: random.Random) -> str:
    """Another spelling, or nonsense, somewhere in the names."""
    start = text.find('"classes":"') + len('"classes":"')
    end = text.find(',"mean"')
    at = draw.choice([start, start + 1, start + 3, draw.randint(start, max(start, end))])
    return text[:at] + draw.choice(ESCAPES) + text[at:]


def _token(text: str, draw: random.Random) -> str:
    """A character left out, doubled, or put in."""
    at = draw.randrange(len(text)) if text else 0
    return draw.choice([text[:at] + text[at + 1 :], text[:at] + text[at : at + 1] + text[at:],
                        text[:at] + draw.choice(JSON) + text[at:]])  # fmt: skip


def _structure(text: str, draw: random.Random) -> str:
    """The same values in another JSON, or another value of some kind."""
    try:
        document = json.loads(text)
        metadata, tiles = dict(document["__metadata__"]), dict(document["tiles"])
        key, turned = draw.choice(sorted(metadata)), tiles["shape"][::-1]
    except (ValueError, LookupError, TypeError):
        return _token(text, draw)
    odds: list[object] = [None, True, 1, 0.5, [], {}, "", "[]", {"toString": 1}, "[[["]
    odd = draw.choice(odds)
    ways: list[Callable[[], object]] = [
        lambda: {"tiles": tiles, "__metadata__": metadata},
        lambda: {"__metadata__": dict(sorted(metadata.items())), "tiles": tiles},
        lambda: {"__metadata__": metadata | {key: odd}, "tiles": tiles},
        lambda: {"__metadata__": {k: v for k, v in metadata.items() if k != key}, "tiles": tiles},
        lambda: {"__metadata__": metadata | {"note": "x"}, "tiles": tiles},
        lambda: {"__metadata__": metadata, "tiles": tiles | {"dtype": draw.choice(["I8", "u8", "U16", None])}},
        lambda: {"__metadata__": metadata, "tiles": tiles | {"shape": draw.choice([[], None, 1, "x", [1], turned])}},
        lambda: {"__metadata__": metadata, "tiles": tiles, "more": tiles},
        lambda: {"__metadata__": metadata, "tiles": draw.choice([None, [], 1, "x"])},
        lambda: {"__metadata__": draw.choice([None, [], 1, "x"]), "tiles": tiles},
        lambda: draw.choice([None, [], 1, "x", [document], {}]),
    ]  # fmt: skip
    separators = draw.choice([(",", ":"), (", ", ": "), (",", ": ")])
    ascii_only = draw.random() < 0.7
    return json.dumps(draw.choice(ways)(), separators=separators, ensure_ascii=ascii_only)


def _repeated(text: str, draw: random.Random) -> str:
    """A key given twice."""
    part = draw.choice(
        ['"ipc":"3",', '"format":"rankmajor/1",', '"tiles":null,', '"dtype":"U8",', '"shape":[1],']
    )
    at = draw.choice([1, text.find('"ipc"'), text.find('"dtype"')])
    return text[:at] + part + text[at:]


def _prefix(head: bytes, tiles: bytes, draw: random.Random) -> bytes:
    """Another length in front."""
    length = len(head) - 8
    other = draw.choice([0, 1, length - 1, length + 1, length + 4096, len(head) + len(tiles), 10**8, 10**8 + 1, 2**31,
                         2**53 + 1, 2**63, 2**64 - 1, len(head[8:].rstrip(b" "))])  # fmt: skip
    return other.to_bytes(8, "little") + head[8:] + tiles


def _padding(head: bytes, tiles: bytes, draw: random.Random) -> bytes:
    """Other bytes, or more or fewer of them, behind the JSON."""
    text = head[8:].rstrip(b" ")
    length = draw.choice([len(head), len(head) + 4096, len(head) + 8, len(text) + 8]) - 8
    padded = bytearray(text.ljust(length))
    if len(padded) > len(text) and draw.random() < 0.5:
        padded[draw.randrange(len(text), len(padded))] = draw.choice(b"\0\t\n x}")
    return length.to_bytes(8, "little") + bytes(padded) + tiles


def _length(head: bytes, tiles: bytes, draw: random.Random) -> bytes:
    """A file that is cut, or goes on."""
    whole = head + tiles
    cut = draw.choice([0, 7, 8, 9, len(head) - 1, len(head), len(whole) - 1, draw.randrange(len(whole))])
    return draw.choice([whole[:cut], whole + b"\0", whole + tiles])


def _bytes(head: bytes, tiles: bytes, draw: random.Random) -> bytes:
    """One byte of the text or the length changed."""
    text = head.rstrip(b" ")
    changed = bytearray(head)
    changed[draw.randrange(len(text))] ^= draw.choice([1, 2, 4, 8, 16, 32, 64, 128])
    return bytes(changed) + tiles


_KINDS: dict[str, Callable[[bytes, bytes, random.Random], bytes]] = {
    "number": _edited(_number),
    "float": _edited(_float),
    "name": _edited(_name),
    "token": _edited(_token),
    "structure": _edited(_structure),
    "repeated": _edited(_repeated),
    "mixed": _edited(_number, _float, _name, _token, _structure),
    "prefix": _prefix,
    "padding": _padding,
    "length": _length,
    "bytes": _bytes,
}

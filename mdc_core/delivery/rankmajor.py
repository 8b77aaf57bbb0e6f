"""The delivery format `rankmajor/1`: one object per condensed set, every subset a prefix of it. numpy only.

Letters: N ipc, C classes, f factor, ch channels, H image side, s = ceil(H / f) tile side, B bytes of a rank.
The file of subset k is header(k) followed by the first k ranks, and is a valid safetensors file.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mdc_core.errors import ConfigError, DataError, FormatError, shown

FORMAT: Final = "rankmajor/1"
HEADER_STEP: Final = 4096
"""Headers are padded to a multiple of this, so that ranks start on a page of the device's storage."""
LARGEST: Final = 2**31 - 1
"""Upper limit of every whole number in a header, and of the number of classes."""
LARGEST_FILE: Final = 2**48
"""Upper limit of a file in bytes."""
LARGEST_HEADER: Final = 100_000_000
"""Upper limit of a header's JSON in bytes; safetensors reads no longer one."""
LARGEST_MOMENT: Final = 1e6
"""Upper limit of a mean's magnitude and of a standard deviation, which is at least the inverse of it. Pixels are in
[0, 1], so normalised values stay finite in float32."""
_WHOLE = re.compile(r"[1-9][0-9]{0,9}")

if TYPE_CHECKING:  # API processes only cut bytes: numpy is imported where tiles are made
    import numpy as np
    import numpy.typing as npt

Tiles: TypeAlias = "npt.NDArray[np.uint8]"
Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True)
class SetInfo:
    """What a reader needs to know about a condensed set to use any subset of it.

    Raises `ConfigError` if a value is out of range, or contradicts another.
    """

    ipc: int
    """N: images per class of the whole set."""
    factor: int
    """f: every image holds f x f tiles."""
    classes: tuple[str, ...]
    """Class names; a name's position is its label."""
    mean: tuple[float, ...]
    """Channel means for pixels in [0, 1]."""
    std: tuple[float, ...]
    """Channel standard deviations, above 0."""
    image_size: int
    """H: side in pixels that the tiles are upsampled to."""
    channels: int
    """ch: colour channels, 1 to 4."""

    def __post_init__(self) -> None:
        for name, most in (
            ("ipc", LARGEST), ("image_size", LARGEST), ("factor", self.image_size), ("channels", 4)
        ):  # fmt: skip
            _check_whole(name, getattr(self, name), most)
        if not self.classes or not all(isinstance(name, str) and name for name in self.classes):
            raise ConfigError(f"classes is {shown(self.classes)}: give at least one name, none of them empty")
        if not all(map(_is_unicode, self.classes)):
            raise ConfigError(
                f"classes is {shown(self.classes)}: a name has half of a surrogate pair, remove that character"
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        for name, least in (("mean", -LARGEST_MOMENT), ("std", 1 / LARGEST_MOMENT)):
            values = getattr(self, name)
            if len(values) != self.channels:
                raise ConfigError(
                    f"{name} has {len(values)} values, but there are {self.channels} channels: give one per channel"
                )
            # NaN fails the comparison too.
            if not all(_is_real(value) and least <= value <= LARGEST_MOMENT for value in values):
                raise ConfigError(
                    f"{name} is {shown(values)}: give numbers from {least:g} to {LARGEST_MOMENT:g}"
                )
            # 0 and 0.0 are equal but serialise differently: with floats, equal sets have equal headers.
            object.__setattr__(self, name, tuple(map(float, values)))
        if self.ipc * self.rank_bytes > LARGEST_FILE:
            raise ConfigError(
                f"the set would have {self.ipc} ranks of {self.rank_bytes} bytes, but a file has at most "
                f"{LARGEST_FILE}: lower ipc or image_size"
            )
        if self.header_bytes - 8 > LARGEST_HEADER:
            raise ConfigError(
                f"the header would have {self.header_bytes} bytes, but readers accept at most "
                f"{LARGEST_HEADER}: shorten the class names"
            )

    @cached_property  # a plan uses it at every k, and serialising a thousand class names is slow
    def header_bytes(self) -> int:
        """H: bytes before the first rank, a multiple of 4096. The whole set's header is the longest, so it decides."""
        return -(-(8 + len(_header_json(self, self.ipc))) // HEADER_STEP) * HEADER_STEP

    @property
    def tile_side(self) -> int:
        """s = ceil(H / f)."""
        return -(-self.image_size // self.factor)

    @property
    def rank_bytes(self) -> int:
        """B = C·f²·ch·s²: bytes of one rank."""
        return math.prod(self.tile_shape(1))

    def tile_shape(self, k: int) -> tuple[int, int, int, int, int, int]:
        """Shape `(k, C, f², ch, s, s)` of the tiles of subset k."""
        side = self.tile_side
        return k, len(self.classes), self.factor**2, self.channels, side, side


@dataclass(frozen=True)
class Digests:
    """Hex sha256 of everything that a device can receive; entry r-1 (or k-1) is for rank r (or subset k)."""

    object: str
    ranks: tuple[str, ...]
    headers: tuple[str, ...]
    subsets: tuple[str, ...]


def header(info: SetInfo, k: int) -> bytes:
    """The first H bytes of subset k: a pure function of the set and k, of equal length for every k."""
    text = _header_json(info, check_size(info, k))
    size = header_size(info)
    return struct.pack("<Q", size - 8) + text + b" " * (size - 8 - len(text))


def header_size(info: SetInfo) -> int:
    """H: bytes before the first rank, a multiple of 4096, the same for every k."""
    return info.header_bytes


def subset_size(info: SetInfo, k: int) -> int:
    """H + kB: bytes of the file of subset k."""
    return subset_range(info, k)[1]


def subset_range(info: SetInfo, k: int) -> tuple[int, int]:
    """Half-open byte range `[H, H + kB)` of the object that follows header(k) in subset k."""
    start = header_size(info)
    return start, start + check_size(info, k) * info.rank_bytes


def rank_range(info: SetInfo, r: int) -> tuple[int, int]:
    """Half-open byte range of rank r, 1..N, in the object and in every subset that contains it."""
    end = subset_size(info, r)
    return end - info.rank_bytes, end


def quantise(tiles: npt.NDArray[np.floating[Any]]) -> Tiles:
    """Convert tiles in [0, 1] to 8 bits: value·255, rounded half to even, clamped. Raises `DataError` for NaN."""
    import numpy as np

    exact = np.asarray(tiles, dtype=np.float64)
    if np.isnan(exact).any():
        raise DataError("the tiles contain NaN: the run has diverged, lower its step size")
    return np.rint(np.clip(exact * 255.0, 0.0, 255.0)).astype(np.uint8)


def pack(tiles: Tiles, info: SetInfo) -> bytes:
    """The object of a condensed set, from all its tiles `(N, C, f², ch, s, s)`; it is also the file of subset N."""
    if tiles.dtype != "uint8" or tiles.shape != info.tile_shape(info.ipc):
        raise ConfigError(
            f"tiles are {tiles.dtype} {tiles.shape}, but this set has uint8 {info.tile_shape(info.ipc)}"
        )
    return header(info, info.ipc) + tiles.tobytes()  # tobytes uses C order, whatever the strides


def subset(obj: Buffer, info: SetInfo, k: int) -> bytes:
    """The file of subset k, cut from the object."""
    start, end = subset_range(info, k)
    return header(info, k) + bytes(memoryview(obj)[start:end])


def read(data: Buffer) -> tuple[SetInfo, Tiles]:
    """Read the file of subset k: the set and its tiles `(k, C, f², ch, s, s)`, a read-only view of `data`.

    Raises `FormatError` for another format or version, a header that differs from header(k) in any byte, or a length
    other than H + kB.
    """
    info, k = read_header(data)
    expected = subset_size(info, k)
    if len(data) != expected:
        raise FormatError(
            f"the file has {len(data)} bytes, but its header says subset {k} of {expected}: fetch it again"
        )
    import numpy as np

    flat = np.frombuffer(bytes(data), dtype=np.uint8, offset=header_size(info))
    return info, flat.reshape(info.tile_shape(k))


def read_header(data: Buffer) -> tuple[SetInfo, int]:
    """Read set and k from the start of a file. Raises `FormatError` unless the header is exactly header(k)."""
    document = _header_document(data)
    info = _info(document["__metadata__"])
    try:
        k = check_size(info, document["tiles"]["shape"][0])
    except (LookupError, TypeError, ValueError) as error:  # ConfigError is a ValueError
        raise FormatError(
            f"the header states an impossible subset size ({error}): fetch the file again"
        ) from None
    if bytes(data[: header_size(info)]) != header(info, k):
        raise FormatError(
            f"the header is not the {FORMAT} header of subset {k}: the file is damaged, fetch it again"
        )
    return info, k


def digests(obj: Buffer, info: SetInfo) -> Digests:
    """Digests of an object, its ranks, and the header and file of every subset. Hashes about N²B/2 bytes."""
    payload = memoryview(obj)[header_size(info) :]
    sizes = range(1, info.ipc + 1)
    if len(obj) != subset_size(info, info.ipc):
        raise FormatError(f"the object has {len(obj)} bytes, but the set has {subset_size(info, info.ipc)}")
    headers = [header(info, k) for k in sizes]
    size = info.rank_bytes
    subsets = []
    for k, head in zip(sizes, headers, strict=True):
        state = hashlib.sha256(head)
        state.update(payload[: k * size])
        subsets.append(state.hexdigest())
    return Digests(
        object=sha256(obj),
        ranks=tuple(sha256(payload[(r - 1) * size : r * size]) for r in sizes),
        headers=tuple(sha256(head) for head in headers),
        subsets=tuple(subsets),
    )


def missing_ranks(length: int, k: int, info: SetInfo) -> tuple[int, ...]:
    """The ranks of subset k that a file of `length` bytes lacks or holds only in part."""
    whole = max(length - header_size(info), 0) // info.rank_bytes
    return tuple(range(whole + 1, k + 1))


def sha256(data: Buffer) -> str:
    """Hex sha256 of the data."""
    return hashlib.sha256(data).hexdigest()


def check_size(info: SetInfo, k: int) -> int:
    """Return `k`, or raise `ConfigError` if the set has no such subset (or rank)."""
    return _check_whole("k", k, info.ipc)


def _check_whole(name: str, value: object, most: int | None) -> int:
    """Return `value` if it is a whole number 1..most (or 1 or more if `most` is None)."""
    if (
        not isinstance(value, int)
        or isinstance(value, bool)
        or value < 1
        or (most is not None and value > most)
    ):
        limit = "1 or more" if most is None else f"1..{most}"
        raise ConfigError(f"{name} is {shown(value)}: give a whole number {limit}")
    return value


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_unicode(name: str) -> bool:
    """Whether UTF-8 can encode it: half of a surrogate pair is not a character."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _header_json(info: SetInfo, k: int) -> bytes:
    """The JSON of header(k). Key order, separators and ASCII escapes belong to the format."""
    metadata = {
        "format": FORMAT,
        "ipc": str(info.ipc),
        "factor": str(info.factor),
        "classes": _compact(list(info.classes)),
        "mean": _compact(list(info.mean)),
        "std": _compact(list(info.std)),
        "image_size": str(info.image_size),
        "channels": str(info.channels),
    }
    tensor = {"dtype": "U8", "shape": list(info.tile_shape(k)), "data_offsets": [0, k * info.rank_bytes]}
    return _compact({"__metadata__": metadata, "tiles": tensor}).encode("ascii")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _header_document(data: Buffer) -> dict[str, Any]:
    """The parsed header of a file of this format and version."""
    if len(data) < 8:
        raise FormatError(
            f"the file has only {len(data)} bytes, too few for a {FORMAT} header: fetch it again"
        )
    (length,) = struct.unpack_from("<Q", data)
    if length > LARGEST_HEADER:
        raise FormatError(
            f"the file states a header of {length} bytes, but {FORMAT} headers have at most {LARGEST_HEADER}: fetch "
            "the file again, or check that it is a subset"
        )
    if length > len(data) - 8:
        raise FormatError(
            f"the file states a header of {length} bytes, but only {len(data) - 8} follow: fetch it again"
        )
    try:
        document = json.loads(bytes(data[8 : 8 + length]))
        version = document["__metadata__"]["format"]
        document["tiles"]["shape"]
    except (ValueError, LookupError, TypeError, RecursionError):
        raise FormatError(
            f"this is not a {FORMAT} file: check that it is a subset, or fetch it again"
        ) from None
    if version != FORMAT:
        raise FormatError(
            f"the file has the format {shown(version)}, but this release reads {FORMAT!r}: update this software"
        )
    return dict(document)


def _info(metadata: dict[str, Any]) -> SetInfo:
    """The set that a header's metadata describes."""
    try:
        return SetInfo(
            classes=tuple(_list(metadata, "classes")),
            mean=tuple(_list(metadata, "mean")),
            std=tuple(_list(metadata, "std")),
            **{name: _whole(metadata, name) for name in ("ipc", "factor", "image_size", "channels")},
        )
    except (ConfigError, FormatError) as error:
        raise FormatError(f"the header describes an impossible set ({error}): fetch the file again") from None


def _whole(metadata: dict[str, Any], name: str) -> int:
    """Parse a number from a metadata string; `FormatError` unless it is short and plain decimal."""
    text = metadata.get(name)
    if not isinstance(text, str) or not _WHOLE.fullmatch(text):
        raise FormatError(
            f"{name} is {shown(text)}: it should be a whole number from 1 to {LARGEST} as a string"
        )
    return int(text)


def _list(metadata: dict[str, Any], name: str) -> list[Any]:
    """Parse a JSON list from a metadata string; `FormatError` if it is none."""
    text = metadata.get(name)
    try:
        values = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, list):
        raise FormatError(f"{name} is {shown(text)}: it should be a JSON list as a string")
    return values

"""Find a font on this machine that has the characters of a text. Needs Pillow."""

from __future__ import annotations

from functools import cache

from PIL import ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

FILES = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "unifont.otf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "arial.ttf",
    "msyh.ttc",
)
"""Fonts of Linux, macOS and Windows that cover many scripts. File names suffice: Pillow knows the folders."""
UNASSIGNED = "\U0010ffff"
"""A code point that no font has: it is drawn as the box for missing characters."""


def font_for(text: str, size: int) -> Font | None:
    """The first font that has every character of `text`, at `size` pixels; None if this machine has none."""
    return next((font for font in _fonts(size) if _covers(font, text)), None)


@cache
def _fonts(size: int) -> tuple[Font, ...]:
    """This machine's fonts, Pillow's own first."""
    fonts: list[Font] = [ImageFont.load_default(size)]
    for name in FILES:
        try:
            fonts.append(ImageFont.truetype(name, size))
        except OSError:
            continue
    return tuple(fonts)


def _covers(font: Font, text: str) -> bool:
    box = bytes(font.getmask(UNASSIGNED))
    return all(bytes(font.getmask(character)) != box for character in set(text))

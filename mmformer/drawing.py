"""Boxes, pictures and lines of text on a page, drawn with Pillow."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SCALE = 2
"""Shapes and letters are drawn this much larger and scaled down: Pillow draws round corners without antialiasing."""


class Pen:
    """Draws in the page's units, whatever the scale."""

    def __init__(self, image: Image.Image) -> None:
        self.image, self.draw = image, ImageDraw.Draw(image)

    def box(self, edges: tuple[float, float, float, float], fill: str, radius: int, edge: str | None = None) -> None:
        scaled = tuple(round(value * SCALE) for value in edges)
        self.draw.rounded_rectangle(scaled, radius * SCALE, fill, edge, SCALE if edge else 0)

    def picture(self, pixels: np.ndarray, corner: tuple[int, int], side: int) -> None:
        """Fitted into a square, its proportions kept."""
        picture = Image.fromarray(pixels)
        factor = side * SCALE / max(picture.size)
        size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
        # Enlarged many times, small pictures are clearer with their pixels than blurred.
        method = Image.Resampling.NEAREST if factor >= 4 else Image.Resampling.LANCZOS
        at = tuple(
            corner[axis] * SCALE + (side * SCALE - extent) // 2
            for axis, extent in enumerate(size)  # centred
        )
        self.image.paste(picture.resize(size, method), (at[0], at[1]))

    def text(
        self,
        at: tuple[float, float],
        text: str,
        size: int,
        fill: str,
        width: float | None = None,
        centred: bool = False,
        flush_right: bool = False,
    ) -> None:
        """One line from its top left, centre or right; smaller, then cut with an ellipsis, where it is wider."""
        font = ImageFont.load_default(size * SCALE)
        room = None if width is None else width * SCALE
        if room is not None and font.getlength(text) > room:
            font = ImageFont.load_default(max(11, size - 3) * SCALE)
        while room is not None and font.getlength(text) > room and len(text) > 1:
            text = text.removesuffix("…")[:-1].rstrip() + "…"
        anchor = "ma" if centred else "ra" if flush_right else "la"
        self.draw.text((at[0] * SCALE, at[1] * SCALE), text, fill, font, anchor)

    def wrapped(self, text: str, size: int, width: float, lines: int) -> list[str]:
        """Some lines of words at most so wide; where they are too few, the last one ends with an ellipsis."""
        font = ImageFont.load_default(size * SCALE)
        made: list[str] = []
        for word in text.split():
            longer = f"{made[-1]} {word}" if made else word
            if made and font.getlength(longer) <= width * SCALE:
                made[-1] = longer
                continue
            made.append(word)
            while font.getlength(made[-1]) > width * SCALE and len(made[-1]) > 1:  # a word that no line holds
                whole = made[-1]
                fits = max((n for n in range(2, len(whole)) if font.getlength(whole[:n]) <= width * SCALE), default=1)
                made[-1:] = [whole[:fits], whole[fits:]]
        if len(made) <= lines:
            return made
        last = f"{made[lines - 1]}…"
        while font.getlength(last) > width * SCALE and len(last) > 1:
            last = last[:-2].rstrip() + "…"
        return [*made[: lines - 1], last]

"""A figure as a small SVG: whole numbers, strokes of one style in one path, text as text."""

from __future__ import annotations

import html
import math
import re
from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex, to_rgba
from matplotlib.path import Path
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.text import Text
    from matplotlib.transforms import Transform
    from matplotlib.typing import ColorType

Colour = tuple[float, ...]
STOP, MOVE, LINE, QUADRATIC, CUBIC, CLOSE = 0, 1, 2, 3, 4, 79  # of a path's codes
DPI = 144  # units an inch: a point is two of them, so that a whole number is exact enough
SHOWN = 90  # pixels an inch
FONT = 20  # the size that text has by default, in units
DOT = 6  # markers up to this many units are dots on a coarser raster, those that coincide once
_RAISED = str.maketrans("0123456789-−.", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁻·")


def as_svg(figure: Figure) -> str:
    """`figure` as an <svg> element of an HTML page whose styles are STYLE."""
    figure.set_dpi(DPI)
    wide, high = figure.get_size_inches()
    renderer = _Renderer(round(wide * DPI), round(high * DPI))
    figure.draw(renderer)
    size = f'width="{round(wide * SHOWN)}" viewBox="0 0 {renderer.width} {renderer.height}"'
    return f"<svg {size}>{renderer.body()}</svg>"


STYLE = f"""
svg {{ max-width: 100%; height: auto; background: #fff; fill: none; stroke-linejoin: round;
  font: {FONT}px "DejaVu Sans", Verdana, sans-serif; }}
svg text {{ fill: #000; }} .m {{ text-anchor: middle; }} .e {{ text-anchor: end; }}
"""


class _Renderer(RendererBase):
    """What matplotlib draws a figure on."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__()
        self.width, self.height, self.dpi = width, height, DPI
        self._drawn: list[list[str]] = []  # [style, path data]; of a text ["", element]
        self._group = 0  # where the marks begin that may be joined: those of one axis do not overlap
        self._joins = 0

    def body(self) -> str:
        return "".join(f'<path {style}d="{data}"/>' if style else data for style, data in self._drawn)

    def get_canvas_width_height(self) -> tuple[int, int]:
        return self.width, self.height

    def points_to_pixels(self, points: ArrayLike) -> float:
        return float(np.asarray(points)) * DPI / 72

    def open_group(self, s: str, gid: str | None = None) -> None:
        if s.startswith("matplotlib.axis"):
            self._group, self._joins = len(self._drawn), 1

    def close_group(self, s: str) -> None:
        if s.startswith("matplotlib.axis"):
            self._joins = 0

    def draw_path(
        self, gc: GraphicsContextBase, path: Path, transform: Transform, rgbFace: ColorType | None = None
    ) -> None:
        face = _seen(rgbFace)
        style, filled = self._style(gc, face), face is not None
        moved = path.transformed(transform)
        box = gc.get_clip_rectangle()
        if box is not None and filled:
            moved = moved.clip_to_bbox(box)
        moved.simplify_threshold = 1.0
        clip = None if box is None or filled else box.extents
        curved = bool(np.isin(_codes(moved), (QUADRATIC, CUBIC)).any())
        self._add(style, self._data(moved.cleaned(remove_nans=True, clip=clip, simplify=not curved, curves=True)))

    def draw_markers(
        self, gc: GraphicsContextBase, marker_path: Path, marker_trans: Transform, path: Path, trans: Transform,
        rgbFace: ColorType | None = None,
    ) -> None:  # fmt: skip
        box = gc.get_clip_rectangle()
        places = _corners(path.transformed(trans))
        places = places[np.isfinite(places).all(1)]
        if box is not None:
            left, low, right, high = (float(n) for n in np.add(box.extents, (-1, -1, 1, 1)))
            x, y = places.T
            places = places[(left <= x) & (x <= right) & (low <= y) & (y <= high)]
        shape, face = marker_path.transformed(marker_trans), _seen(rgbFace)
        size = float(np.ptp(_corners(shape), axis=0).max())
        at = [(round(x), round(self.height - y)) for x, y in places]
        if face is None or CUBIC not in _codes(shape):
            self._add(self._style(gc, face), "".join(_glyph(shape, x, y) for x, y in at))
            return
        edge = self.points_to_pixels(gc.get_linewidth()) if size > DOT else 0.0
        layers = [(gc.get_rgb(), size + edge), (face, size - edge)] if edge else [(face, max(size, DOT / 3))]
        if edge and _hex(layers[0][0]) == _hex(face):
            layers = layers[:1]
        data = _runs(at) if size <= DOT else "".join(f"M{x} {y}h0" for x, y in at)
        for colour, wide in layers:  # a circle is a round end of a line without a length
            style = f'stroke="{_hex(colour)}" stroke-width="{wide:.2g}" stroke-linecap="round" '
            self._add(style + self._faint(gc), data)

    def draw_text(
        self, gc: GraphicsContextBase, x: float, y: float, s: str, prop: FontProperties, angle: float,
        ismath: bool | Literal["TeX"] = False, mtext: Text | None = None,
    ) -> None:  # fmt: skip
        wide, _, _ = self.get_text_width_height_descent(s, prop, ismath)
        align = "left" if mtext is None else mtext.get_horizontalalignment()
        if angle:
            align = "center"
        ahead = wide * {"left": 0.0, "center": 0.5, "right": 1.0}[align]
        turn = math.radians(angle)
        at = round(x + ahead * math.cos(turn)), round(y - ahead * math.sin(turn))
        size = round(self.points_to_pixels(prop.get_size_in_points()))
        anchor = {"left": "", "center": " class=m", "right": " class=e"}[align]
        colour = _hex(gc.get_rgb())
        more = "" if size == FONT else f" font-size={size}"
        more += "" if colour == "#000" else f' style="fill:{colour}"'
        more += f' transform="rotate({-angle:g} {at[0]} {at[1]})"' if angle else ""
        text = html.escape(_plain(s) if ismath else s, quote=False)
        self._drawn.append(["", f"<text x={at[0]} y={at[1]}{anchor}{more}>{text}</text>"])

    def _add(self, style: str, data: str) -> None:
        """Join the path to an earlier one of the same style where nothing between them can hide it."""
        if not data or not style:
            return
        known = self._drawn[self._group :] if self._joins else self._drawn[-1:]
        for entry in known:
            if entry[0] == style:
                entry[1] += data
                return
        self._drawn.append([style, data])

    def _style(self, gc: GraphicsContextBase, face: Colour | None) -> str:
        style = "" if face is None else f'fill="{_hex(face)}" '
        width = self.points_to_pixels(gc.get_linewidth())
        if width and (len(gc.get_rgb()) < 4 or gc.get_rgb()[3]):
            style += f'stroke="{_hex(gc.get_rgb())}" '
            style += "" if round(width, 1) == 1 else f'stroke-width="{width:.2g}" '
            _, dashes = gc.get_dashes()
            if dashes is not None:
                units = [f"{self.points_to_pixels(d):.2g}" for d in np.asarray(dashes, float).tolist()]
                style += f'stroke-dasharray="{" ".join(units)}" '
        return style and style + self._faint(gc, face)

    @staticmethod
    def _faint(gc: GraphicsContextBase, face: Colour | None = None) -> str:
        alpha = gc.get_alpha() if gc.get_forced_alpha() else (*(face or gc.get_rgb()), 1.0)[3]
        return "" if alpha == 1 else f'opacity="{alpha:.2g}" '

    def _data(self, path: Path) -> str:
        """The path's data in whole units."""
        corners = _corners(path) * (1, -1) + (0, self.height)
        return _encoded(np.where(np.isfinite(corners), corners, 0), _codes(path))


def _corners(path: Path) -> np.ndarray:
    return np.asarray(path.vertices, float)


def _codes(path: Path) -> list[int]:
    if path.codes is None:
        return [MOVE] + [LINE] * (len(_corners(path)) - 1)
    return [int(code) for code in np.asarray(path.codes)]


def _encoded(corners: np.ndarray, kinds: list[int]) -> str:
    """Path data, relative and in whole units; what rounds to no step is left out."""
    whole = corners.round().astype(int).tolist()
    parts: list[str] = []
    x = y = i = 0
    while i < len(whole):
        kind = kinds[i]
        step = whole[i : i + {QUADRATIC: 2, CUBIC: 3}.get(kind, 1)]
        i += len(step)
        if kind in (STOP, CLOSE):
            parts += ["z"] if kind == CLOSE and parts and parts[-1] != "z" else []
            continue
        moves = [n for a, b in step for n in (a - x, b - y)]
        if kind == MOVE:
            parts.append(f"M{_joined(step[0])}")
        elif kind == LINE and 0 in moves:
            parts += [f"h{moves[0]}"] if moves[0] else [f"v{moves[1]}"] if moves[1] else []
        elif any(moves):
            letter, data = {LINE: "l", QUADRATIC: "q", CUBIC: "c"}[kind], _joined(moves)
            goes_on = parts[-1][0] in "l-" and letter == "l" and data[0] == "-"  # of itself, and with its own blank
            parts.append(data if goes_on else letter + data)
        x, y = step[-1]
    return "".join(parts)


def _joined(numbers: list[int]) -> str:
    return " ".join(map(str, numbers)).replace(" -", "-")


def _glyph(shape: Path, x: int, y: int) -> str:
    """A marker at its place."""
    return _encoded(_corners(shape) * (1, -1) + (x, y), _codes(shape))


def _runs(at: list[tuple[int, int]]) -> str:
    """Many small dots, on a raster of DOT units, each column's neighbours in one line."""
    runs: list[list[int]] = []
    for column, row in sorted({(x // DOT, y // DOT) for x, y in at}):
        if runs and runs[-1][0] == column and runs[-1][1] + runs[-1][2] + 1 == row:
            runs[-1][2] += 1
        else:
            runs.append([column, row, 0])
    return "".join(f"M{DOT * x} {DOT * y}v{DOT * length}" for x, y, length in runs)


def _seen(face: ColorType | None) -> Colour | None:
    """What an area is filled with; None where that is nothing, or transparent."""
    colour = None if face is None else to_rgba(face)
    return None if colour is None or colour[3] == 0 else colour


def _hex(colour: tuple[float, ...]) -> str:
    text = to_hex((colour[0], colour[1], colour[2]))
    return f"#{text[1::2]}" if text[1::2] == text[2::2] else text


def _plain(mathtext: str) -> str:
    r"""`$\mathdefault{10^{-3}}$` as 10⁻³."""
    text = re.sub(r"\^\{([^{}]*)\}", lambda m: m[1].translate(_RAISED), mathtext.replace(r"\times", "×"))
    return re.sub(r"\\mathdefault|[${}]", "", text)

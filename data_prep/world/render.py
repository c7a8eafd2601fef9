"""Draws a scene at any size and at any times."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from data_prep.world.scene import CANVAS, Scene, Shape

PALETTE = {
    "red": (222, 38, 38),
    "green": (36, 178, 60),
    "blue": (44, 84, 236),
    "yellow": (240, 216, 40),
    "purple": (168, 52, 206),
    "white": (240, 240, 240),
}
_OVERSAMPLING = 8
_COARSE = 8  # the background is a smooth field drawn on 8 × 8 points


def render(scene: Scene, times: np.ndarray, size: int = CANVAS) -> np.ndarray:
    """The picture at each of `times` (s), uint8 [times, size, size, 3]."""
    rng = np.random.Generator(np.random.PCG64(scene.seed))
    background = _background(rng, size)
    frames = np.empty((len(times), size, size, 3), np.float32)
    frames[:] = background
    for shape in scene.shapes:
        _draw(frames, shape, times, size, everywhere=scene.form == "image")
    # A flicker of a percent or two. No grain: it would cost more than everything else together.
    frames *= rng.uniform(0.95, 1.05) * rng.uniform(0.985, 1.015, (len(times), 1, 1, 1)).astype(np.float32)
    np.clip(frames, 0, 255, out=frames)
    return frames.astype(np.uint8)


def _draw(frames: np.ndarray, shape: Shape, times: np.ndarray, size: int, everywhere: bool) -> None:
    scale = size / CANVAS
    mask = _sprite(shape.shape, round(shape.radius * scale * 2))
    colour = np.array(PALETTE[shape.colour], np.float32) + shape.tint
    paint, keep = mask * colour, 1 - mask
    side = len(mask)
    for i, time in enumerate(times):
        if not (everywhere or shape.appear <= time < shape.vanish):
            continue
        done = 0.0 if everywhere else (time - shape.appear) / (shape.vanish - shape.appear)
        x = round((shape.begin[0] + done * (shape.end[0] - shape.begin[0])) * scale - side / 2)
        y = round((shape.begin[1] + done * (shape.end[1] - shape.begin[1])) * scale - side / 2)
        # A sprite has a rim of one empty pixel, which may hang over the edge: hold it inside.
        x, y = min(max(x, 0), size - side), min(max(y, 0), size - side)
        spot = frames[i, y : y + side, x : x + side]
        spot *= keep
        spot += paint


@lru_cache(maxsize=4096)
def _sprite(shape: str, half_radius: int) -> np.ndarray:
    """How much of each pixel a shape of radius `half_radius` / 2 px covers, float32 [side, side, 1]."""
    radius = half_radius / 2
    side = int(np.ceil(2 * radius)) + 2
    image = Image.new("L", (side * _OVERSAMPLING,) * 2)
    middle = side * _OVERSAMPLING / 2
    points = [
        (middle + x * radius * _OVERSAMPLING, middle + y * radius * _OVERSAMPLING) for x, y in _outline(shape)
    ]
    ImageDraw.Draw(image).polygon(points, fill=255)
    fine = np.asarray(image, np.float32).reshape(side, _OVERSAMPLING, side, _OVERSAMPLING)
    return np.ascontiguousarray(fine.mean((1, 3))[..., None] / 255)


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners within about the unit circle, y down."""
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -1), (0.95, 0.75), (-0.95, 0.75)]
    corners = {"circle": 64, "star": 10}[shape]
    angles = np.arange(corners) * 2 * np.pi / corners - np.pi / 2
    lengths = np.where(np.arange(corners) % 2, 0.45, 1.05) if shape == "star" else np.full(corners, 0.95)
    return list(zip(lengths * np.cos(angles), lengths * np.sin(angles), strict=True))


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    """A dark grey with a slight tint, a slope and soft spots, float32 [size, size, 3]."""
    grid = rng.uniform(-5, 5, (_COARSE, _COARSE, 3)).astype(np.float32)
    slope = np.linspace(-1, 1, _COARSE, dtype=np.float32)
    grid += rng.uniform(-8, 8) * slope[:, None, None] + rng.uniform(-8, 8) * slope[None, :, None]
    grid += rng.uniform(26, 56) + rng.uniform(-6, 6, 3).astype(np.float32)
    spread = _spread(size)
    rows = (spread @ grid.reshape(_COARSE, -1)).reshape(size, _COARSE, 3)
    return np.einsum("xc,ycd->yxd", spread, rows, optimize=True)


@lru_cache(maxsize=8)
def _spread(size: int) -> np.ndarray:
    """Linear interpolation from the coarse points to `size` pixels, float32 [size, coarse]."""
    place = np.linspace(0, _COARSE - 1, size, dtype=np.float32)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(_COARSE, dtype=np.float32)))

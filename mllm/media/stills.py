"""Images, animations and folders of frames, through Pillow. Private to `media` and `windows`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm.errors import MediaError
from mllm.files import open_ordinary, printable
from mllm.media.sources import SUFFIXES, Source, check_frame_bytes, check_pixels, clear_errors, frame_order

# JPEG includes MPO, which phones write.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF", "TIFF")
ANIMATED = {"GIF", "WEBP", "PNG", "AVIF"}  # several pictures in a JPEG are views, in a TIFF pages
NOMINAL_DELAY = 0.1  # s that browsers show a frame without a duration
SOUND_SUFFIXES = {".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus"}
FOLDER_FPS = 3.0  # frames per second in a folder without fps.txt: TVQA's


@dataclass(frozen=True)
class Stills:
    """Pictures that Pillow reads.

    Attributes:
        files: one file with all pictures, or one per picture.
        times, end: float64 [frames] s, when each appears, and when the last one ends.
        width, height: pixels, upright, of the first picture.
        codec: Pillow's name of the format, in lower case.
        rotation: degrees clockwise by which the first picture is turned.
    """

    files: list[Source]
    times: np.ndarray
    end: float
    width: int
    height: int
    codec: str
    rotation: int = 0
    max_pixels: int | None = None

    def read(self, positions: np.ndarray, size: int | None) -> np.ndarray:
        """uint8 [positions, height, width, 3] of positions in ascending order."""
        frames = np.empty((len(positions), size or self.height, size or self.width, 3), np.uint8)
        for place, (name, image) in enumerate(self._images(positions.tolist())):
            with clear_errors(name):
                picture = upright_rgb(image, size)
            if picture.shape != frames.shape[1:]:
                differ = f"{picture.shape[1]}×{picture.shape[0]} pixels, the first {self.width}×{self.height}"
                raise MediaError(f"{name}: {differ}: give all frames of a folder one size, or choose `size`")
            frames[place] = picture
        return frames

    def _images(self, positions: Iterable[int]) -> Iterator[tuple[str, Image.Image]]:
        if len(self.files) > 1:
            for position in positions:
                file = self.files[position]
                with require_image(file, self.max_pixels) as image:
                    yield file.name, image
            return
        with require_image(self.files[0], self.max_pixels) as image:
            for position in positions:
                if len(self.times) > 1:
                    image.seek(position)
                yield self.files[0].name, image


def open_image(source: Source, max_pixels: int | None) -> Image.Image | None:
    """The image, with pixels not yet decoded; None if it is not an image.

    Raises:
        MediaError: if it is damaged, or has too many pixels.
    """
    with clear_errors(source.name):
        try:
            image = Image.open(source.handle(), formats=FORMATS)
        except UnidentifiedImageError:
            return None
        except Image.DecompressionBombError:
            raise MediaError(f"{source.name}: far too many pixels for one picture: scale it down") from None
        check_pixels(source.name, *image.size, max_pixels)
        return image


def require_image(source: Source, max_pixels: int | None) -> Image.Image:
    """Like `open_image`, but raises MediaError if it is not an image."""
    image = open_image(source, max_pixels)
    if image is None:
        raise MediaError(
            f"{source.name}: not an image that can be read: replace it with a png or jpg, or remove it"
        )
    return image


def read_stills(source: Source, image: Image.Image, max_pixels: int | None, max_bytes: int | None) -> Stills:
    """An image, or an animation with its own timing, whose frames may take `max_bytes`."""
    delays = []
    with clear_errors(source.name), image:
        count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
        rotation = {3: 180, 6: 90, 8: 270}.get(image.getexif().get(0x0112, 1), 0)
        if count > 1:
            check_frame_bytes(source.name, count, *image.size, max_bytes)
            for number in range(count):
                image.seek(number)
                image.load()  # WebP knows a frame's duration only then
                delays.append((image.info.get("duration") or 0) / 1000 or NOMINAL_DELAY)
    turned = rotation in (90, 270) and image.format != "TIFF"  # whose size Pillow turns already
    width, height = image.size[::-1] if turned else image.size
    ends = np.cumsum(delays) if delays else np.zeros(1)
    times = np.concatenate([[0.0], ends[:-1]])
    codec = (image.format or "image").lower()
    return Stills([source], times, float(ends[-1]), width, height, codec, rotation, max_pixels)


def read_folder(folder: Path, name: str, max_pixels: int | None) -> tuple[Stills, Path | None]:
    """A folder of frames in the order of their names (frame2 before frame10), and its one sound file, if any.

    The frame rate is read from `fps.txt`, by default FOLDER_FPS.

    Raises:
        MediaError: if there are no frames, several sound files, or an invalid fps.txt.
    """
    with clear_errors(name):
        entries = sorted(
            (path for path in folder.iterdir() if not path.name.startswith(".") and not path.is_dir()),
            key=frame_order,
        )
    for path in entries:
        if path.suffix.lower() in SUFFIXES["image"] | SOUND_SUFFIXES or path.name == "fps.txt":
            open_ordinary(path).close()
    files = [Source(printable(path), path) for path in entries if path.suffix.lower() in SUFFIXES["image"]]
    sounds = [path for path in entries if path.suffix.lower() in SOUND_SUFFIXES]
    if not files:
        raise MediaError(f"{name}: no frames in this folder: put png or jpg files there, named in order")
    if len(sounds) > 1:
        both = f"{sounds[0].name} and {sounds[1].name}"
        raise MediaError(f"{name}: several sound files ({both}): keep one, or name it with `audio`")
    fps = FOLDER_FPS
    if (folder / "fps.txt").is_file():
        with open_ordinary(folder / "fps.txt") as file:
            text = printable(file.read(100).decode(errors="replace").strip())
        try:
            fps = float(text)
        except ValueError:
            fps = 0.0
        if not 0 < fps < 1e6:
            raise MediaError(
                f"{name}/fps.txt: '{text[:20]}' is no frame rate: write a number above 0, such as 3"
            )
    with require_image(files[0], max_pixels) as image:
        first = read_stills(files[0], image, max_pixels, None)
    times = np.arange(len(files)) / fps
    stills = Stills(
        files, times, len(files) / fps, first.width, first.height, first.codec, first.rotation, max_pixels
    )
    return stills, sounds[0] if sounds else None


def upright_rgb(image: Image.Image, size: int | None = None) -> np.ndarray:
    """uint8 [height, width, 3]: turned according to EXIF, on white if transparent, squashed to size×size."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # 16-bit grey: Pillow would clip it, not scale it
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        image = _eight_bits(np.asarray(image, np.float64))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _eight_bits(values: np.ndarray) -> Image.Image:
    """A grey picture of integers or floats, with white at 1, 255, 65,535 or its brightest pixel."""
    values = np.nan_to_num(values, posinf=0.0).clip(0)
    brightest = float(values.max(initial=0.0))
    white = next((level for level in (1.0, 255.0, 65_535.0) if brightest <= level), brightest)
    return Image.fromarray((values / white * 255).astype(np.uint8))


def resize(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 [frames, height, width, 3] -> [frames, size, size, 3], with the filter that the decoders use."""
    if frames.shape[1:3] == (size, size):
        return frames
    return np.stack([upright_rgb(Image.fromarray(frame), size) for frame in frames])

"""Numbers to colours whose lightness rises evenly, so that equal steps look equal."""

import numpy as np

# In OKLCh (Ottosson, 2020, https://bottosson.github.io/posts/oklab): the lightness of both ends;
# their hues in degrees, of which the way from violet to yellow leads over red; the chroma of the
# ends and of the middle, about as much as sRGB has there.
_LIGHTNESS, _HUE, _CHROMA = (0.18, 0.95), (290, 465), (0.05, 0.19)
_TO_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_TO_RGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)


def colour_map(values: np.ndarray) -> np.ndarray:
    """[...] from 0, nearly black violet, to 1, light yellow: uint8 [..., 3]; others are clipped."""
    return _TABLE[np.rint(np.clip(values, 0, 1) * 255).astype(int)]


def _table() -> np.ndarray:
    share = np.linspace(0, 1, 256)
    lightness = _LIGHTNESS[0] + share * (_LIGHTNESS[1] - _LIGHTNESS[0])
    hue = np.radians(_HUE[0] + share * (_HUE[1] - _HUE[0]))
    chroma = _CHROMA[0] + np.sin(np.pi * share) * (_CHROMA[1] - _CHROMA[0])
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


_TABLE = _table()

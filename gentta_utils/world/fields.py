"""Random fields (side, side) that corruptions draw: plasma, coloured noise, gradient noise."""

import numpy as np

from ..common.types import Number

Array = np.ndarray
Rng = np.random.Generator


def plasma(side: int, decay: Number, rng: Rng) -> Array:
    """Diamond-square map (side, side) in [0, 1]; side a power of two, edges wrap; larger `decay`, smoother."""
    field, step, wibble = np.zeros((side, side)), side, 100.0

    def noisy(mean: Array) -> Array:
        return mean / 4 + wibble * rng.uniform(-wibble, wibble, mean.shape)

    while step >= 2:
        half = step // 2
        corners = field[::step, ::step]
        pair = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = noisy(pair + np.roll(pair, -1, 1))  # squares
        centres = field[half::step, half::step]
        field[half::step, ::step] = noisy(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        field[::step, half::step] = noisy(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


def standard(field: Array) -> Array:
    """A field (side, side) with mean 0 and standard deviation 1."""
    return (field - field.mean()) / field.std()


def coloured(side: int, exponent: Number, rng: Rng) -> Array:
    """Gaussian noise (side, side) with amplitudes |f|^exponent and no mean, unit spread, edges wrap.

    1 is blue noise, 0 white, -1 brown (its power falls as 1 / f^2)."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.normal(size=(side, side))) * f**exponent
    spectrum[0, 0] = 0
    return standard(np.fft.irfft2(spectrum, s=(side, side)))


def gradient_noise(side: int, cells: int, octaves: int, rng: Rng) -> Array:
    """Perlin's noise (side, side) of unit spread: octave k has a lattice of cells * 2^k and half the last one's weight.

    In a cell with corners c and random unit vectors g_c: sum over c of s(u - c) g_c . (u - c), s the quintic blend."""
    total = np.zeros((side, side))
    for k in range(octaves):
        n = cells * 2**k
        angle = rng.uniform(0, 2 * np.pi, (n + 1, n + 1))
        at = (np.arange(side) + 0.5) / side * n
        cell = np.minimum(at.astype(int), n - 1)
        inside = at - cell
        blend = inside**3 * (inside * (inside * 6 - 15) + 10)
        for i in (0, 1):
            for j in (0, 1):
                a = angle[np.ix_(cell + i, cell + j)]
                slope = np.sin(a) * (inside - i)[:, None] + np.cos(a) * (inside - j)
                weight = (blend if i else 1 - blend)[:, None] * (blend if j else 1 - blend)
                total += 0.5**k * weight * slope
    return standard(total)

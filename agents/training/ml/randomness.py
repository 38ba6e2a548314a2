"""The random numbers that privacy rests on: noise and Poisson draws.

Opacus draws both from torch's Mersenne Twister, whose state can be recovered from its output. Here they come
from an AES-256-CTR keystream (NIST SP 800-38A) under a key the operating system made for one step and nobody
keeps: it is never logged, checkpointed or reused.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_UNIT: Final = 2.0**-53


def unit_interval(random_bytes: bytes) -> NDArray[np.float64]:
    """A float64 in [0, 1) from each 8 bytes: the upper 53 bits, so that every multiple of 2^-53 can occur."""
    words = np.frombuffer(random_bytes, dtype="<u8")
    numbers: NDArray[np.float64] = np.multiply(words >> np.uint64(11), _UNIT, dtype=np.float64)
    return numbers


class Keystream:
    """Uniform and normal numbers from one AES-256 key (32 bytes), each word of the keystream used once."""

    def __init__(self, key: bytes) -> None:
        self._cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """``count`` numbers uniform over the multiples of 2^-53 in [0, 1)."""
        return unit_interval(self._cipher.update(bytes(8 * count)))

    def normals(self, count: int) -> NDArray[np.float64]:
        """``count`` standard normal numbers by Box and Muller (1958), float64; the tails end at 8.57."""
        half = math.ceil(count / 2)
        numbers = np.empty(2 * half)
        # 1 - u lies in (0, 1], where the logarithm is finite.
        radius = np.sqrt(-2.0 * np.log1p(-self.uniforms(half)))
        angle = 2.0 * math.pi * self.uniforms(half)
        np.multiply(radius, np.cos(angle), out=numbers[:half])
        np.multiply(radius, np.sin(angle), out=numbers[half:])
        return numbers[:count]


@dataclass(frozen=True, slots=True)
class RandomSource:
    """Where each step's keystream comes from: the operating system, or a seed.

    A fixed seed makes a run repeatable and its noise predictable: such a run is ``non_private``.
    """

    seed: int | None = None

    @property
    def non_private(self) -> bool:
        """Whether whoever knows the seed could take the noise off again."""
        return self.seed is not None

    def stream(self, step: int) -> Keystream:
        """The keystream of one step. A new key each time, so that forked processes never share one."""
        if self.seed is None:
            return Keystream(os.urandom(32))
        return Keystream(self.derived(f"step {step}"))

    def derived(self, purpose: str) -> bytes:
        """32 bytes from the seed for ``purpose``; only a seeded source has them."""
        if self.seed is None:
            raise ValueError("an OS-seeded source has no reproducible bytes: give it a seed")
        return hashlib.sha256(f"{self.seed}|{purpose}".encode()).digest()


def poisson_draw(stream: Keystream, population: int, sample_rate: float) -> list[int]:
    """The members of a Poisson batch: each index below ``population`` independently with ``sample_rate``."""
    return np.flatnonzero(stream.uniforms(population) < sample_rate).tolist()

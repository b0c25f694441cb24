"""Mutation fuzzer: damaged copies of files, from a generator of random numbers alone."""

import random
from collections.abc import Iterator, Sequence

_NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
"""Numbers at which a reader of sizes and offsets overflows."""
_HEADER_BYTES = 128


def mutants(originals: Sequence[bytes], rng: random.Random, count: int) -> Iterator[bytes]:
    """`count` files, each one of the originals with one to four changes."""
    for number in range(count):
        data = bytearray(originals[number % len(originals)])
        for _ in range(rng.randint(1, 4)):
            rng.choice(_CHANGES)(data, rng, rng.choice(originals))
        yield bytes(data)


def _place(data: bytearray, rng: random.Random) -> int:
    """A position, half of the time among the first bytes, where the header is."""
    return rng.randrange(max(1, min(len(data), _HEADER_BYTES) if rng.random() < 0.5 else len(data)))


def _flip(data: bytearray, rng: random.Random, _other: bytes) -> None:
    for _ in range(rng.randint(1, 16)):
        if data:
            data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, _other: bytes) -> None:
    place, width = _place(data, rng), rng.choice((1, 2, 4, 8))
    number = rng.choice(_NUMBERS) % (1 << 8 * width)
    data[place : place + width] = number.to_bytes(width, rng.choice(("big", "little")))


def _cut(data: bytearray, rng: random.Random, _other: bytes) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _remove(data: bytearray, rng: random.Random, _other: bytes) -> None:
    place = _place(data, rng)
    del data[place : place + rng.randint(1, 64)]


def _repeat(data: bytearray, rng: random.Random, _other: bytes) -> None:
    place = _place(data, rng)
    data[place:place] = bytes(data[place : place + rng.randint(1, 64)]) * rng.choice((1, 2, 100))


def _insert(data: bytearray, rng: random.Random, _other: bytes) -> None:
    place = _place(data, rng)
    data[place:place] = rng.choice((rng.randbytes(rng.randint(1, 64)), bytes(64), b"\xff" * 64))


def _splice(data: bytearray, rng: random.Random, other: bytes) -> None:
    place, begin = _place(data, rng), rng.randrange(max(1, len(other)))
    data[place : place + rng.randint(0, 256)] = other[begin : begin + 256]


_CHANGES = (_flip, _number, _cut, _remove, _repeat, _insert, _splice)

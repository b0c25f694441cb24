"""Decoder of all images of a folder, in a process that may use little memory: python -m tests.faults.decode_all FOLDER.

The last line says, as JSON, how each ended, how long the slowest took, and the most memory that was used.
"""

import faulthandler
import json
import resource
import sys
import time
from collections import Counter
from pathlib import Path

from foundry.images.decoding import DecodeLimits, decode_image
from foundry.units.rejection import ImageError

LIMITS = DecodeLimits(max_image_pixels=16_000_000)
MAX_ADDRESS_SPACE = 2 << 30


def main(folder: str) -> None:
    """Raises what decode_image may not raise; a crash of a decoder leaves the image's name as the last line."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    for number, path in enumerate(sorted(Path(folder).iterdir())):
        print(path.name, flush=True)
        began = time.process_time()
        try:
            image = decode_image(path.read_bytes(), limits=LIMITS, target_side_px=(None, 24)[number % 2])
        except ImageError as error:
            outcomes[error.reason if error.message and "\n" not in error.message else f"not one line: {error!r}"] += 1
        else:
            assert image.pixels.ndim == 3 and image.pixels.shape[2] == 3
            assert image.width * image.height <= LIMITS.max_image_pixels
            outcomes["decoded"] += 1
        slowest = max(slowest, (time.process_time() - began, path.name))
    print(json.dumps({"outcomes": outcomes, "seconds": slowest[0], "slowest": slowest[1], "peak_mb": peak_mb()}))


def peak_mb() -> int:
    """The most memory of this process; ru_maxrss would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) >> 10


if __name__ == "__main__":
    main(*sys.argv[1:])

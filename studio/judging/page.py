"""Judging tab as plain functions: a pair is drawn at one seed, shown in a random order without names, and judged.

Which image is whose is kept by the server alone: not in the page, not in the address of an image, not in its bytes.
"""

import io
import random
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from foundry.errors import UserError
from studio.drawing.painter import DrawSettings, Painter
from studio.html import quiet, table, text
from studio.judging.verdicts import Better, Verdict, VerdictLog, tally_rows

if TYPE_CHECKING:
    from PIL.Image import Image

PAIRS = "/pairs"
_KEPT = 64
_SEEDS = 1000


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two images that wait for a verdict."""

    settings: DrawSettings
    first: str
    second: str
    first_is_left: bool
    left: bytes = field(repr=False)
    right: bytes = field(repr=False)


class JudgeTab:
    """Pairs by their tokens, and the verdicts on them."""

    def __init__(self, painter: Painter, verdicts: VerdictLog, *, generator: random.Random | None = None) -> None:
        self.painter = painter
        self.verdicts = verdicts
        self._generator = generator or random.SystemRandom()
        self._pairs: OrderedDict[str, Pair] = OrderedDict()
        self._judged: deque[str] = deque(maxlen=_KEPT)
        self._lock = threading.Lock()

    def new_pair(
        self, checkpoints: Sequence[str], prompts: str, *, steps: int | None = None, guidance: float | None = None
    ) -> tuple[str, str]:
        """Draws a pair and returns its token and what is shown of it.

        Prompts are one to a line; the pair takes a prompt and a seed that were judged least often. Raises UserError for two
        checkpoints that are the same, for no prompt, and as Painter.draw does.
        """
        first, second = _two(checkpoints)
        prompt, seed = self._next(first, second, [line.strip() for line in prompts.splitlines() if line.strip()])
        settings = DrawSettings(prompt=prompt, seed=seed, num_inference_steps=steps, guidance_scale=guidance)
        images = [_png(self.painter.draw(checkpoint, settings).image) for checkpoint in (first, second)]
        first_is_left = self._generator.random() < 0.5
        left, right = images if first_is_left else images[::-1]
        token = secrets.token_hex(12)
        with self._lock:
            self._pairs[token] = Pair(
                settings=settings, first=first, second=second, first_is_left=first_is_left, left=left, right=right
            )
            while len(self._pairs) > _KEPT:
                self._pairs.popitem(last=False)
        return token, pair_html(token, prompt)

    def image(self, token: str, side: str) -> bytes | None:
        """The left or the right image of a pair; None if there is no such pair."""
        pair = self._pairs.get(token)
        return {"left": pair.left, "right": pair.right}.get(side) if pair else None

    def judge(self, token: str, side: str, *, by: str) -> str:
        """Saves a verdict: left, right or tie. A line that says whose images they were. Raises UserError without a pair."""
        if not by.strip():
            raise UserError("expected your name, which is saved with the verdict: fill it in")
        if side not in ("left", "right", "tie"):
            raise UserError(f"expected left, right or tie, found {side}")
        with self._lock:
            pair = self._pairs.pop(token, None)
            self._judged.append(token)
        if pair is None:
            raise UserError("there is no pair to judge: draw a new one")
        better: Better = "tie" if side == "tie" else "first" if (side == "left") == pair.first_is_left else "second"
        self.verdicts.add(
            Verdict(
                judged_at=datetime.now(UTC).isoformat(timespec="seconds"),
                judged_by=by.strip(),
                first=pair.first,
                second=pair.second,
                first_was_left=pair.first_is_left,
                prompt=pair.settings.prompt,
                seed=pair.settings.seed,
                num_inference_steps=pair.settings.num_inference_steps,
                guidance_scale=pair.settings.guidance_scale,
                better=better,
            )
        )
        names = (pair.first, pair.second) if pair.first_is_left else (pair.second, pair.first)
        return f"saved; the left image was drawn by {names[0]}, the right one by {names[1]}"

    def is_judged(self, token: str) -> bool:
        """Whether there is a verdict on a pair already: a second click says nothing new."""
        return token in self._judged

    def tally(self) -> str:
        """The tally of all verdicts, as a table."""
        rows = tally_rows(self.verdicts.tallies())
        empty = "Nothing was judged yet."
        return table(rows, caption="Verdicts by pair of checkpoints", empty=empty)

    def _next(self, first: str, second: str, prompts: list[str]) -> tuple[str, int]:
        if not prompts:
            raise UserError("expected prompts, one to a line")
        judged = [(one.prompt, one.seed) for one in self.verdicts.all() if (one.first, one.second) == (first, second)]
        times = {prompt: sum(prompt == other for other, _ in judged) for prompt in prompts}
        prompt = self._generator.choice([prompt for prompt in prompts if times[prompt] == min(times.values())])
        seeds = set(range(_SEEDS)) - {seed for other, seed in judged if other == prompt}
        return prompt, self._generator.choice(sorted(seeds) or [0])


def pair_html(token: str, prompt: str) -> str:
    """Two images without names."""
    sides = "".join(
        f'<figure><img src="{PAIRS}/{token}/{side}.png" alt="{side} image of: {text(prompt)}">'
        f"<figcaption>{side.capitalize()}</figcaption></figure>"
        for side in ("left", "right")
    )
    return f'<div role="status" aria-live="polite"><p><b>{text(prompt)}</b></p><div class="pair">{sides}</div></div>'


def no_pair() -> str:
    """What is shown before the first pair."""
    return quiet("Draw a pair. The order is random, and names are shown after your verdict.")


def _two(checkpoints: Sequence[str]) -> tuple[str, str]:
    """The checkpoints in the order of their names, so that A against B is B against A."""
    if len(set(checkpoints)) != 2:
        raise UserError(
            f"expected two different checkpoints, found {' and '.join(map(str, checkpoints)) or 'none'}: choose two"
        )
    first, second = sorted(checkpoints)
    return first, second


def _png(image: "Image") -> bytes:
    """A PNG of the pixels alone."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()

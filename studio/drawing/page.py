"""Drawing tab as plain functions: images of several checkpoints at one seed, and the history of all drawings."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict

from foundry.errors import UserError
from studio.drawing.history import Drawing, History
from studio.drawing.painter import DrawSettings, Painter, StoppedError
from studio.html import failure, quiet, reason, text

DRAWINGS = "/drawings"
_PER_PAGE = 24


class DrawTab:
    """Draws with a painter and keeps the images in a history."""

    def __init__(self, painter: Painter, history: History) -> None:
        self.painter = painter
        self.history = history
        self._stops: dict[str, threading.Event] = {}

    def draw(self, checkpoints: Sequence[str], settings: DrawSettings, *, person: str = "") -> Iterator[str]:
        """The images as they get done, side by side, then with all of them; a checkpoint that fails says why in its place.

        `stop` with the same person, a name for an open page, ends it.
        """
        if not checkpoints:
            yield failure("no checkpoint is chosen: choose one or several")
            return
        stop = self._stops[person] = threading.Event()
        done: list[str] = []
        for number, checkpoint in enumerate(checkpoints, 1):
            yield _row([*done, quiet(f"drawing with {checkpoint} ({number} of {len(checkpoints)}) …")])
            try:
                done.append(drawing_html(self.history.add(self.painter.draw(checkpoint, settings, stop=stop))))
            except StoppedError:
                done.append(quiet(f"stopped before {checkpoint} was done"))
                break
            except (UserError, ModuleNotFoundError) as error:
                done.append(failure(f"{checkpoint}: {reason(error)}"))
        yield _row(done)

    def stop(self, person: str = "") -> None:
        """Stops what this person is drawing after the step in hand."""
        if person in self._stops:
            self._stops[person].set()

    def past(self, before: str = "") -> tuple[str, str]:
        """A page of the history, the newest first, and the name of its last drawing; "" where no more follow."""
        found = self.history.newest(number=_PER_PAGE + 1, before=before)
        items = "".join(f"<li>{_item(one)}</li>" for one in found[:_PER_PAGE])
        html = f'<ul class="pictures" aria-label="Earlier drawings">{items}</ul>' if items else quiet("Nothing was drawn yet.")
        return html, found[_PER_PAGE - 1].name if len(found) > _PER_PAGE else ""

    def settings_of(self, name: str) -> Drawing:
        """A drawing of the history. Raises UserError if there is none of this name."""
        found = self.history.find(name)
        if found is None:
            raise UserError("this drawing is no longer in the history: choose another")
        return found


def drawing_html(one: Drawing) -> str:
    """An image with what it was drawn from."""
    given = {name: value for name, value in asdict(one.settings).items() if value is not None and value != ""}
    if not one.settings.lora:
        given.pop("lora_scale")
    facts = [f"{name.replace('_', ' ')} {value}" for name, value in given.items() if name not in ("prompt", "rewrites")]
    drawn = "" if one.drawn_prompt == one.settings.prompt else f"<p><b>Read by the network</b> {text(one.drawn_prompt)}</p>"
    remark = quiet(one.remark) if one.remark else ""
    return (
        f'<figure class="drawing"><img src="{DRAWINGS}/{one.name}" alt="{text(one.drawn_prompt)}"><figcaption>'
        f"<b>{text(one.checkpoint)}</b><p>{text(one.settings.prompt)}</p>{drawn}"
        f'<p class="quiet">{text(" · ".join(facts))}</p>{remark}</figcaption></figure>'
    )


def _row(items: Sequence[str]) -> str:
    return f'<div class="drawings" role="status" aria-live="polite">{"".join(items)}</div>'


def _item(one: Drawing) -> str:
    return (
        f'<button type="button" data-pick="{one.name}"><img loading="lazy" src="{DRAWINGS}/{one.name}" '
        f'alt="{text(one.drawn_prompt)}"><span class="key">{text(one.checkpoint)} · seed {one.settings.seed}</span>'
        f'<span class="snippet">{text(one.settings.prompt)}</span></button>'
    )

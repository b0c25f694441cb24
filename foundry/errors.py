"""Errors that a user, a file or a machine causes.

All are UserErrors; a subclass is for what a caller tells apart. All can be pickled, since workers raise them too:
what they hold besides the message has a default.
"""


class UserError(ValueError):
    """Error that the user, a file or a machine caused. The message is one line that ends in what to do.

    `setting` is the dotted name of the configuration field to change, if there is one: a command that has it adds its option.
    """

    def __init__(self, message: str, *, setting: str = "") -> None:
        super().__init__(message)
        self.setting = setting

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback: IPython asks for it by this name."""
        return [f"{type(self).__name__}: {self}{f' ({self.setting}=…)' if self.setting else ''}"]


class StoreError(UserError):
    """A store that did not answer, or refused. `is_alone` where it may be for this one image: a refusal, or a web address.

    `may_pass`: whether another try may succeed. `advice` ends the message of a run that stops; `finding` is the message without
    it, for an image that is rejected.
    """

    def __init__(
        self, finding: str, *, advice: str = "", is_alone: bool = False, may_pass: bool = False, setting: str = ""
    ) -> None:
        super().__init__(f"{finding}; {advice}" if advice else finding, setting=setting)
        self.finding = finding
        self.is_alone = is_alone
        self.may_pass = may_pass


class SourceError(UserError):
    """A file that is no source of images, or a damaged one. `reason` says why, as a part of a sentence without the file."""

    def __init__(self, message: str, *, reason: str = "", setting: str = "") -> None:
        super().__init__(message, setting=setting)
        self.reason = reason


class NotOnHub(UserError):
    """A model that neither the hub gives nor its cache on this machine has. `reason` says why, as a part of a sentence."""

    def __init__(self, message: str, *, reason: str = "", setting: str = "") -> None:
        super().__init__(message, setting=setting)
        self.reason = reason


class RayLost(UserError):
    """Ray, or the node of this process, is gone; the message says what was seen."""


class Unavailable(UserError):
    """A service that the work needs stays away, refuses all requests or has changed: no image is to blame, and the run ends."""


class NotFinite(UserError):
    """The loss, the gradient or the weights of a training are not finite: on all workers at the same step."""


class NotFiniteOutput(UserError):
    """Error for NaN or infinity in a model's output; the message names the model and its number format."""


def one_line(error: BaseException | str, *, limit: int | None = None) -> str:
    """An error, or the message of one, as one line, never empty; `limit` cuts it to that many characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:limit]

"""Errors come out of a worker as they went in, and are one line however a library wrote them."""

import pickle

import pytest

from foundry.errors import NotFinite, NotOnHub, RayLost, SourceError, StoreError, Unavailable, UserError, one_line


@pytest.mark.parametrize(
    "error",
    [
        UserError("a"),
        RayLost("a"),
        NotFinite("a"),
        Unavailable("a", setting="b"),
        StoreError("a", is_alone=True, may_pass=True),
        SourceError("a", reason="b"),
        NotOnHub("a", reason="b"),
    ],
)
def test_an_error_is_pickled_with_all_that_it_holds(error: UserError) -> None:
    after = pickle.loads(pickle.dumps(error))
    assert type(after) is type(error) and isinstance(after, UserError)
    assert (str(after), vars(after)) == (str(error), vars(error))


def test_an_error_is_one_line_that_is_never_empty() -> None:
    assert one_line(OSError("a\n  b\tc")) == "a b c"
    assert one_line(OSError("a\n  b\tc"), limit=3) == "a b"
    assert one_line(KeyError()) == "KeyError"


def test_a_notebook_shows_one_line_in_place_of_a_traceback() -> None:
    """IPython asks an error for its traceback by this name, which is not public."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shown: list[str] = []

    class Shell(InteractiveShell):
        def _showtraceback(self, etype: type[BaseException], evalue: BaseException, stb: list[str]) -> None:
            shown.extend(stb)

    settings = Config()
    settings.HistoryManager.enabled = False
    raising = "from foundry.errors import UserError\nraise UserError('there is no run: give its folder', setting='out')"
    Shell(config=settings).run_cell(raising)  # type: ignore[no-untyped-call]
    assert shown == ["UserError: there is no run: give its folder (out=…)"]

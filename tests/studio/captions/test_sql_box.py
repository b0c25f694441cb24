"""SQL of people: a query that is stopped, takes too long or is replaced by another one ends, and says why."""

import threading
import time

import pytest

from studio.captions.source import CaptionSource
from studio.captions.sql_box import SqlBox

ENDLESS = "SELECT count(*) FROM range(100000) a, range(100000) b, range(100000) c WHERE (a.range + b.range + c.range) % 7 = 3"


def test_a_query_ends_at_the_limit_and_names_it(source: CaptionSource) -> None:
    box = SqlBox([source], limit_s=0.3)
    before = time.monotonic()
    answer = box.ask(0, ENDLESS)
    assert answer is not None and "ran for 0.3 s" in answer and "sql_limit_s" in answer
    assert time.monotonic() - before < 10
    assert "60" in (box.ask(0, "SELECT count(*) FROM captions") or "")


@pytest.mark.parametrize("closes", [False, True])
def test_a_query_that_is_stopped_says_so(source: CaptionSource, closes: bool) -> None:
    box = SqlBox([source], limit_s=60)
    timer = threading.Timer(0.3, box.close if closes else lambda: box.stop("ada"))
    timer.start()
    answer = box.ask(0, ENDLESS, person="ada")
    assert answer is not None and ("the studio was closed" if closes else "stopped") in answer


def test_the_next_query_of_a_person_ends_the_one_before_whose_answer_is_not_shown(source: CaptionSource) -> None:
    box = SqlBox([source], limit_s=60)
    answers: list[str | None] = []
    first = threading.Thread(target=lambda: answers.append(box.ask(0, ENDLESS, person="ada")))
    first.start()
    while "ada" not in box._queries:
        time.sleep(0.01)
    assert "42" in (box.ask(0, "SELECT 42 AS answer", person="bob") or "") and first.is_alive()  # another person's
    assert "43" in (box.ask(0, "SELECT 43 AS answer", person="ada") or "")
    first.join()
    assert answers == [None]

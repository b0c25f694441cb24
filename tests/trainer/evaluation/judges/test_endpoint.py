"""A judge that is out, busy or refuses: tried again as it asks, given up in one line, and the key is shown to nobody else."""

import email.utils
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from foundry.chat_endpoint import Answer
from foundry.errors import UserError
from tests.chat_server import JudgeServer, Reply, fails, judge_server, says
from trainer.evaluation.config import JudgeEndpointConfig
from trainer.evaluation.judges.endpoint import JudgeEndpoint, KeptAnswers, question_key

KEY = "sk-3f9c-not-to-be-seen"
BODY = {"model": "a judge", "messages": [{"role": "user", "content": [{"type": "text", "text": "well?"}]}]}


class _Pauses(threading.Event):
    """Notes how long it is waited for, and does not wait: the clock of this test advances by as much."""

    now = 0.0

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds.append(timeout or 0.0)
        _Pauses.now += timeout or 0.0
        return False


@pytest.fixture
def judge() -> Iterator[JudgeServer]:
    with judge_server(lambda body: says("Score: 1")) as server:
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("foundry.chat_endpoint.monotonic", lambda: _Pauses.now)


def _endpoint(url: str, *, tries: int = 8) -> tuple[JudgeEndpoint, list[float]]:
    endpoint = JudgeEndpoint(JudgeEndpointConfig(url=url, key_variable="THE_KEY", outage_tries=tries))
    pauses = _Pauses()
    endpoint._stopped = endpoint._limit._stopped = pauses
    return endpoint, pauses.seconds


def _in_turn(*replies: Reply) -> Callable[[object], Reply]:
    rest = list(replies)
    return lambda body: rest.pop(0)


def test_an_answer_comes_with_its_tokens_and_the_key_goes_in_the_header(judge: JudgeServer) -> None:
    endpoint, pauses = _endpoint(judge.url)
    answer = Answer(text="Score: 1", finish_reason="stop", input_tokens=900, output_tokens=15, answered_by="gpt-4o-2024-05-13")
    assert endpoint.ask(BODY) == answer
    assert judge.bodies == [BODY]
    assert judge.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert pauses == []


def test_without_a_key_variable_no_key_is_sent(judge: JudgeServer) -> None:
    JudgeEndpoint(JudgeEndpointConfig(url=f"{judge.url}/")).ask(BODY)
    assert "Authorization" not in judge.headers[0]


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_an_outage_is_waited_out_in_pauses_that_double(judge: JudgeServer, status: int) -> None:
    judge.reply = _in_turn(*[fails(status)] * 7, says("at last"))
    endpoint, pauses = _endpoint(judge.url)
    assert endpoint.ask(BODY).text == "at last"
    assert pauses == [1, 2, 4, 8, 16, 32, 60]


def test_a_rate_limit_is_no_try_and_ends_after_ten_minutes_without_an_answer(judge: JudgeServer) -> None:
    judge.reply = _in_turn(*[fails(429, Retry_After="50")] * 11, says("yes"), *[fails(429, Retry_After="50")] * 99)
    endpoint, pauses = _endpoint(judge.url, tries=1)
    assert endpoint.ask(BODY).text == "yes"
    assert pauses == [50] * 11
    with pytest.raises(UserError, match=r"does not answer \(HTTP 429"):
        endpoint.ask(BODY)
    assert len(pauses) == 11 + 13, "more than 600 s"


def test_the_endpoint_says_how_long_to_wait(judge: JudgeServer) -> None:
    in_half_a_minute = email.utils.formatdate(time.time() + 30, usegmt=True)
    judge.reply = _in_turn(
        fails(429, Retry_After="7"), fails(503, Retry_After=in_half_a_minute), fails(503, Retry_After="soon"), says("yes")
    )
    endpoint, pauses = _endpoint(judge.url)
    assert endpoint.ask(BODY).text == "yes"
    assert pauses[0] == 7
    assert pauses[1] == pytest.approx(30, abs=2)
    assert pauses[2] == 2  # as if nothing had been said; the rate limit was no try


@pytest.mark.parametrize("words", ["<html>Bad gateway</html>", "[]", '{"choices": []}', '{"error": {"message": "overloaded"}}'])
def test_what_is_not_a_completion_is_an_outage(judge: JudgeServer, words: str) -> None:
    judge.reply = _in_turn(Reply(body=words), says("yes"))
    assert _endpoint(judge.url)[0].ask(BODY).text == "yes"


@pytest.mark.parametrize("reply", [says(None), says("")])
def test_an_empty_answer_is_an_answer(judge: JudgeServer, reply: Reply) -> None:
    judge.reply = lambda body: reply
    assert _endpoint(judge.url)[0].ask(BODY).text == ""
    assert len(judge.bodies) == 1


def test_a_refused_image_is_an_answer_without_text(judge: JudgeServer) -> None:
    judge.reply = lambda body: fails(400, "content_policy_violation")
    answer = _endpoint(judge.url)[0].ask(BODY)
    assert (answer.text, answer.finish_reason) == ("", "content_policy_violation")


def _complaint(url: str, *, tries: int = 2) -> str:
    with pytest.raises(UserError) as raised:
        _endpoint(url, tries=tries)[0].ask(BODY)
    message = str(raised.value)
    assert "\n" not in message
    assert KEY not in message
    assert raised.value.__cause__ is None
    return message


def test_an_outage_that_stays_ends_in_one_line(judge: JudgeServer) -> None:
    judge.reply = lambda body: fails(503)
    assert "does not answer (HTTP 503" in _complaint(judge.url, tries=3)
    assert len(judge.bodies) == 3


def test_nobody_there_is_an_outage(judge: JudgeServer) -> None:
    with judge_server(lambda body: says("")) as gone:
        pass
    assert "does not answer (" in _complaint(gone.url)


def test_an_endpoint_that_wants_an_hour_is_not_waited_for(judge: JudgeServer) -> None:
    judge.reply = lambda body: fails(429, Retry_After="3600")
    assert "asks to wait 3600 s" in _complaint(judge.url, tries=8)
    assert len(judge.bodies) == 1


@pytest.mark.parametrize(("status", "code"), [(400, "invalid_model"), (404, "model_not_found"), (429, "insufficient_quota")])
def test_a_refusal_is_not_tried_again_and_does_not_show_the_key(judge: JudgeServer, status: int, code: str) -> None:
    judge.reply = lambda body: Reply(body=json.dumps({"error": {"code": code, "message": f"wrong: {KEY}"}}), status=status)
    assert f"refuses (HTTP {status}" in _complaint(judge.url, tries=8)
    assert len(judge.bodies) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_refused_is_named_by_its_variable(judge: JudgeServer, status: int) -> None:
    judge.reply = lambda body: fails(status, f"wrong: {KEY}")
    assert f"refuses the key in THE_KEY (HTTP {status}" in _complaint(judge.url, tries=8)
    with pytest.raises(UserError, match="no key was sent: name the environment variable") as raised:
        JudgeEndpoint(JudgeEndpointConfig(url=judge.url)).ask(BODY)
    assert raised.value.setting == "wise.judge.key_variable"


@pytest.mark.parametrize(
    ("message", "finish_reason", "expected"),
    [
        ({"content": "A wom"}, "content_filter", ("A wom", "content_filter")),
        ({"content": None, "refusal": "I can't help with that."}, "stop", ("I can't help with that.", "refusal")),
    ],
)
def test_an_answer_that_was_withheld_is_a_refusal(
    judge: JudgeServer, message: dict[str, str | None], finish_reason: str, expected: tuple[str, str]
) -> None:
    choice = {"message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    judge.reply = lambda body: Reply(body=json.dumps({"choices": [choice]}))
    answer = _endpoint(judge.url)[0].ask(BODY)
    assert (answer.text, answer.finish_reason) == expected and answer.is_refusal


def test_the_key_follows_no_redirect(judge: JudgeServer) -> None:
    with judge_server(lambda body: says("thank you")) as elsewhere:
        judge.reply = lambda body: fails(307, Location=f"{elsewhere.url}/chat/completions")
        assert "refuses (HTTP 307" in _complaint(judge.url)
        assert elsewhere.headers == []


def test_an_answer_that_repeats_the_key_is_kept_without_it(judge: JudgeServer) -> None:
    judge.reply = lambda body: says(f"your key is {KEY}")
    assert _endpoint(judge.url)[0].ask(BODY).text == "your key is [key]"


@pytest.mark.parametrize("key", ["", "  ", f"{KEY}\nX-Header: 1", "schlüssel"])
def test_a_key_that_no_header_can_have_is_not_shown(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("THE_KEY", key)
    with pytest.raises(UserError, match="environment variable THE_KEY") as raised:
        _endpoint("http://127.0.0.1:1/v1")
    assert not key.strip() or key.strip() not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host/v1", "https://me:secret@host/v1", "https://host/v1?key=secret", "https://host/v1#secret"]
)
def test_an_address_with_a_secret_or_another_scheme_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"judge\.url") as raised:
        JudgeEndpointConfig(url=url)
    assert "secret" not in str(raised.value)


def test_kept_answers_survive_a_kill_in_mid_line(tmp_path: Path) -> None:
    path = tmp_path / "answers" / "wise.jsonl"
    kept = KeptAnswers(path)
    answers: Sequence[tuple[str, str, bool]] = [("a", "nonsense", False), ("a", "Score: 1", True), ("b", "nonsense", False)]
    for key, text, is_verdict in answers:
        answer = Answer(text=text, finish_reason="stop", input_tokens=1, output_tokens=2)
        kept.keep(key, {"prompt_id": 7}, "a judge", answer, is_verdict=is_verdict)
    path.write_text(path.read_text() + '{"key": "b", "answ')
    again = KeptAnswers(path)
    assert (again.verdict("a"), again.verdict("b"), again.verdict("c")) == ("Score: 1", None, None)
    assert [json.loads(line)["answer"] for line in path.read_text().splitlines()] == ["nonsense", "Score: 1", "nonsense"]


def test_the_key_of_a_question_changes_with_all_that_is_asked() -> None:
    assert question_key(BODY) == question_key(dict(reversed(BODY.items())))
    assert len({question_key(BODY), question_key({**BODY, "model": "b"}), question_key({**BODY, "temperature": 0})}) == 3

"""What all servers share: keys from a variable or a file, an address that is free, a stop in good order at SIGTERM."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from foundry.errors import UserError
from foundry.http.server import address_of, listen, read_server_key

ROOT = Path(__file__).resolve().parents[3]


def test_a_key_comes_from_a_variable_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert read_server_key(None, None, host="127.0.0.1") is None
    assert read_server_key(None, None, host="::1") is None
    assert read_server_key(None, None, host="localhost") is None
    monkeypatch.setenv("A_KEY", "sk-7")
    assert read_server_key("A_KEY", None, host="0.0.0.0") == "sk-7"
    (tmp_path / "key").write_text("sk-8\n")
    assert read_server_key(None, str(tmp_path / "key"), host="0.0.0.0") == "sk-8"


@pytest.mark.parametrize("content", [None, "", "two\nlines", "grün"])
def test_a_file_without_a_key_is_told(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"{path} (holds no key|cannot be read)") as error:
        read_server_key(None, str(path), host="127.0.0.1")
    assert error.value.setting == "key_file"


def test_other_machines_need_a_key(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::", "example"):
        with pytest.raises(UserError, match=f"{host} can be reached from other machines"):
            read_server_key(None, None, host=host)
    with pytest.raises(UserError, match="name one of them"):
        read_server_key("A_KEY", str(tmp_path / "key"), host="127.0.0.1")


def test_an_address_that_is_taken_is_told() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match="cannot be listened on .*: give another port"):
            listen("127.0.0.1", listener.getsockname()[1])


SERVER = """
import asyncio
from foundry.http.server import address_of, listen, new_app, run_server

app = new_app("test", key=None, on_shutdown=lambda: print("shut down", flush=True))

@app.get("/slow")
async def slow() -> str:
    print("asked", flush=True)
    await asyncio.sleep(1.5)
    return "done"

with listen("127.0.0.1", 0) as listener:
    print(address_of(listener), flush=True)
    run_server(app, listener, grace_s=20, on_stop=lambda: print("stop", flush=True))
print("returned", flush=True)
"""


def test_sigterm_lets_requests_under_way_finish() -> None:
    process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(httpx.get(f"{address}/slow", timeout=30)))
    thread.start()
    assert process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    thread.join(30)
    output = process.stdout.read()
    assert process.wait(30) == 0 and answers[0].json() == "done"
    process.stdout.close()
    assert output.split("\n")[:3] == ["stop", "shut down", "returned"]

"""An OpenAI-compatible judge that sees nothing, to try the WISE benchmark without a model; its figures mean nothing.

    python -m examples.openmoji.stand_in_judge --port 8000

answers on loopback until it is stopped. Its grades are drawn from a hash of the question, so that the same one gets the same.
"""

import hashlib
import json
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from foundry.command_line import run_command
from foundry.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StandInJudgeConfig:
    """Settings of `python -m examples.openmoji.stand_in_judge`."""

    port: int = 8000
    """Port on 127.0.0.1."""


def main(config: StandInJudgeConfig) -> int:
    """Serves until it is stopped."""
    try:
        server = ThreadingHTTPServer(("127.0.0.1", config.port), _Handler)
    except OSError as error:
        raise UserError(f"port {config.port} is unavailable ({error.strerror}): give another --port") from error
    print(f"http://127.0.0.1:{server.server_port}/v1", flush=True)
    with server:
        server.serve_forever()
    return 0


def answer(question: bytes) -> str:
    """Three grades where the instructions ask for them, else right or wrong."""
    digits = hashlib.sha256(question).digest()
    if b"Consistency" in question:
        names = ("Consistency", "Realism", "Aesthetic Quality")
        return "\n".join(f"{name}: {digit % 3}" for name, digit in zip(names, digits, strict=False))
    return f"Score: {digits[0] % 2}"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        """A chat completion."""
        question = self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": answer(question)}
        usage = {"prompt_tokens": len(question) // 4, "completion_tokens": len(message["content"]) // 4}
        choice = {"message": message, "finish_reason": "stop"}
        data = json.dumps({"model": "stand-in", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Is silent."""


if __name__ == "__main__":
    raise SystemExit(
        run_command(
            StandInJudgeConfig,
            main,
            prog="python -m examples.openmoji.stand_in_judge",
            example="python -m examples.openmoji.stand_in_judge --port 8000",
        )
    )

"""Rewriter behind an OpenAI-compatible endpoint: an instruct model, asked by the same instruction, with temperature 0."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from foundry.chat_endpoint import ChatEndpoint, Endpoint
from foundry.errors import UserError
from model.rewriting.config import RewriteConfig
from model.rewriting.rewriter import RewriterRecord, chat_messages, instruction_for


class EndpointRewriter:
    """A model at an address. Its answers are as repeatable as the server is; the cache keeps the first."""

    def __init__(self, config: RewriteConfig, *, max_tokens: int) -> None:
        """Raises UserError if the key is missing."""
        assert config.url is not None and config.model is not None
        self.config = config
        self.record = RewriterRecord(max_caption_tokens=max_tokens)
        self.instruction = instruction_for(max_tokens)
        self._endpoint = ChatEndpoint(
            Endpoint(
                url=config.url,
                key_variable=config.key_variable,
                timeout_s=config.timeout_s,
                tries=config.tries,
                name="the rewriter",
                section="rewrite",
            )
        )

    @property
    def identity(self) -> str:
        """The model, the instruction and the fields of the request; not the address, which may change."""
        return json.dumps([self.config.model, self.instruction, self.config.body], sort_keys=True)

    def rewrite(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Index and text of each prompt as the answers come. Raises UserError if the endpoint refuses or stays away."""
        with ThreadPoolExecutor(self.config.concurrency) as threads:
            asked = {threads.submit(self._ask, prompt): index for index, prompt in enumerate(prompts)}
            try:
                for answer in as_completed(asked):
                    yield asked[answer], answer.result()
            except UserError:
                self._endpoint.stop()
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _ask(self, prompt: str) -> str:
        body = {"model": self.config.model, "messages": chat_messages(prompt, self.instruction), "temperature": 0}
        body = {name: value for name, value in (body | self.config.body).items() if value is not None}
        answer = self._endpoint.ask(body)
        return "" if answer.finish_reason == "length" or answer.is_refusal else answer.text.strip()

"""Endpoint engine: images and prompts go to an OpenAI-compatible server: `vllm serve`, SGLang, llama.cpp, or a hosted model.

The server batches; this engine keeps `concurrency` requests under way. A request that the server refuses fails alone; a server
that is busy or away is waited for, and ends the run where it stays away: what others answered is never asked for again.

Images are sent as data URLs of the pixels that were decoded and checked, or, where the settings say so, by their web address.
"""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioner.engines.endpoint_settings import EndpointSettings
from captioner.engines.generation import Generation, GenerationSettings, sampling_seed
from foundry.chat_endpoint import Answer, ChatEndpoint, Endpoint, RequestRefused, image_message, image_url
from foundry.errors import Unavailable, UserError

_IDENTIFYING = ("root", "parent", "digest", "revision")
"""Fields of a server's list of models that say which model it is; others are times, rights, prices and limits."""
_WORDS = "Describe this image."


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model behind an endpoint. `answered_by` is what the server calls itself in answers."""

    name: str
    settings: EndpointSettings
    answered_by: str
    listed: dict[str, Any]
    """All that /v1/models says of it: vLLM's `root`, for example, is what was loaded under the name."""

    prompt_format = ""
    is_served = True
    num_parameters = 0

    @property
    def image_side_px(self) -> int:
        """Maximum length of the shorter side of an image that is sent, in pixels."""
        return self.settings.image_side_px

    @property
    def is_mini(self) -> bool:
        """Whether the server has the shipped toy, by its name."""
        return self.name == "mini"

    @property
    def sends_urls(self) -> bool:
        """Whether images that have a web address are sent by it."""
        return self.settings.image_urls

    def image_fit(self, asked: str) -> str:
        """`processor`: images are sent as they are. Raises UserError for `pad`."""
        if asked == "pad":
            raise UserError("generation.image_fit pad: the engine `endpoint` sends images as they are; leave it out")
        return "processor"

    def describe(self) -> dict[str, Any]:
        """Everything that determines a caption, for the identity of a run: not the address or how it is asked."""
        return {
            "name": self.name,
            "revision": self.answered_by,
            "listed": identity_of(self.listed),
            "image_side_px": self.image_side_px,
            "image_format": self.settings.image_format,
            "body": self.settings.body,
            **({"image_urls": True} if self.sends_urls else {}),
        }

    def load(self, generation: GenerationSettings) -> "EndpointEngine":
        """The engine. Raises UserError if the key is missing."""
        return EndpointEngine(self, generation)


def find_served_model(name: str, settings: EndpointSettings, generation: GenerationSettings) -> ServedModel:
    """Asks the server for its models and for a caption of a grey image, as large as they come and asked as all others will be.

    Raises UserError if it does not answer, does not serve this model, takes no images, or has too short a context for one.
    """
    endpoint = _endpoint(settings)
    served = endpoint.models()
    if name not in served:
        raise UserError(
            f"the server at {settings.url} serves {', '.join(served) or 'no model'}, not {name}: give one of them",
            setting="model",
        )
    body = _body(settings, generation, model=name, max_tokens=generation.max_new_tokens)
    answer = endpoint.ask({**body, "messages": [image_message(_WORDS, [image_url(_grey(settings))])]})
    return ServedModel(name=name, settings=settings, answered_by=answer.answered_by or name, listed=served[name])


def identity_of(listed: Mapping[str, Any]) -> dict[str, Any]:
    """The part of an entry of /v1/models that identifies the model: part of a run's identity."""
    return {name: listed[name] for name in _IDENTIFYING if name in listed}


class EndpointEngine:
    """A server that captions. Greedy requests are repeatable as far as the server is."""

    def __init__(self, model: ServedModel, generation: GenerationSettings) -> None:
        self.model = model
        self.generation = generation
        self._endpoint = _endpoint(model.settings)

    def caption(
        self,
        images: Sequence[np.ndarray | str],
        prompts: Sequence[str],
        keys: Sequence[str],
        *,
        one_by_one: bool = False,
        schema: str | None = None,
    ) -> list[Generation]:
        """Captions for images, uint8 (H, W, 3) or a web address each, with a prompt and a key (for the seed) each, in order.

        A JSON schema is sent as `response_format`. A request that the server refuses is a failure of its image. Raises
        Unavailable where it refuses all, also a grey image, or stays away; then nothing more is asked.
        """
        pool = ThreadPoolExecutor(1 if one_by_one else self.model.settings.concurrency)
        try:
            questions = zip(images, prompts, keys, strict=True)
            asked = [pool.submit(self._caption, *question, schema=schema) for question in questions]
            wait(asked, return_when=FIRST_EXCEPTION)
            for one in asked:
                if one.done() and (error := one.exception()):
                    self._endpoint.stop()
                    raise error
            said = [one.result() for one in asked]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if len(said) > 1 and all(one.failure for one in said):  # a single image proves nothing
            self._check_answering(schema)
        return said

    def _check_answering(self, schema: str | None) -> None:
        """Raises Unavailable if the server refuses a grey image too: then no image is to blame."""
        try:
            self.check(_grey(self.model.settings), _WORDS, schema=schema)
        except UserError as error:
            raise Unavailable(str(error), setting=error.setting) from None

    def check(self, image: np.ndarray, prompt: str, *, schema: str | None = None) -> None:
        """Has the server say one token about an image.

        Raises UserError if it does not, is another model by now, or refuses the schema.
        """
        try:
            self._ask(image, prompt, "check", max_tokens=1, schema=schema)
        except RequestRefused as error:
            if schema is None:
                raise
            self._ask(image, prompt, "check", max_tokens=1)
            raise UserError(
                f"{error}. Without the prompt's JSON schema it answers: add response_format: null to the request's fields, and "
                "answers are checked and asked for again in place of being constrained",
                setting="endpoint.body",
            ) from None

    def _caption(self, image: np.ndarray | str, prompt: str, key: str, *, schema: str | None) -> Generation:
        try:
            answer = self._ask(image, prompt, key, max_tokens=self.generation.max_new_tokens, schema=schema)
        except RequestRefused as error:
            return Generation.failed(str(error))
        logprobs = answer.logprobs
        return Generation(
            text=answer.text.strip(),
            finish_reason=answer.finish_reason if answer.finish_reason == "length" or answer.is_refusal else "stop",
            is_refusal=answer.is_refusal,
            num_tokens=answer.output_tokens or (len(logprobs) if logprobs else 0),
            num_input_tokens=answer.input_tokens or 0,
            mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
            min_logprob=min(logprobs) if logprobs else None,
        )

    def _ask(self, image: np.ndarray | str, prompt: str, key: str, *, max_tokens: int, schema: str | None = None) -> Answer:
        body = _body(self.model.settings, self.generation, model=self.model.name, max_tokens=max_tokens, schema=schema)
        url = image if isinstance(image, str) else image_url(image, self.model.settings.image_format)
        body["messages"] = [image_message(prompt, [url])]
        if self.generation.temperature:
            body["seed"] = sampling_seed(self.generation.seed, key, prompt) % (1 << 31)
        answer = self._endpoint.ask(body)
        if answer.answered_by is None and answer.is_refusal:
            return answer  # an error names no model
        if (answer.answered_by or self.model.name) != self.model.answered_by:
            raise Unavailable(
                f"the server now answers as {answer.answered_by}, the run was started with {self.model.answered_by}: serve "
                f"that "
                "model again, or start a new run"
            )
        return answer


def _grey(settings: EndpointSettings) -> np.ndarray:
    return np.full((settings.image_side_px, settings.image_side_px, 3), 128, np.uint8)


def _endpoint(settings: EndpointSettings) -> ChatEndpoint:
    if settings.url is None:
        raise UserError("the engine `endpoint` needs the address of an OpenAI-compatible server", setting="endpoint.url")
    return ChatEndpoint(
        Endpoint(
            url=settings.url,
            key_variable=settings.key_variable,
            timeout_s=settings.timeout_s,
            tries=settings.tries,
            name="the server",
            section="endpoint",
        )
    )


def _body(
    settings: EndpointSettings, generation: GenerationSettings, *, model: str, max_tokens: int, schema: str | None = None
) -> dict[str, Any]:
    """The fields of a request but its messages; those that the settings set to null are left out."""
    body = {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        **({"logprobs": True} if settings.logprobs else {}),
        **({"response_format": _response_format(schema)} if schema else {}),
        **settings.body,
    }
    if body.get("max_completion_tokens") is not None:  # the name that some servers want in place of max_tokens
        body["max_completion_tokens"] = max_tokens
    return {name: value for name, value in body.items() if value is not None}


def _response_format(schema: str) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "caption", "strict": True, "schema": json.loads(schema)}}

"""Forms of POST /v1/images/edits: multipart/form-data with files and fields, read by Python's parser of MIME messages."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

from foundry.http.server import BadRequest

_FILES = {"image": "image", "image[]": "image", "mask": "mask"}
_LISTS = {"lora": "lora", "lora[]": "lora"}
_TEXTS = ("prompt", "negative_prompt", "model", "size", "response_format", "sampler", "guidance_by", "user")
"""Fields that are text; the values of others are JSON, as numbers and true, and text where they are not."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form that was read: `image` and perhaps `mask` among its files, its fields as those of a JSON body."""

    files: Mapping[str, bytes]
    fields: Mapping[str, Any]


def read_form(content_type: str, data: bytes) -> Form:
    """The form in a body. Raises BadRequest for another content type, for a file too many, and where there is no image."""
    if not content_type.lower().startswith("multipart/form-data"):
        raise BadRequest(f"expected multipart/form-data with a file `image`, found the content type {content_type[:80]!r}")
    head = b"Content-Type: " + content_type.encode("latin-1", errors="replace") + b"\r\n\r\n"
    message = BytesParser(policy=HTTP).parsebytes(head + data)
    if not message.is_multipart():
        raise BadRequest("the form is malformed: its parts are not found")
    files: dict[str, bytes] = {}
    fields: dict[str, Any] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition") or "")
        payload = part.get_payload(decode=True)
        content = payload if isinstance(payload, bytes) else b""
        if name in _FILES:
            _put_new(files, _FILES[name], content)
        elif name in _LISTS:
            fields.setdefault(_LISTS[name], []).append(_text(name, content))
        else:
            _put_new(fields, name, _value(name, _text(name, content)))
    if "image" not in files:
        raise BadRequest("image: expected the file of an image to edit, found none", param="image")
    return Form(files=files, fields=fields)


def _put_new(found: dict[str, Any], name: str, value: Any) -> None:
    if name in found:
        raise BadRequest(f"{name} is given twice: this server edits one image", param=name)
    found[name] = value


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise BadRequest(f"{name}: expected text, found bytes that are not UTF-8", param=name) from None


def _value(name: str, text: str) -> Any:
    if name in _TEXTS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text

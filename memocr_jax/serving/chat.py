"""OpenAI's chat completions: turns requests into prompts, and completions into OpenAI's objects."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from memocr_jax.agent.prompts import chat_prompt
from memocr_jax.config import SamplingConfig
from memocr_jax.core.errors import UserError
from memocr_jax.core.rng import row_key
from memocr_jax.core.types import Completion, Stop
from memocr_jax.engine import PromptGroup
from memocr_jax.models.config import Qwen25VLConfig
from memocr_jax.models.image_files import read_image
from memocr_jax.models.images import ImageSettings, resize
from memocr_jax.models.tokenizer import Tokenizer
from render.settings import TOKEN_PX
from render.views import image_tokens

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system message of Qwen2.5-VL's chat template, used when a conversation has none."""
MAX_CHOICES = 16
MAX_MESSAGES = 1000
MAX_STOPS = 4
MAX_STOP_CHARS = 200
MAX_IMAGES = 16
MAX_IMAGE_PIXELS = 32_000_000
"""Largest image that is decoded; it is then shrunk to the model's limit."""


class ApiError(Exception):
    """An answer that is an error, in OpenAI's shape."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status, kind)
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Url(BaseModel):
    model_config = ConfigDict(strict=True)
    url: str


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)
    type: str
    text: str | None = None
    image_url: _Url | None = None


class _Message(BaseModel):
    model_config = ConfigDict(strict=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part] | None = None


class _StreamOptions(BaseModel):
    include_usage: bool = False


class ChatRequest(_Strict):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[_Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Not OpenAI's; 0 means all."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | list[str] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # These have no effect on the answer.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    # These must have their default values.
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: dict | None = None
    tools: list | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    modalities: list | None = None

    def require_supported(self) -> None:
        """Raise `ApiError` for a feature that this server lacks, rather than answer without it."""
        neutral: dict[str, tuple] = {
            "frequency_penalty": (0, 0.0),
            "presence_penalty": (0, 0.0),
            "logit_bias": ({},),
            "logprobs": (False,),
            "top_logprobs": (0,),
            "response_format": ({"type": "text"},),
            "tools": ([],),
            "tool_choice": ("none", "auto"),
            "parallel_tool_calls": (True, False),
            "modalities": (["text"],),
        }
        for name, values in neutral.items():
            value = getattr(self, name)
            if value is not None and value not in values:
                raise ApiError(
                    400, f"{name} is not supported here; leave it out", name, "unsupported_parameter"
                )


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of one conversation."""

    context_tokens: int
    """Prompt and completion together."""
    max_new_tokens: int
    """Longest completion, and the default of a request."""
    image_tokens: int
    """Visual tokens of one image; a larger one is shrunk."""


@dataclasses.dataclass(frozen=True)
class Chat:
    """A request, ready for the engine."""

    group: PromptGroup
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool

    @property
    def prompt_tokens(self) -> int:
        return len(self.group.prefix) + len(self.group.suffixes[0])

    @property
    def choices(self) -> int:
        return len(self.group.suffixes)


def prepare_chat(
    request: ChatRequest,
    tokenizer: Tokenizer,
    model: Qwen25VLConfig,
    images: ImageSettings,
    limits: Limits,
) -> Chat:
    """The prompt group of a request: its choices are siblings of one prefix.

    Raises `ApiError` for images that cannot be read, features that are not there, and a conversation that is
    too long. Without a seed, one is drawn.
    """
    request.require_supported()
    stops = _stops(request.stop)
    messages, pictures = _conversation(request.messages, model, images, limits)
    counts = [image_tokens(picture) for picture in pictures]
    prefix, suffix = tokenizer.encode_prompt(chat_prompt(messages), counts)
    length = len(prefix) + len(suffix)
    asked = request.max_completion_tokens or request.max_tokens
    room = limits.context_tokens - length
    if room < (asked or 1):
        raise ApiError(
            400,
            f"the conversation has {length} tokens and asks for {asked or 1} more; together at most "
            f"{limits.context_tokens} are possible",
            "messages",
            "context_length_exceeded",
        )
    if asked and asked > limits.max_new_tokens:
        raise ApiError(
            400, f"max_tokens is {asked}; at most {limits.max_new_tokens} are possible here", "max_tokens"
        )
    sampling = SamplingConfig(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=request.top_k or 0,
    )
    seed = secrets.randbits(63) if request.seed is None else request.seed
    choices = request.n or 1
    group = PromptGroup(
        np.array(prefix, np.int32),
        tuple(np.array(suffix, np.int32) for _ in range(choices)),
        tuple(row_key(seed, "chat", choice) for choice in range(choices)),
        images=tuple(pictures),
        sampling=sampling,
        max_new_tokens=asked or min(room, limits.max_new_tokens),
    )
    usage = bool(request.stream_options and request.stream_options.include_usage)
    return Chat(group, stops, bool(request.stream), usage)


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS or not all(0 < len(text) <= MAX_STOP_CHARS for text in stops):
        raise ApiError(
            400, f"stop takes at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters", "stop"
        )
    return tuple(stops)


def _conversation(
    messages: Sequence[_Message], model: Qwen25VLConfig, settings: ImageSettings, limits: Limits
) -> tuple[list[tuple[str, list[str | None]]], list[np.ndarray]]:
    """The messages as `chat_prompt` takes them, and their images in order."""
    turns: list[tuple[str, list[str | None]]] = []
    pictures: list[np.ndarray] = []
    if messages[0].role not in ("system", "developer"):
        turns.append(("system", [DEFAULT_SYSTEM]))
    for i, message in enumerate(messages):
        parts: list[str | None] = []
        content = message.content
        for j, part in enumerate(
            [_Part(type="text", text=content or "")] if not isinstance(content, list) else content
        ):
            where = f"messages[{i}].content[{j}]"
            if part.type == "text" and part.text is not None:
                parts.append(part.text)
            elif part.type == "image_url" and part.image_url is not None:
                if len(pictures) == MAX_IMAGES:
                    raise ApiError(400, f"at most {MAX_IMAGES} images are possible", where)
                pictures.append(_image(part.image_url.url, where, model, settings, limits))
                parts.append(None)
            else:
                raise ApiError(400, f"{where} is {part.type!r}; parts are text or image_url", where)
        turns.append(("system" if message.role == "developer" else message.role, parts))
    return turns, pictures


def _image(
    url: str, where: str, model: Qwen25VLConfig, settings: ImageSettings, limits: Limits
) -> np.ndarray:
    """Pixels u8[H, W, 3] of a data URL, both sides multiples of an image token."""
    if not url[:5].lower() == "data:":
        raise ApiError(
            400,
            f"{where}.image_url.url must be data:image/png;base64,... (or jpeg, webp, gif, bmp); "
            "nothing is fetched from elsewhere",
            where,
            "invalid_image_url",
        )
    try:
        pixels = read_image(url, MAX_IMAGE_PIXELS)
    except UserError as error:
        raise ApiError(400, f"{where}: {error}", where, "invalid_image") from None
    side = TOKEN_PX * TOKEN_PX
    settings = dataclasses.replace(
        settings,
        # A page at a budget of one token is 28 x 28 px: it is not enlarged.
        min_pixels=min(settings.min_pixels, side),
        max_pixels=min(settings.max_pixels, limits.image_tokens * side),
    )
    longer, shorter = max(pixels.shape[:2]), min(pixels.shape[:2])
    if longer > 200 * shorter:
        raise ApiError(400, f"{where}: one side is more than 200 times the other", where, "invalid_image")
    return resize(pixels, model.vision, settings)


class TextStream:
    """The text of a growing completion, piece by piece as it becomes certain, up to a stop text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()):
        self._tokenizer, self._stops = tokenizer, stops
        self.text = ""
        """The text that was returned so far."""
        self.stopped = False
        """Whether a stop text was met; it and what follows are not returned."""

    def feed(self, tokens: np.ndarray, last: bool = False) -> str:
        """The new text, given all `tokens` so far. With `last` nothing is held back."""
        if self.stopped:
            return ""
        text = self._tokenizer.decode(tokens)
        if not last:  # a character whose bytes are not all there
            text = text.rstrip("\ufffd")
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:  # the first to be complete, whatever the number of tokens per call
            self.stopped, text = True, text[: min(found)[1]]
        elif not last:  # what may become a stop text
            text = text[: len(text) - max((_overlap(text, stop) for stop in self._stops), default=0)]
        new = text[len(self.text) :]
        self.text += new
        return new


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A finished choice."""

    text: str
    rest: str
    """The text that was not returned before."""
    reason: Literal["stop", "length"]


Emit = Callable[[int, str], None]
"""Called with (choice, new text)."""


class ChatRun:
    """A running chat: turns the engine's tokens into pieces of text. Called by one thread."""

    def __init__(self, chat: Chat, tokenizer: Tokenizer, emit: Emit = lambda choice, text: None):
        self._streams = [TextStream(tokenizer, chat.stops) for _ in range(chat.choices)]
        self._emit = emit

    def watch(self, choice: int, tokens: np.ndarray) -> bool:
        """The scheduler's `Watch`: False once a stop text was met."""
        stream = self._streams[choice]
        if text := stream.feed(tokens):
            self._emit(choice, text)
        return not stream.stopped

    def finish(self, completions: Sequence[Completion]) -> list[Choice]:
        """The result of every choice."""
        results = []
        for stream, completion in zip(self._streams, completions, strict=True):
            text = stream.feed(completion.tokens, last=True)
            reason = "stop" if stream.stopped or completion.stop is Stop.EOS else "length"
            results.append(Choice(stream.text, text, reason))
        return results


@dataclasses.dataclass(frozen=True)
class Head:
    """The fields that all objects of one answer share."""

    model: str
    id: str = dataclasses.field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    def completion(self, results: Sequence[Choice], usage: dict[str, int]) -> dict[str, Any]:
        """The whole answer."""
        choices = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": None,
                "finish_reason": choice.reason,
            }
            for i, choice in enumerate(results)
        ]
        return self._object("chat.completion") | {"choices": choices, "usage": usage}

    def chunk(self, choice: int, delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        """One piece of a streamed answer."""
        part = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._object("chat.completion.chunk") | {"choices": [part]}

    def usage_chunk(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last piece, when the request asked for it."""
        return self._object("chat.completion.chunk") | {"choices": [], "usage": usage}

    def _object(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """OpenAI's `usage`; image tokens are prompt tokens."""
    total = prompt_tokens + completion_tokens
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens, "total_tokens": total}

"""A model's own chat template: found in its folder, rendered in the sandbox that transformers compiles it for.

Rendered here, and not by tokenizer.apply_chat_template, for three reasons: nothing here loads torch; the time that a
template may write into a prompt stands still, so that a resumed run has the prompts of the run before; and a prompt
that grows without end is stopped. The text is the one that apply_chat_template gives, but for that time; and as there,
what spells a special token in a row's own text is read as that token by the tokenizer.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from packhorse.errors import HostileModelError, ModelError, UsageError
from packhorse.prompts.messages import BadMessagesError, Message, Messages, with_joined_parts

TEMPLATE_FILE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates"
DEFAULT = "default"
MAX_PROMPT_CHARS = 20_000_000
# Stands at the end of the message to continue while the template runs: what comes behind it is cut off. The space tells
# whether the template trims messages.
END_MARK = "<packhorse:the-message-goes-on-here> "
# Names of an assistant's reasoning in data of various origin; transformers offers it to templates by the first two.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """Renders the messages of a row as the model was trained to read them.

    now: what a template takes for the time of day. Raises UsageError where the folder has no template, ModelError where
    its template is none, HostileModelError where a template tries what the sandbox forbids.
    """

    def __init__(self, folder: Path, now: datetime) -> None:
        self._source = find_template(folder)
        self._now = now
        self._template = _compiled(self._source, folder)
        self._special_tokens = self._tokens(folder)
        self._try(folder)

    @property
    def tells_time(self) -> bool:
        """Whether prompts may depend on `now`."""
        return "strftime_now" in self._source

    def render(self, messages: Messages) -> str:
        """The prompt, up to where the model's answer begins; an assistant's message at the end is to be gone on with.

        Raises BadMessagesError with the template's words where it refuses the messages."""
        if not self._takes_parts:
            messages = with_joined_parts(messages)
        is_continued = messages[-1]["role"] == "assistant"
        try:
            return self._continued(messages) if is_continued else self._rendered(messages, True)
        except BadMessagesError:
            raise
        except Exception as error:  # a template is a program: it may raise anything
            raise BadMessagesError(f"the model's chat template refuses them: {_words(error)}") from error

    def _rendered(self, messages: Messages, adds_generation_prompt: bool) -> str:
        pieces, num_chars = [], 0
        for piece in self._template.generate(
            messages=[_with_reasoning(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=adds_generation_prompt,
            **self._special_tokens | {"strftime_now": self._now.strftime},
        ):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_PROMPT_CHARS:
                raise BadMessagesError(f"the model's chat template makes more than {MAX_PROMPT_CHARS:,} characters")
        return "".join(pieces)

    def _continued(self, messages: Messages) -> str:
        """The prompt up to the end of the last message; without the space there where the template trims messages."""
        *before, last = messages
        marked, content = _marked(last)
        text, mark, behind = self._rendered([*before, marked], False).rpartition(END_MARK.strip())
        if not mark or content.strip() not in text:
            raise BadMessagesError("the model's chat template leaves out the assistant's message that is to go on")
        return text if behind.startswith(" ") else text.rstrip()

    @functools.cached_property
    def _takes_parts(self) -> bool:
        """Whether content that is a list of parts comes out as their text, and not as a list that was written out."""
        text = "a text of a part"
        try:
            prompt = self._rendered([{"role": "user", "content": [{"type": "text", "text": text}]}], True)
        except Exception:  # noqa: BLE001 - a template is a program: one that cannot read parts may raise anything
            return False
        return text in prompt and f"'{text}'" not in prompt and f'"{text}"' not in prompt

    def _tokens(self, folder: Path) -> dict[str, str]:
        """The special tokens by their names. What the files leave open, and the template wants to know, the class of
        the tokenizer decides."""
        from jinja2 import meta

        given = named_tokens(folder)
        environment = self._template.environment
        wanted = meta.find_undeclared_variables(environment.parse(self._source))
        if any(name.endswith("_token") and name not in given for name in wanted):
            given = _tokens_of_tokenizer(folder) | given
        return {name: token for name, token in given.items() if token is not None}

    def _try(self, folder: Path) -> None:
        from jinja2.exceptions import SecurityError

        try:
            self._rendered([{"role": "user", "content": "a text"}], True)
        except SecurityError as error:
            raise HostileModelError(f"{folder}: its chat template tries what its sandbox forbids: {error}") from error
        except Exception:  # noqa: BLE001 - one that wants other messages than this one says so for each row
            return


def find_template(folder: Path) -> str:
    """The folder's chat template, where transformers looks for it: files of its own first, tokenizer_config.json then;
    of several the one named default. Raises UsageError where there is none."""
    found = _template_files(folder) or _template_config(_object(folder / "tokenizer_config.json").get("chat_template"))
    if not found:
        raise UsageError(
            f"{folder}: this model has no chat template ({TEMPLATE_FILE}, or chat_template in tokenizer_config.json): "
            "it was not made for chats. Give the prompts as text, with --text-column or --template, and without "
            "--messages-column, --system-prompt and --chat; or put its template into that file"
        )
    if DEFAULT not in found:
        raise UsageError(
            f"{folder}: this model has the chat templates {', '.join(sorted(found))}, and none is the default one: "
            f"copy the one that is meant to {TEMPLATE_FILE}"
        )
    return found[DEFAULT]


def _template_files(folder: Path) -> dict[str, str]:
    files = {path.stem: path for path in sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))}
    if (folder / TEMPLATE_FILE).is_file():
        files.setdefault(DEFAULT, folder / TEMPLATE_FILE)
    try:
        return {name: path.read_text(encoding="utf-8") for name, path in files.items()}
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"{folder}: its chat template cannot be read: {error}") from error


def _template_config(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    return {str(name): text for name, text in value.items() if isinstance(text, str)} if isinstance(value, dict) else {}


def named_tokens(folder: Path) -> dict[str, str | None]:
    """Special tokens by name (bos_token, ...) as the folder's files have them; None: there is none of that name."""
    config = _object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:  # folders of old have them in a file of their own, and it wins
        config |= _object(folder / "special_tokens_map.json")
    extra = config.get("extra_special_tokens")
    config |= extra if isinstance(extra, dict) else {}
    named = {name: _content(value) for name, value in config.items() if name.endswith("_token")}
    return {name: token for name, token in named.items() if token is not None or config[name] is None}


def _content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _tokens_of_tokenizer(folder: Path) -> dict[str, str | None]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, KeyError) as error:
        raise ModelError(f"{folder}: its tokenizer cannot be loaded: {error}") from error
    return dict(tokenizer.special_tokens_map)


def _object(path: Path) -> dict[str, Any]:
    """The file's JSON object; an empty one where there is no file. Raises ModelError."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def _compiled(source: str, folder: Path) -> Any:
    from jinja2.exceptions import TemplateError
    from transformers.utils import chat_template_utils

    try:
        return chat_template_utils._compile_jinja_template(source)
    except (TemplateError, RecursionError, SyntaxError) as error:
        raise ModelError(f"{folder}: its chat template cannot be compiled: {_words(error)}") from error


def _words(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:500]


def _marked(message: Message) -> tuple[Message, str]:
    """The message with END_MARK behind its text, and that text: the last part of a list of them."""
    content = message.get("content")
    if isinstance(content, list) and content:
        *parts, last = content
        return message | {"content": [*parts, last | {"text": last["text"] + END_MARK}]}, last["text"]
    if not isinstance(content, str):
        raise BadMessagesError("the last message is the assistant's, to be gone on with, and has no text")
    return message | {"content": content + END_MARK}, content


def _with_reasoning(message: Message) -> Message:
    """The message with an assistant's reasoning under the names that templates read."""
    reasoning = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}

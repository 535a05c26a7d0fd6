"""What every backend of a model shares: its folder and description, its task, its tokenizer, rows of the job."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from packhorse.config import EngineConfig
from packhorse.data import Int64s, ModelDescription, Reduction, TokenizerParts, Tokens
from packhorse.devices.host import num_cores
from packhorse.errors import UsageError
from packhorse.late_interaction import LateInteraction
from packhorse.models.adapter import FILES as ADAPTER_FILES
from packhorse.models.adapter import base_note, check_base, check_peft, describe_adapter, find_adapter
from packhorse.models.describe import describe
from packhorse.models.find import Found, file_hashes, find_model
from packhorse.models.hub_files import Wanted
from packhorse.models.preflight import check_folder
from packhorse.sequences import Sequencing, Vocabulary
from packhorse.stages import Detokenize
from packhorse.tasks import make_task
from packhorse.tokenize.detokenize import cleans_up, detokenizer
from packhorse.tokenize.encoder import Encoder
from packhorse.tokenize.fast import FastTokenizer
from packhorse.tokenize.huge import TokenizeSettings
from packhorse.tokenize.late import expansion_id
from packhorse.tokenize.proof import TokenizerChoice, check_installed, choose_tokenizer, open_checked
from packhorse.tokenize.sequencing import SequenceTokenizer
from packhorse.tokenize.special import add_lowercase, mask_token
from packhorse.tokenize.targets import Targets, check_top_k, find_targets
from packhorse.tokenize.vocabulary import vocabulary
from packhorse.tuning.candidates import JobSize
from packhorse.tuning.gate import stratified

# Rows of three lengths; the middle one is a usual sentence.
TRIAL = ("read a zip file", "read a zip file", "The plot is thin, but two hours go by in no time.", "good")
TRIAL_LABELS, TRIAL_TOKENS = ("films",), 64
UNKNOWN_MAX_LENGTH = 512  # for rows that are only tried on
PROOF_ROWS = 1_024  # of the job, for tokenizers
NO_ROWS = Tokens(np.empty(0, np.int32), np.zeros(1, np.int64))

LoadTokenizer = Callable[[ModelDescription], TokenizerParts]


class Material:
    """Found, checked and described once, whatever computes it. `rows` and `lengths` are those of the last `see()`."""

    def __init__(self, settings: EngineConfig, wants_weights: bool = False) -> None:
        """wants_weights: of a hub model, also for a backend that has a graph there. Raises UsageError, RefusedError or
        ModelError."""
        self.settings = settings
        check_installed(settings.tokenizer)
        self._adapter = _found_adapter(settings)
        wants_weights = wants_weights or self._adapter is not None
        wanted = Wanted(settings.backend, settings.onnx_file, wants_weights)
        self._found = find_model(settings.model, settings.revision, wanted)
        check_folder(self._found.folder)
        adapter = describe_adapter(self._adapter) if self._adapter else None
        self.description: ModelDescription = describe(self._found, settings, adapter)
        if self._adapter is not None:
            check_base(self._adapter.name, self.description.folder, settings.backend)
        self.rows = NO_ROWS  # up to 512, spread over the lengths
        self.lengths: Int64s = np.empty(0, np.int64)  # of all sequences that were seen
        self.longest: int | None = None  # tokens, where no row is longer
        self.truncated_rows = 0  # of those that were seen
        self.sequences_per_row = 1.0
        self.num_seen = 0  # rows
        self._texts: list[str | None] = []
        self._pairs: list[str | None] | None = None
        self._parts: TokenizerParts | None = None
        self._choice: TokenizerChoice | None = None
        self._load_tokenizer: LoadTokenizer | None = None

    @functools.cached_property
    def task(self) -> Any:
        return make_task(self.description, self.settings)

    def tokenized_by(self, load_tokenizer: LoadTokenizer) -> None:
        """How the tokenizer is read; the first backend's way stays."""
        self._load_tokenizer = self._load_tokenizer or load_tokenizer

    def see(
        self, texts: list[str | None], pairs: list[str | None] | None, is_whole: bool, with_special: bool = True
    ) -> None:
        """Texts of the job: what precision, packing and calibration are tried on. is_whole: it has no others."""
        asked = self.settings.max_length or self.task.sequencing().usual_length
        limits = [n for n in (asked, self.description.max_length) if n]
        tokenizer = self.tokenizer(min(limits, default=UNKNOWN_MAX_LENGTH), pairs is not None, special=with_special)
        tokenized = tokenizer.tokenize(texts, pairs)
        tokenizer.close()
        tokens, self.truncated_rows = tokenized.tokens, tokenized.truncated_rows
        self.sequences_per_row = tokens.num_rows / len(texts) if tokens.num_rows else 1.0
        self.longest = int(tokens.lengths.max(initial=0)) or None if is_whole else None
        self.lengths, self.rows = tokens.lengths, tokens.take(stratified(tokens.lengths))
        self._texts, self._pairs, self._choice, self.num_seen = texts, pairs, None, len(texts)

    def job_size(self, total_rows: float) -> JobSize:
        """Of a job of so many rows like those that were seen."""
        return JobSize.of(self.lengths, total_rows, self.sequences_per_row)

    # -- tokenizer

    def tokenizer(
        self, max_length: int | None, has_pairs: bool, package: str = "hf", threads: int | None = None,
        special: bool = True, sequencing: Sequencing | None = None,
    ) -> FastTokenizer | SequenceTokenizer:  # fmt: skip
        """special: the special tokens of the model are put around a text. sequencing: another than the task's."""
        sequencing = sequencing or self.task.sequencing()
        backend, takes_type_ids, truncation_side = self.parts()
        has_two = has_pairs or sequencing.kind == "labels"
        settings = TokenizeSettings(
            max_length=max_length,
            prompt=self.description.prompt,
            truncation_side="left" if sequencing.joins and has_pairs else truncation_side,
            with_type_ids=takes_type_ids and (has_two or any(backend.encode("a").type_ids)),
            threads=threads or self.tokenizer_threads,
            with_special_tokens=special,
            mask_id=self.mask[1] if sequencing.needs_mask else -1,
        )
        if sequencing == Sequencing():
            return FastTokenizer(backend, settings, self.encoder(package, settings.threads))
        encoder = None if sequencing.is_aligned else self.encoder(package, settings.threads)
        return SequenceTokenizer(backend, settings, sequencing, encoder)

    @functools.cached_property
    def mask(self) -> tuple[str, int]:
        """Text and id of the mask token. Raises ModelError where the tokenizer has none."""
        return mask_token(self.description.folder, self.parts().backend)

    def reduction(self) -> Reduction:
        """The task's, with what the tokenizer knows."""
        made: Reduction = dataclasses.replace(self.task.reduction(), skip_tokens=self.skip_tokens())
        if made.kind == "fill":
            check_top_k(made.top_k, self.parts().backend)
            made = dataclasses.replace(made, mask_id=self.mask[1], columns=self.targets.ids)
        late = self.description.late
        if made.kind == "vectors" and late is not None and late.expand_to and not late.attends:
            made = dataclasses.replace(made, unattended_id=self._expansion_id(late))
        return dataclasses.replace(made, width=len(made.columns)) if made.columns else made

    def _expansion_id(self, late: LateInteraction) -> int:
        mask_id = self.mask[1] if late.expansion_token is None else -1
        return expansion_id(self.parts().backend, late, mask_id)

    @functools.cached_property
    def targets(self) -> Targets:
        """Of fill-mask. Raises UsageError where none of them is a token."""
        return find_targets(self.parts().backend, self.settings.targets or ())

    @property
    def tokenizer_threads(self) -> int:
        return self.settings.tokenizer_threads or num_cores()

    def encoder(self, package: str, threads: int) -> Encoder | None:
        """The package's, proven; None for hf, and where a resumed run finds the package gone or other tokens in it."""
        choice = self.choose_tokenizer(package)
        if package == "hf" or choice.name != package:
            return None
        if choice.encoder is not None and threads == self.tokenizer_threads:
            self._choice = choice._replace(encoder=None)
            return choice.encoder
        encoder = open_checked(package, self.parts().backend, threads)
        return None if isinstance(encoder, str) else encoder

    def choose_tokenizer(self, asked: str) -> TokenizerChoice:
        """Once for the rows that were seen."""
        if asked == "hf":
            return TokenizerChoice("hf")
        if self.task.sequencing().is_aligned:
            note = f"tokenizer: hf, since {asked} does not say where tokens stand"
            return TokenizerChoice("hf", notes=() if asked == "auto" else (note,))
        if self._choice is None:
            texts = [*self._texts[:PROOF_ROWS], *(self._pairs or [])[:PROOF_ROWS]]
            self._choice = choose_tokenizer(
                asked, self.parts().backend, [text for text in texts if text is None or isinstance(text, str)],
                self.description.prompt, self.tokenizer_threads,
            )  # fmt: skip
        return self._choice

    @contextmanager
    def tokenizing(self, num_tokens: int, max_length: int | None, threads: int | None) -> Iterator[None]:
        """Tokenizes about so many tokens of the job's rows in a thread of its own meanwhile, as the job will, and waits
        for their end. threads: of the tokenizer; None: as many as otherwise."""
        passes, rest = divmod(num_tokens, max(int(self.lengths.sum()), 1))
        last = int(np.searchsorted(np.cumsum(self.lengths), rest))
        choice = self.choose_tokenizer("hf" if self.settings.exact else self.settings.tokenizer)
        tokenizer = self.tokenizer(max_length, self._pairs is not None, choice.name, threads)

        def tokenize() -> None:
            for count in [len(self._texts)] * passes + [last] * (last > 0):
                tokenizer.tokenize(self._texts[:count], self._pairs and self._pairs[:count])

        try:
            with ThreadPoolExecutor(1, "tokenize") as pool:
                done = pool.submit(tokenize)
                yield
                done.result()
        finally:
            if tokenizer.is_of(choice.encoder):
                self._choice = choice  # the job goes on with it
            else:
                tokenizer.close()

    def parts(self) -> TokenizerParts:
        """Loaded once. Padding and truncation that a tokenizer.json may have baked in count for nothing."""
        if self._parts is None:
            assert self._load_tokenizer is not None
            parts: TokenizerParts = self._load_tokenizer(self.description)
            parts.backend.no_padding()
            parts.backend.no_truncation()
            if self.description.lower_case:
                add_lowercase(parts.backend)
            self._parts = parts
        return self._parts

    def detokenize(self) -> Detokenize:
        """Ids back to text, as the model's own tokenizer does it."""
        backend = self.parts().backend
        return detokenizer(backend, cleans_up(self.description.folder, backend))

    @functools.cached_property
    def vocabulary(self) -> Vocabulary:
        """What the tokenizer knows of tokens."""
        return vocabulary(self.description.folder, self.parts().backend)

    def trial(self) -> Tokens:
        """A few short rows for a backend to try the model on; the first two are equal."""
        sequencing: Sequencing = dataclasses.replace(self.task.sequencing(), long="truncate", stride=0)
        limit = min(self.description.max_length or TRIAL_TOKENS, TRIAL_TOKENS)  # which a stride may be beyond
        tokenizer = self.tokenizer(limit, has_pairs=False, sequencing=sequencing)
        texts = [f"{text} {self.mask[0]}" if sequencing.mask_token else text for text in TRIAL]
        tokens = tokenizer.tokenize(texts, [TRIAL_LABELS] * len(texts) if sequencing.kind == "labels" else None).tokens
        tokenizer.close()
        return tokens.take(np.flatnonzero(tokens.lengths))

    def skip_tokens(self) -> int:
        """Tokens of the prompt that pooling leaves out: those before the text, without the closing special token."""
        if self.description.include_prompt or not self.description.prompt:
            return 0
        backend = self.parts().backend
        ids = backend.encode(self.description.prompt).ids
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (1 if ids[-1] in special else 0)

    # -- identity

    @functools.cached_property
    def notes(self) -> tuple[str, ...]:
        """For the plan: what was found otherwise than asked for."""
        found, adapter = self._adapter, self.description.adapter
        of_adapter = (*found.notes, *base_note(adapter, found.name, self._found.name)) if found and adapter else ()
        return (*self._found.notes, *of_adapter, *(self.targets.notes if self.settings.targets else ()))

    def identity(self) -> dict[str, Any]:
        """sha256 of every file; the commit of a hub model. The same of the adapter where there is one."""
        adapter = self._adapter
        own = {"commit": self._found.commit, "files": self._file_hashes}
        return own if adapter is None else own | {"adapter": {"commit": adapter.commit, "files": self._adapter_hashes}}

    @functools.cached_property
    def _file_hashes(self) -> dict[str, str]:
        return file_hashes(self._found.folder, self._found.files)

    @functools.cached_property
    def _adapter_hashes(self) -> dict[str, str]:
        return file_hashes(self._adapter.folder, ADAPTER_FILES) if self._adapter else {}

    @property
    def key(self) -> str:
        """sha256 over every file of the model and of the adapter."""
        files = [self._file_hashes, *([self._adapter_hashes] if self._adapter else [])]
        return hashlib.sha256(json.dumps(files[0] if len(files) == 1 else files).encode()).hexdigest()

    def close(self) -> None:
        if self._choice is not None and self._choice.encoder is not None:
            self._choice.encoder.close()
        self._choice = None


def _found_adapter(settings: EngineConfig) -> Found | None:
    if settings.adapter is None:
        return None
    if settings.onnx_file is not None:
        raise UsageError(f"--onnx-file {settings.onnx_file}: an adapter is merged into weights, not a graph; drop one")
    check_peft(settings.adapter, settings.backend)
    return find_adapter(settings.adapter)

"""From settings to loaded stages: the model found, checked, described; its tokenizer, task and weights loaded."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.backends import choose_backend, find_backend
from packhorse.batching import planner
from packhorse.batching.fixed import DEFAULT_BATCH_SIZE
from packhorse.config import EngineConfig
from packhorse.data import LoadRequest, ModelDescription, TokenizerParts, Tokens
from packhorse.devices.host import num_cores
from packhorse.errors import ChangedError, UsageError
from packhorse.models.describe import describe
from packhorse.models.find import file_hashes, find_model
from packhorse.models.preflight import check_folder, check_weights
from packhorse.plans import Plan
from packhorse.shard import Stages
from packhorse.stages import LoadedModel
from packhorse.tasks import make_task
from packhorse.tokenize.encoder import Encoder
from packhorse.tokenize.fast import FastTokenizer, TokenizeSettings
from packhorse.tokenize.proof import TokenizerChoice, check_installed, choose_tokenizer, open_checked
from packhorse.tuning.gate import stratified
from packhorse.tuning.precision import Choice, choose_precision

# Rows of three lengths; the middle one is a usual sentence.
TRIAL = ("read a zip file", "read a zip file", "The plot is thin, but two hours go by in no time.", "good")
TRIAL_TOKENS = 64
ENOUGH_FOR_SCALES = 64  # rows
UNKNOWN_MAX_LENGTH = 512  # for rows that are only tried on
PROOF_ROWS = 1_024  # of the job, for tokenizers
NO_ROWS = Tokens(np.empty(0, np.int32), np.zeros(1, np.int64))


class Loader:
    """Everything about the model that settings decide. Weights are read when `model()` is first asked for."""

    def __init__(self, settings: EngineConfig) -> None:
        self.settings = settings
        check_installed(settings.tokenizer)
        self._found = find_model(settings.model, settings.revision)
        check_folder(self._found.folder)
        self.description: ModelDescription = describe(self._found, settings)
        self._backend_name = choose_backend(settings.backend, self.description.folder)
        self._backend = find_backend(self._backend_name)
        if settings.precision not in ("auto", *self._backend.PRECISIONS):
            legal = ", ".join(self._backend.PRECISIONS)
            raise UsageError(f"--precision {settings.precision}: backend {self._backend_name} has {legal}")
        for flag, value in (("--provider", settings.provider), ("--onnx-file", settings.onnx_file)):
            if self._backend_name != "onnx" and value not in (None, "auto"):
                raise UsageError(f"{flag} {value}: belongs to --backend onnx, this is {self._backend_name}")
        self._own_precision: str | None = self._backend.own_precision(self.description, settings)
        if self._own_precision and settings.precision not in ("auto", self._own_precision):
            raise UsageError(
                f"--precision {settings.precision}: the weights in {self.description.folder} are {self._own_precision}"
            )
        if self._backend.NEEDS_WEIGHTS:
            check_weights(self.description.folder)
        self.task = make_task(self.description, settings)
        self.device: str = self._backend.choose_device(settings)
        self.workers: int = self._backend.num_workers(self.device, num_cores())
        self.threads = 1 if settings.exact or self.workers > 1 else num_cores()
        self._tokenizer_parts: TokenizerParts | None = None
        self._models: dict[str, LoadedModel] = {}
        self._rows = NO_ROWS
        self._texts: list[str | None] = []
        self._tokenizer_choice: TokenizerChoice | None = None

    def see(self, texts: list[str | None], pairs: list[str | None] | None) -> None:
        """Texts of the job: what precision, packing and calibration are tried on."""
        for precision in {"int8", "fp8"} & set(self._models):  # their scales are those of other rows
            self._models.pop(precision).close()
        limits = [n for n in (self.settings.max_length, self.description.max_length) if n]
        tokenizer = self.tokenizer(min(limits, default=UNKNOWN_MAX_LENGTH), pairs is not None)
        tokens = tokenizer.tokenize(texts, pairs).tokens
        tokenizer.close()
        self._rows = tokens.take(stratified(tokens.lengths))
        self._texts, self._tokenizer_choice = [*texts[:PROOF_ROWS], *(pairs or [])[:PROOF_ROWS]], None

    # -- parts

    def model(self, precision: str) -> LoadedModel:
        """The model at a precision, loaded once. Raises ModelError."""
        if precision not in self._models:
            self._models[precision] = self._backend.load(self.request(precision))
        return self._models[precision]

    def request(self, precision: str) -> LoadRequest:
        """What a backend is told to load or export."""
        s = self.settings
        reduction = dataclasses.replace(self.task.reduction(), skip_tokens=self._skip_tokens())
        return LoadRequest(
            description=self.description, reduction=reduction, device=self.device, precision=precision,
            workers=self.workers, threads=self.threads, trial=self._trial(), rows=self._rows,
            attention=s.attention, provider=s.provider, onnx_file=s.onnx_file, model_key=lambda: self._model_key,
        )  # fmt: skip

    def export(self, folder: Path) -> None:
        """Writes the model for the backend, at the precision of the settings. Raises ModelError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.export(self.request(self.settings.precision), folder)

    def tokenizer(self, max_length: int | None, has_pairs: bool, package: str = "hf") -> FastTokenizer:
        backend, takes_type_ids, truncation_side = self._parts()
        settings = TokenizeSettings(
            max_length=max_length,
            prompt=self.description.prompt,
            truncation_side=truncation_side,
            with_type_ids=takes_type_ids and (has_pairs or any(backend.encode("a").type_ids)),
            threads=self._tokenizer_threads,
        )
        return FastTokenizer(backend, settings, self._encoder(package))

    @property
    def _tokenizer_threads(self) -> int:
        return self.settings.tokenizer_threads or num_cores()

    def _encoder(self, package: str) -> Encoder | None:
        """The package's, proven; None for hf, and where a resumed run finds the package gone or other tokens in it."""
        choice = self._choose_tokenizer(package)
        if package == "hf" or choice.name != package:
            return None
        self._tokenizer_choice = choice._replace(encoder=None)
        encoder = choice.encoder or open_checked(package, self._parts().backend, self._tokenizer_threads)
        return None if isinstance(encoder, str) else encoder

    def _choose_tokenizer(self, asked: str) -> TokenizerChoice:
        """Once for the rows that were seen."""
        if asked == "hf":
            return TokenizerChoice("hf")
        if self._tokenizer_choice is None:
            self._tokenizer_choice = choose_tokenizer(
                asked, self._parts().backend, self._texts, self.description.prompt, self._tokenizer_threads
            )
        return self._tokenizer_choice

    def replay(self, plan: Plan) -> None:
        """Takes over what a plan decided. Raises ChangedError where this machine has no such device."""
        if plan.device != self.device.split(":")[0]:
            raise ChangedError(
                f"this output was begun on {plan.device}, and this is {self.device}: go on there, "
                "choose another output, or --overwrite to start anew"
            )
        if (plan.workers, plan.threads) != (self.workers, self.threads):
            self.close()
            self.workers, self.threads = plan.workers, plan.threads

    def stages(self, plan: Plan, keep: list[str], output_prefix: str = "") -> Stages:
        """All stages as a plan says."""
        return Stages(
            tokenizer=self.tokenizer(plan.max_length, plan.pair_column is not None, plan.tokenizer),
            planner=planner(plan.batching),
            model=self.model(plan.precision),
            task=self.task,
            text_column=plan.text_column,
            pair_column=plan.pair_column,
            keep=keep,
            output_prefix=output_prefix,
            dedup=self.settings.dedup,
            workers=plan.workers,
        )

    def close(self) -> None:
        for model in self._models.values():
            model.close()
        self._models.clear()
        if self._tokenizer_choice is not None and self._tokenizer_choice.encoder is not None:
            self._tokenizer_choice.encoder.close()
        self._tokenizer_choice = None

    # -- decisions

    def plan(self, choice: Choice, text_column: str, pair_column: str | None) -> Plan:
        """The decisions of a job, as data."""
        s, precision = self.settings, choice.precision
        batch_size = s.batch_size or (DEFAULT_BATCH_SIZE if s.batching == "fixed" else None)
        budget = s.max_batch_tokens or self._default_budget(precision)
        model = self.model(precision)
        batching = _batching(s.batching, model)
        tokenizer = self._choose_tokenizer("hf" if s.exact else s.tokenizer)
        notes = choice.notes + model.notes + tokenizer.notes
        if precision == "int8" and not self._own_precision and self._rows.num_rows < ENOUGH_FOR_SCALES:
            notes += (f"int8: its scales come from {self._rows.num_rows} rows only",)
        if batching == "equal":
            notes += ("this model's outputs change with padding, so only rows of equal length run together",)
        return Plan(
            task=self.description.task, backend=self._backend_name, device=self.device.split(":")[0],
            precision=precision, attention=model.attention, batching=batching, batch_size=batch_size,
            max_batch_tokens=budget, max_length=self._max_length(precision), workers=self.workers,
            threads=self.threads, tokenizer=tokenizer.name, text_column=text_column, pair_column=pair_column,
            accuracy=choice.verdict and choice.verdict._asdict(), notes=notes, versions=self.versions(),
        )  # fmt: skip

    def versions(self) -> dict[str, str]:
        """Of what can change the bytes of an output."""
        return {"packhorse": version("packhorse"), "pyarrow": pa.__version__} | self._backend.versions()

    def model_identity(self) -> dict[str, Any]:
        """sha256 of every file; the commit of a hub model."""
        return {"commit": self.description.commit, "files": self._file_hashes}

    @functools.cached_property
    def _file_hashes(self) -> dict[str, str]:
        return file_hashes(self._found.folder)

    @property
    def _model_key(self) -> str:
        return hashlib.sha256(json.dumps(self._file_hashes).encode()).hexdigest()

    def choose_precision(self, job_rows: float) -> Choice:
        """The precision and why. For auto, in a job of enough rows, the lower one has to agree with fp32 on the rows
        that were seen."""
        if self._own_precision:
            return Choice(self._own_precision, (f"{self._own_precision}: the folder's own graph has these weights",))
        choice = choose_precision(
            self.settings, self.device, self._backend.supported_precisions(self.device), job_rows, self._rows,
            self.model, self._default_budget,
        )  # fmt: skip
        for precision in set(self._models) - {choice.precision}:  # the weights are not needed any more
            self._models.pop(precision).close()
        return choice

    def _default_budget(self, precision: str) -> int:
        width = self.description.attention_width
        tokens: int = self._backend.default_batch_tokens(self.device, precision, width)
        return tokens

    def gemm(self, precision: str, seen: float) -> float | None:
        """Best matrix product of the device in FLOP/s, None where the backend has no device. seen: a model's rate."""
        rate: float | None = self._backend.best_gemm(self.device, precision, self.workers * self.threads, seen)
        return rate

    def _max_length(self, precision: str) -> int | None:
        limits = [n for n in (self.description.max_length, self.model(precision).max_length) if n]
        legal = min(limits, default=None)
        asked = self.settings.max_length
        if asked and legal and asked > legal:
            raise UsageError(f"--max-length {asked}: the model takes at most {legal} tokens")
        return asked or legal

    def _parts(self) -> TokenizerParts:
        """Loaded once. Padding and truncation that a tokenizer.json may have baked in count for nothing."""
        if self._tokenizer_parts is None:
            parts: TokenizerParts = self._backend.load_tokenizer(self.description)
            parts.backend.no_padding()
            parts.backend.no_truncation()
            if self.description.lower_case:
                _add_lowercase(parts.backend)
            self._tokenizer_parts = parts
        return self._tokenizer_parts

    def _trial(self) -> Tokens:
        """A few short rows for a backend to try the model on; the first two are equal."""
        tokenizer = self.tokenizer(min(self.description.max_length or TRIAL_TOKENS, TRIAL_TOKENS), has_pairs=False)
        tokens = tokenizer.tokenize(TRIAL, None).tokens
        tokenizer.close()
        return tokens.take(np.flatnonzero(tokens.lengths))

    def _skip_tokens(self) -> int:
        """Tokens of the prompt that pooling leaves out: those before the text, without the closing special token."""
        if self.description.include_prompt or not self.description.prompt:
            return 0
        backend = self._parts().backend
        ids = backend.encode(self.description.prompt).ids
        special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        return len(ids) - (1 if ids[-1] in special else 0)


def _batching(asked: str, model: LoadedModel) -> str:
    """The policy: what was asked for, as far as the model's outputs stay those of each row alone."""
    if model.is_packed:
        return "packed" if asked == "auto" else asked
    if asked == "packed":
        raise UsageError(f"--batching packed: this model runs padded ({'; '.join(model.notes)}); leave it out")
    if not model.pads_safely:
        return "equal"
    return "padded" if asked == "auto" else asked


def _add_lowercase(backend: Any) -> None:
    """do_lower_case of sentence-transformers: lower-cases before whatever the tokenizer normalizes itself."""
    from tokenizers import normalizers

    first = normalizers.Lowercase()
    if '"Lowercase"' not in json.dumps(json.loads(backend.to_str())["normalizer"]):
        backend.normalizer = normalizers.Sequence([first, backend.normalizer]) if backend.normalizer else first

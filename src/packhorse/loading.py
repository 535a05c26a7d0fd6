"""From settings to loaded stages: the model found, checked, described; its tokenizer, task and weights loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from packhorse.backends import find_backend
from packhorse.batching import planner
from packhorse.batching.fixed import DEFAULT_BATCH_SIZE
from packhorse.config import EngineConfig, Plan
from packhorse.data import Batch, Float32s, ModelDescription, TokenizerParts, Tokens
from packhorse.devices.host import num_cores
from packhorse.errors import BatchRefusedError, ChangedError, DeviceOutOfMemoryError, UsageError
from packhorse.models.describe import describe
from packhorse.models.find import file_hashes, find_model
from packhorse.models.preflight import check_folder, check_weights
from packhorse.shard import Stages
from packhorse.stages import LoadedModel
from packhorse.tasks import make_task
from packhorse.tokenize.fast import FastTokenizer, TokenizeSettings
from packhorse.tuning.gate import MIN_JOB_ROWS, Verdict, compare, stratified

# Rows of three lengths; the middle one is a usual sentence.
TRIAL = ("read a zip file", "read a zip file", "The plot is thin, but two hours go by in no time.", "good")
TRIAL_TOKENS = 64


class Loader:
    """Everything about the model that settings decide. Weights are read when `model()` is first asked for."""

    def __init__(self, settings: EngineConfig) -> None:
        self.settings = settings
        self._backend = find_backend(settings.backend)
        self._found = find_model(settings.model, settings.revision)
        check_folder(self._found.folder)
        self.description: ModelDescription = describe(self._found, settings)
        if self._backend.NEEDS_WEIGHTS:
            check_weights(self.description.folder)
        self.task = make_task(self.description, settings)
        self.device: str = self._backend.choose_device(settings.devices)
        self.threads = 1 if settings.exact else num_cores()
        self._tokenizer_parts: TokenizerParts | None = None
        self._models: dict[str, LoadedModel] = {}

    # -- parts

    def model(self, precision: str) -> LoadedModel:
        """The model at a precision, loaded once. Raises ModelError."""
        if precision not in self._models:
            reduction = dataclasses.replace(self.task.reduction(), skip_tokens=self._skip_tokens())
            self._models[precision] = self._backend.load(
                self.description, reduction, self.device, precision, self.threads, self._trial()
            )
        return self._models[precision]

    def tokenizer(self, max_length: int | None, has_pairs: bool) -> FastTokenizer:
        backend, takes_type_ids, truncation_side = self._parts()
        settings = TokenizeSettings(
            max_length=max_length,
            prompt=self.description.prompt,
            truncation_side=truncation_side,
            with_type_ids=takes_type_ids and (has_pairs or any(backend.encode("a").type_ids)),
            threads=self.settings.tokenizer_threads or num_cores(),
        )
        return FastTokenizer(backend, settings)

    def replay(self, plan: Plan) -> None:
        """Takes over what a plan decided. Raises ChangedError where this machine has no such device."""
        if plan.device != self.device.split(":")[0]:
            raise ChangedError(
                f"this output was begun on {plan.device}, and this is {self.device}: go on there, "
                "choose another output, or --overwrite to start anew"
            )
        if plan.threads != self.threads:
            self.close()
            self.threads = plan.threads

    def stages(self, plan: Plan, keep: list[str], output_prefix: str = "") -> Stages:
        """All stages as a plan says."""
        return Stages(
            tokenizer=self.tokenizer(plan.max_length, plan.pair_column is not None),
            planner=planner(plan.batching),
            model=self.model(plan.precision),
            task=self.task,
            text_column=plan.text_column,
            pair_column=plan.pair_column,
            keep=keep,
            output_prefix=output_prefix,
            dedup=self.settings.dedup,
        )

    def close(self) -> None:
        for model in self._models.values():
            model.close()
        self._models.clear()

    # -- decisions

    def plan(self, precision: str, notes: tuple[str, ...], text_column: str, pair_column: str | None) -> Plan:
        """The decisions of a job, as data."""
        s = self.settings
        batch_size = s.batch_size or (DEFAULT_BATCH_SIZE if s.batching == "fixed" else None)
        budget = s.max_batch_tokens or self._backend.default_batch_tokens(self.device, precision)
        model = self.model(precision)
        batching = s.batching if model.pads_safely else "equal"
        if batching != s.batching:
            notes += ("this model's outputs change with padding, so only rows of equal length run together",)
        return Plan(
            task=self.description.task, backend=s.backend, device=self.device.split(":")[0], precision=precision,
            batching=batching, batch_size=batch_size, max_batch_tokens=budget, max_length=self._max_length(precision),
            threads=self.threads, text_column=text_column, pair_column=pair_column,
            notes=notes, versions=self.versions(),
        )  # fmt: skip

    def versions(self) -> dict[str, str]:
        """Of what can change the bytes of an output."""
        return {"packhorse": version("packhorse"), "pyarrow": pa.__version__} | self._backend.versions()

    def model_identity(self) -> dict[str, Any]:
        """sha256 of every file; the commit of a hub model."""
        return {"commit": self.description.commit, "files": file_hashes(self._found.folder)}

    def choose_precision(
        self, job_rows: float, texts: list[str | None], pairs: list[str | None] | None
    ) -> tuple[str, tuple[str, ...]]:
        """The precision and why. For auto, in a job of enough rows, the lower one has to agree with fp32 on some of
        these texts."""
        s = self.settings
        supported = self._backend.supported_precisions(self.device)
        lower = [p for p in supported[1:] if self.device != "cpu" or p == "bf16"]
        if s.exact:
            return "fp32", ("--exact: fp32, one thread",)
        if s.precision != "auto":
            slow = f"{self.device} has no instructions for {s.precision}: expect it to be 10-30x slower than fp32"
            return s.precision, () if s.precision in supported else (slow,)
        if not lower:
            return "fp32", ()
        if job_rows < MIN_JOB_ROWS:
            return "fp32", (f"fp32: {job_rows:,.0f} rows are too few to check {lower[0]} against it",)
        verdict = self._try_precision(lower[0], texts, pairs)
        chosen = lower[0] if verdict.passed else "fp32"
        self._models = {chosen: self._models[chosen]}  # the other's weights are not needed any more
        return chosen, (f"{chosen}: {lower[0]} {'agrees' if verdict.passed else 'does not agree'}; {verdict.finding}",)

    def gemm(self, precision: str) -> float | None:
        """Best matrix product of the device in FLOP/s, None where the backend has no device."""
        rate: float | None = self._backend.best_gemm(self.device, precision, self.threads)
        return rate

    def _try_precision(self, precision: str, texts: list[str | None], pairs: list[str | None] | None) -> Verdict:
        tokenizer = self.tokenizer(self._max_length("fp32"), pairs is not None)
        tokens = tokenizer.tokenize(texts, pairs).tokens
        tokenizer.close()
        sample = tokens.take(stratified(tokens.lengths))
        if not sample.num_rows:
            return Verdict(False, "no row of the sample can be computed")
        reference = self._values("fp32", sample)
        can_be_done = np.isfinite(reference).all(1)
        candidate = self._values(precision, sample.take(np.flatnonzero(can_be_done)))
        return compare(reference[can_be_done], candidate, self.task.reduction())

    def _values(self, precision: str, tokens: Tokens) -> Float32s:
        """Row by row, so without padding; NaN for a row that cannot be done."""
        model = self.model(precision)
        values = np.full((tokens.num_rows, model.reduction.width), np.nan, np.float32)
        for i in range(tokens.num_rows):
            with contextlib.suppress(DeviceOutOfMemoryError, BatchRefusedError):  # an error row of the run, not its end
                values[i] = model.forward(Batch(tokens.take(np.array([i])))).numpy()
        return values

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


def _add_lowercase(backend: Any) -> None:
    """do_lower_case of sentence-transformers: lower-cases before whatever the tokenizer normalizes itself."""
    from tokenizers import normalizers

    first = normalizers.Lowercase()
    if '"Lowercase"' not in json.dumps(json.loads(backend.to_str())["normalizer"]):
        backend.normalizer = normalizers.Sequence([first, backend.normalizer]) if backend.normalizer else first

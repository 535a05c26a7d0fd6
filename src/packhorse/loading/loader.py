"""One backend on its device: its models, one a precision, and all stages as a plan says."""

from __future__ import annotations

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from packhorse.backends import choose_backend, find_backend
from packhorse.batching import planner
from packhorse.batching.fixed import DEFAULT_BATCH_SIZE
from packhorse.config import EngineConfig
from packhorse.config.tasks import OF_TASKS
from packhorse.data import ModelDescription
from packhorse.devices.host import num_cores
from packhorse.errors import ChangedError, UsageError
from packhorse.generation import QUANTIZED, Quantization
from packhorse.load_request import LoadRequest
from packhorse.loading.checking import batching, check_own_precision, check_settings, device_map_of, placement_of
from packhorse.loading.material import Material
from packhorse.models.preflight import check_weights
from packhorse.placing import as_planned
from packhorse.plans import Plan
from packhorse.prompts import PromptSource
from packhorse.sequences import Sequencing
from packhorse.shard import Stages
from packhorse.stages import Generator, LoadedModel, SeveralEngines, Task, Tokenizer
from packhorse.tokenize.limited import LimitedTokenizer
from packhorse.tuning.candidates import Candidate

ENOUGH_FOR_SCALES = 64  # rows
CALIBRATED = frozenset({"int8", "fp8"})  # of values: their scales are those of the rows that were seen


class Loader:
    """Everything about the model that settings decide. Weights are read when `model()` is first asked for."""

    def __init__(self, settings: EngineConfig, material: Material | None = None) -> None:
        """material: that of another backend of the same model. Raises UsageError, RefusedError or ModelError."""
        self.settings = settings
        self.material = material or Material(settings)
        self.description: ModelDescription = self.material.description
        self.backend_name = choose_backend(settings.backend, self.description.folder)
        self.backend = find_backend(self.backend_name)
        check_settings(settings, self.description, self.backend_name, self.backend.PRECISIONS)
        self.own_precision: str | None = self.backend.own_precision(self.description, settings)
        check_own_precision(settings, self.description.folder, self.own_precision)
        if self.backend.NEEDS_WEIGHTS or (self.description.adapter is not None and self.backend_name != "null"):
            check_weights(self.description.folder)
        self.task: Task = self.material.task
        self.material.tokenized_by(self.backend.load_tokenizer)
        self.device: str = self.backend.choose_device(settings)
        self.placement = placement_of(settings, self.backend)
        self.workers: int = self.backend.num_workers(self.device, num_cores())
        self.threads = 1 if settings.exact or self.workers > 1 else num_cores()
        if self.description.writes:
            self.workers, self.threads = 1, num_cores()  # rows at different steps share each forward
        if self.placement.is_split:
            self.workers, self.threads = 1, 1 if settings.exact else num_cores()
        self.compiled = bool(settings.compile)
        if self.compiled:
            self.workers, self.threads = self.compiled_split
        self.engine: str = settings.engine  # that models write with
        self._models: dict[str, LoadedModel | Generator] = {}

    def sibling(self, backend: str) -> Loader:
        """Another backend of the same model; itself where it is that one already. Raises UsageError or ModelError."""
        if backend == self.backend_name:
            return self
        return Loader(self.settings.model_copy(update={"backend": backend}), self.material)

    def see(
        self, texts: list[str | None], pairs: list[str | None] | None, is_whole: bool = False, with_special: bool = True
    ) -> None:
        """Texts of the job; all of them where is_whole. with_special: special tokens are put around them."""
        if not self.description.writes:
            self.drop(CALIBRATED)
        self.material.see(texts, pairs, is_whole, with_special)

    # -- parts

    def any_model(self, precision: str) -> LoadedModel | Generator:
        """The model at a precision, loaded once. Raises ModelError."""
        if precision not in self._models:
            self._models[precision] = self.backend.load(self.request(precision))
        if isinstance(model := self._models[precision], SeveralEngines):
            model.write_with(self.engine)
        return model

    def model(self, precision: str) -> LoadedModel:
        """One that gives values."""
        return cast(LoadedModel, self.any_model(precision))

    def generator(self, precision: str) -> Generator:
        """One that writes."""
        return cast(Generator, self.any_model(precision))

    def take_models(self, other: Loader) -> None:
        """Those of a loader whose settings differ in what a task makes of a model's values alone."""
        ours, theirs = (x.settings.model_dump(exclude=set(OF_TASKS)) for x in (self, other))
        is_same = ours == theirs and self.material.reduction() == other.material.reduction()
        if is_same and not self.description.writes and self.is_set_to(other.workers, other.threads, other.compiled):
            self._models, other._models = other._models, {}

    @property
    def loaded(self) -> frozenset[str]:
        """Precisions."""
        return frozenset(self._models)

    def drop(self, precisions: frozenset[str]) -> None:
        """Frees models."""
        for precision in precisions & self.loaded:
            self._models.pop(precision).close()

    @property
    def compiled_split(self) -> tuple[int, int]:
        """Workers and threads of compiled code: torch.compile refuses a call while another thread traces."""
        return 1, self.workers * self.threads

    def use(self, workers: int, threads: int, compiled: bool) -> None:
        """How many forwards at the same time, threads inside an operator, and whether torch.compile makes them; what is
        loaded otherwise is dropped."""
        if not self.is_set_to(workers, threads, compiled):
            self.drop(self.loaded)
            self.workers, self.threads, self.compiled = workers, threads, compiled

    def is_set_to(self, workers: int, threads: int, compiled: bool) -> bool:
        return (workers, threads, compiled) == (self.workers, self.threads, self.compiled)

    def request(self, precision: str) -> LoadRequest:
        """What a backend is told to load or export."""
        s, material = self.settings, self.material
        return LoadRequest(
            description=self.description, reduction=material.reduction(), device=self.device, precision=precision,
            workers=self.workers, threads=self.threads, trial=material.trial(), rows=material.rows,
            longest=material.longest,
            attention=s.attention, provider=s.provider, onnx_file=s.onnx_file, compiled=self.compiled,
            model_key=lambda: material.key, decoding=s.decoding() if self.description.writes else None,
            quantization=self._quantization(precision), placement=self.placement, engine=self.engine,
        )  # fmt: skip

    def _quantization(self, precision: str) -> Quantization:
        """As asked for, of the precision that was: the one it is compared with has none."""
        s = self.settings
        is_asked = precision == s.precision or s.precision == "auto"
        return Quantization(s.quantization, s.quantization_options) if is_asked else Quantization()

    def export(self, folder: Path) -> None:
        """Writes the model for the backend, at the precision of the settings. Raises ModelError."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backend.export(self.request(self.settings.precision), folder)

    def replay(self, plan: Plan) -> None:
        """Takes over what a plan decided. Raises ChangedError where this machine has no such device."""
        if plan.device != self.device.split(":")[0]:
            raise ChangedError(
                f"this output was begun on {plan.device}, and this is {self.device}: go on there, "
                "choose another output, or --overwrite to start anew"
            )
        self.use(plan.workers, plan.threads, plan.compiled)
        self.placement = as_planned(self.placement, plan.device_map)

    def stages(
        self, plan: Plan, keep: list[str], output_prefix: str = "", prompts: PromptSource | None = None,
        seed_column: str | None = None,
    ) -> Stages:  # fmt: skip
        """All stages as a plan says. prompts and seed_column: of generation."""
        self.use(plan.workers, plan.threads, plan.compiled)
        self.engine = plan.engine or self.engine
        threads = self.settings.tokenizer_threads or plan.tokenizer_threads  # they change no byte: a flag may
        made = Stages(
            tokenizer=self._tokenizer(plan, prompts, threads),
            planner=planner(plan.batching),
            model=self.any_model(plan.precision),
            task=self.task,
            text_column=plan.text_column,
            pair_column=plan.pair_column,
            keep=keep,
            output_prefix=output_prefix,
            dedup=self.settings.dedup,
            workers=plan.workers,
            read_vocabulary=lambda: self.material.vocabulary,
        )
        if not self.description.writes:
            return made
        detokenize = self.material.detokenize()
        return dataclasses.replace(made, prompts=prompts, seed_column=seed_column, detokenize=detokenize)

    def _tokenizer(self, plan: Plan, prompts: PromptSource | None, threads: int | None) -> Tokenizer:
        if not self.description.writes:
            is_plain = self.task.sequencing() == Sequencing()
            limit = plan.max_length if self.settings.long == "error" and is_plain else None  # beyond it, errors
            cut_to = plan.max_length if limit is None else None
            made = self.material.tokenizer(cut_to, plan.pair_column is not None, plan.tokenizer, threads)
            return made if limit is None else LimitedTokenizer(made, limit)
        with_special = prompts is None or prompts.adds_special_tokens
        room = prompt_room(plan) if self.settings.long == "truncate" else None
        tokenizer = self.material.tokenizer(room, False, plan.tokenizer, threads, with_special)
        if room is not None or plan.max_length is None:
            return tokenizer
        # As many tokens as there is room for are written, one at least.
        return LimitedTokenizer(tokenizer, plan.max_length, 0 if self.description.is_encoder_decoder else 1)

    def close(self) -> None:
        self.drop(self.loaded)
        self.material.close()

    # -- decisions

    def candidate(self, precision: str) -> Candidate:
        """The precision with the numbers that settings say, or that suit the device."""
        budget = self.settings.max_batch_tokens or self._default_budget(precision)
        return Candidate(self.backend_name, precision, budget, self.workers, self.threads, self.compiled)

    def plan(
        self, candidate: Candidate, text_column: str, pair_column: str | None, notes: tuple[str, ...] = (),
        **found: Any,
    ) -> Plan:  # fmt: skip
        """The decisions of a job, as data. found: other fields of a Plan."""
        s, precision = self.settings, candidate.precision
        self.use(candidate.workers, candidate.threads, candidate.compiled)
        batch_size = s.batch_size or (DEFAULT_BATCH_SIZE if s.batching == "fixed" else None)
        model = self.model(precision)
        tokenizer = self.material.choose_tokenizer("hf" if s.exact else s.tokenizer)
        policy = batching(s.batching, model)
        return Plan(
            task=self.description.task, backend=self.backend_name, device=self.device.split(":")[0],
            precision=precision, attention=model.attention, batching=policy, batch_size=batch_size,
            max_batch_tokens=candidate.max_batch_tokens, max_length=self.max_length(precision), workers=self.workers,
            threads=self.threads, compiled=self.compiled, tokenizer=tokenizer.name,
            tokenizer_threads=candidate.tokenizer_threads or self.material.tokenizer_threads,
            text_column=text_column, pair_column=pair_column, device_map=device_map_of(model),
            notes=notes + model.notes + tokenizer.notes + self._own_notes(precision, policy),
            versions=self.versions(), **found,
        )  # fmt: skip

    def _own_notes(self, precision: str, policy: str) -> tuple[str, ...]:
        notes = self.material.notes
        is_scaled = self.settings.quantization == "auto" and (self.backend_name != "torch" or self.device == "cpu")
        is_scaled = is_scaled and precision == "int8" and not self.own_precision
        if is_scaled and self.material.rows.num_rows < ENOUGH_FOR_SCALES:
            notes += (f"int8: its scales come from {self.material.rows.num_rows} rows only",)
        if policy == "equal":
            notes += ("this model's outputs change with padding, so only rows of equal length run together",)
        return notes

    def versions(self, engine: str | None = None) -> dict[str, str]:
        """Of what can change the bytes of an output. engine: of generation."""
        own = {"packhorse": version("packhorse"), "pyarrow": pa.__version__} | self.backend.versions()
        if self.placement.devices:
            own["ranks of --tensor-parallel"] = str(len(self.placement.devices))
        is_quantized = self.own_precision is not None or self.settings.precision in QUANTIZED
        if is_quantized and self.backend_name == "torch":
            own |= self.backend.quantizer_versions()
        if engine == "openvino":
            own["openvino"] = version("openvino")
        return own

    def supported_precisions(self) -> tuple[str, ...]:
        """Those the device has instructions for."""
        return tuple(self.backend.supported_precisions(self.device))

    def _default_budget(self, precision: str) -> int:
        width = self.description.attention_width
        tokens: int = self.backend.default_batch_tokens(self.device, precision, width)
        return tokens

    def gemm(self, precision: str, seen: float) -> float | None:
        """Best matrix product in FLOP/s of the device, of all ranks' together with --tensor-parallel; None where the
        backend has no device. seen: a model's rate."""
        ranks = max(len(self.placement.devices), 1) if self.device != "cpu" else 1  # on devices of their own
        rate: float | None = self.backend.best_gemm(self.device, precision, self.workers * self.threads, seen / ranks)
        return rate and rate * ranks

    def ceilings(self, precision: str) -> dict[str, Any] | None:
        """devices.ceilings.Ceilings as JSON values, None where the backend has no device. What was not measured yet on
        this machine is measured now, in a second or two."""
        found = self.backend.ceilings(self.device, [precision], self.workers * self.threads)
        return None if found is None else found.to_dict()

    def max_length(self, precision: str) -> int | None:
        limits = [n for n in (self.description.max_length, self.any_model(precision).max_length) if n]
        legal = min(limits, default=None)
        asked = self.settings.max_length
        if asked and legal and asked > legal:
            raise UsageError(f"--max-length {asked}: the model takes at most {legal} tokens")
        usual = (legal, self.task.sequencing().usual_length)
        return asked or min((n for n in usual if n), default=None)


def prompt_room(plan: Plan) -> int | None:
    """Tokens that a prompt is cut to: what is to be written has to fit behind it, but not at the cost of more than half
    of what the model takes."""
    if plan.max_length is None or plan.task != "text-generation":
        return plan.max_length
    return max(plan.max_length - (plan.max_new_tokens or 0), plan.max_length // 2, 1)

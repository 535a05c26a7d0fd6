"""A transformers model that writes: loaded, proven, and given to the engine that is right for it."""

from __future__ import annotations

import dataclasses
import functools
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import torch

from packhorse.backends.torch.attention import Pinned, check_attention
from packhorse.backends.torch.cost import measure_cost
from packhorse.backends.torch.generation import openvino_fitting
from packhorse.backends.torch.generation.continuous import ContinuousEngine
from packhorse.backends.torch.generation.continuous_probe import fits
from packhorse.backends.torch.generation.proving import FAILURES, first_line
from packhorse.backends.torch.generation.static import StaticEngine
from packhorse.backends.torch.generation.stepping import Stepper
from packhorse.backends.torch.loading import Loaded, LoadedWeights, load_on_devices
from packhorse.backends.torch.quality import compare_language_models
from packhorse.backends.torch.quiet import quiet
from packhorse.backends.torch.weights import max_positions
from packhorse.data import Int64s, RowError, Tokens, offsets_of
from packhorse.errors import ModelError, UsageError
from packhorse.generation import PACKED_ENGINES, Decoding, Generated, Prompts
from packhorse.load_request import LoadRequest
from packhorse.model_cost import ModelCost
from packhorse.packing.linear import is_available
from packhorse.packing.prepack import prepack
from packhorse.stages import OnStep

OF_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
PACKED = ("auto", "packed")  # kinds of attention that the continuous engine has


class Writer(Protocol):
    engine: str

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated: ...


class TorchGenerator:
    def __init__(self, request: LoadRequest, tokenizer: Any, loaded: Loaded | None = None) -> None:
        """tokenizer: the model's, as tokenizers.Tokenizer. loaded: called when the weights are there.
        Raises ModelError, and UsageError where what was asked for is not available here."""
        check_attention(request.attention, request.device)
        self.device = request.device
        self._request, self._writers = request, dict[str, Writer]()
        self._weights: LoadedWeights = load_on_devices(request, generates=True, loaded=loaded)
        self._model = self._weights.model
        self._notes: tuple[str, ...] = self._weights.notes
        self.device_map = self._weights.device_map
        self.reduction = request.reduction
        self._set_threads(request)
        limits = [n for n in (request.description.max_length, max_positions(self._model)) if n]
        self.max_length = min(limits, default=None)
        self._pinned = Pinned(request.attention)
        assert request.decoding is not None
        with quiet():
            positions = _decoder_positions(self._model) if request.description.is_encoder_decoder else self.max_length
            self._stepper = Stepper(self._model, tokenizer, request.decoding, positions)
            _check_sampling(request.decoding, self._stepper.is_sampled)
            self.cost = self._cost(request)
            self.weight_bytes = self._weights.num_bytes
            if request.device == "cpu" and self._weights.is_plain:
                self._speed_up_layers(request)
            self.write_with(request.engine)
        self.max_new_tokens, self.is_sampled = self._stepper.max_new_tokens, self._stepper.is_sampled

    def generate(self, prompts: Prompts, max_rows: int, max_prefill_tokens: int, on_step: OnStep) -> Generated:
        known, unknown = _known_prompts(prompts, self._model.get_input_embeddings().weight.shape[0])
        with torch.inference_mode(), self._pinned:
            generated = self._writer.generate(known, max_rows, max_prefill_tokens, on_step)
        return dataclasses.replace(generated, errors={**generated.errors, **unknown}) if unknown else generated

    def compared_with(self, reference: TorchGenerator, rows: Tokens) -> dict[str, float]:
        """quality.compare_language_models() of this model and one in full precision."""
        return compare_language_models(reference._model, self._model, rows, self.device)

    @property
    def notes(self) -> tuple[str, ...]:
        """For the plan; an engine's own grow where it has to do something again."""
        return (*self._notes, *getattr(self._writer, "notes", ()))

    def peak_bytes(self) -> int | None:
        return torch.cuda.max_memory_allocated(self.device) if self.device.startswith("cuda") else None

    def close(self) -> None:
        self._weights.close()
        del self._model, self._writer, self._writers, self._weights

    # -- engines around the same weights

    def engines(self) -> dict[str, str | None]:
        """Those of --engine, and why one is none for this model and these settings; None where nothing speaks against
        it before it is tried."""
        from packhorse.backends.torch.generation.paged import unfit

        library = self._stepper.needs_library
        if library is not None:
            return {"generate": None, **dict.fromkeys(("continuous", "openvino", "static", "paged"), library)}
        padded = "--attention packed, and it is not" if self._request.attention == "packed" else None
        split = "the model's layers lie on several devices" if self._weights.is_split else None
        return {
            "continuous": self._why_not_continuous,
            "openvino": self._why_not_openvino,
            "static": padded,
            "paged": padded or split or unfit(self._model, self._stepper),
            "generate": "rows of a batch stay until its longest output is done: for what no other engine can do",
        }

    def write_with(self, engine: str) -> None:
        """By this engine from now on; auto: by the first that is right. Raises UsageError where model or settings are
        not for it."""
        with quiet():
            name = self._best if engine == "auto" else engine
            if name not in self._writers:
                self._writers[name] = self._made(name)
        self.engine, self._writer = name, self._writers[name]
        self.attention = "packed" if name in PACKED_ENGINES else _attention_of(self._request, self._model)

    def setup_s(self, engine: str) -> float:
        """That the first write_with() of this engine takes, about."""
        is_long = engine == "openvino" and engine not in self._writers
        return openvino_fitting.setup_s(self.weight_bytes) if is_long else 0.0

    def forced(self, lengths: Int64s) -> AbstractContextManager[None]:
        """Stepper.forced()."""
        return self._stepper.forced(lengths)

    def _made(self, engine: str) -> Writer:
        model, stepper, device, request = self._model, self._stepper, self._weights.device, self._request
        if request.attention == "packed" and engine not in PACKED_ENGINES:
            raise UsageError(f"--attention packed: --engine {engine} runs padded batches; leave one of them out")
        if engine == "continuous":
            if self._why_not_continuous is not None:
                raise UsageError(f"--engine continuous: {self._why_not_continuous}; --engine auto takes another")
            return ContinuousEngine(model, stepper, device)
        if engine == "openvino":
            if self._why_not_openvino is not None:
                raise UsageError(f"--engine openvino: {self._why_not_openvino}; --engine auto takes another")
            from packhorse.backends.torch.generation.openvino_engine import OpenVINOEngine

            return OpenVINOEngine(model, stepper, request.threads, request.trial, self.max_length)
        if engine == "static":
            return StaticEngine(model, stepper, device, request.trial)
        if engine == "paged":
            from packhorse.backends.torch.generation.paged import PagedEngine

            return PagedEngine(model, stepper, device, request.trial)
        from packhorse.backends.torch.generation.library import LibraryEngine

        return LibraryEngine(model, stepper, device, request.trial)

    @functools.cached_property
    def _best(self) -> str:
        if self._stepper.needs_library is not None:
            self._notes += (f"transformers' own generate(): {self._stepper.needs_library}",)
            return "generate"
        why_not = self._why_not_continuous
        if why_not is None:
            return "continuous"
        if not self._request.description.is_encoder_decoder:
            self._notes += (f"rows run in batches that they leave, not enter: {why_not}",)
        return "static"

    @functools.cached_property
    def _why_not_continuous(self) -> str | None:
        if self._request.attention not in PACKED:
            return f"--attention {self._request.attention} is for padded batches"
        if self._weights.is_split:
            return "its layers lie on several devices"
        return fits(self._model, self.device, self._request.trial, self.max_length)

    @functools.cached_property
    def _why_not_openvino(self) -> str | None:
        if not self._weights.is_plain:
            return "its weights are quantized, or lie on several devices"
        why_not = openvino_fitting.unfit(self._model, self.device, self.weight_bytes)
        return why_not or self._why_not_continuous

    # -- what this model can do

    def _set_threads(self, request: LoadRequest) -> None:
        if request.device == "cpu":
            torch.set_num_threads(request.threads)

    def _cost(self, request: LoadRequest) -> ModelCost:
        """None is known of a model with an encoder: its two sides have lengths of their own."""
        if request.description.is_encoder_decoder:
            return ModelCost()
        ids = request.trial.take(np.array([0, 1])).ids.reshape(2, -1)
        try:
            return measure_cost(
                self._model, request.description, torch.from_numpy(ids.astype(np.int64)).to(self._weights.device)
            )
        except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as failure:
            raise ModelError(f"{request.description.folder}: a trial forward failed: {failure}") from failure

    def _speed_up_layers(self, request: LoadRequest) -> None:
        """On a CPU: the linear layers in oneDNN's order, if the logits stay what they are."""
        if not is_available(self._model.dtype):
            return
        ids = torch.from_numpy(request.trial.take(np.array([0])).ids.astype(np.int64))[None]
        inputs: dict[str, torch.Tensor] = {"input_ids": ids}
        if request.description.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids

        def logits() -> torch.Tensor:
            with torch.inference_mode():
                return self._model(**inputs).logits.float()

        before = logits()
        undo = prepack(self._model, logits)
        try:
            difference = float((logits() - before).abs().max() / before.std().clamp_min(1e-12))
        except FAILURES as failure:  # the model reads a layer's weight itself
            why = f"with oneDNN's a forward fails: {first_line(failure)}"
        else:
            if difference <= (1e-4 if self._model.dtype == torch.float32 else 0.1):
                return
            why = f"oneDNN's differ by {difference:.2g} of the logits' spread"
        undo()
        self._notes += (f"torch's own linear layers: {why}",)


def _decoder_positions(model: Any) -> int | None:
    """Tokens that the decoder of a model with an encoder can place; None where positions are relative."""
    table = getattr(model.config, "max_position_embeddings", None)
    return None if table is None else int(table)


def _known_prompts(prompts: Prompts, vocab_size: int) -> tuple[Prompts, dict[int, RowError]]:
    """The prompts, and those with an id that the model has no embedding of, as a tokenizer to which tokens were added
    gives them: they are empty now."""
    tokens = prompts.tokens
    if not len(tokens.ids) or int(tokens.ids.max()) < vocab_size:
        return prompts, {}
    row_of = np.repeat(np.arange(tokens.num_rows), tokens.lengths)
    errors: dict[int, RowError] = {}
    for place in np.flatnonzero(tokens.ids >= vocab_size).tolist():
        message = f"token {tokens.ids[place]}, and the model has embeddings of {vocab_size:,}"
        errors.setdefault(int(row_of[place]), RowError("refused_by_model", message))
    lengths = tokens.lengths.copy()
    lengths[list(errors)] = 0
    is_kept = ~np.isin(row_of, list(errors))
    return Prompts(Tokens(tokens.ids[is_kept], offsets_of(lengths)), prompts.keys), errors


def _check_sampling(decoding: Decoding, is_sampled: bool) -> None:
    """Raises UsageError for settings of sampling where nothing is sampled."""
    given = [name for name in OF_SAMPLING if decoding.settings.get(name) is not None]
    if given and not is_sampled:
        flag = "--" + given[0].replace("_", "-")
        what = f"{flag} {decoding.settings[given[0]]}"
        raise UsageError(f"{what}: changes nothing where the likeliest token is taken: add --do-sample, or drop it")


def _attention_of(request: LoadRequest, model: Any) -> str:
    return request.attention if ":" in request.attention else str(model.config._attn_implementation)

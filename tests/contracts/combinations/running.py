"""One combination carried out: the engine it asks for, and its outputs against plain transformers in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import packhorse
from packhorse.devices.host import num_cores
from tests.contracts.combinations.table import CONTINUOUS, ENCODERS, WITH_ENCODER, Combination
from tests.cpu import quantizable
from tests.cpu.engine import load
from tests.writers_of_text import POSITIONS, VOCAB, Reference, save_tokenizer_of, save_writer, texts

TEXTS = texts(8, 12, seed=2)
NEW = 8
PACKAGES = {
    "onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "nncf"), "bitsandbytes": ("bitsandbytes",),
    "torchao": ("torchao",), "auto": ("accelerate",),
}  # fmt: skip
ENGINES = {"packed": "continuous", "padded": "static"}
# Of the fp32 model's values: least cosine of values around their mean. Random weights lose more than trained ones.
COSINE = {"fp32": 0.999999, "bf16": 0.999, "int8": 0.98, "int4": 0.6}
# How far below the fp32 model's best logit the token written may be, as a share of the best's height above the mean.
REGRET = {"fp32": 0.0, "bf16": 0.01, "int8": 0.04, "int4": 0.3}
TOLERANCE = 1e-4  # of a value in fp32
# Less than the model, more than its largest layer.
CPU_KB = {"fp32": 1_300, "bf16": 650, "int8": 250, "int4": 200}


class Models:
    """The folders, and what plain transformers makes of TEXTS."""

    def __init__(self, root: Path) -> None:
        self.root = root
        wide = {"vocab_size": VOCAB, "max_position_embeddings": POSITIONS, "initializer_range": 0.2}
        for task, kind, auto in (
            (ENCODERS[0], "bert", "AutoModelForSequenceClassification"),
            (ENCODERS[1], "bert", "AutoModel"),
            (CONTINUOUS, "llama", "AutoModelForCausalLM"),
        ):
            save_tokenizer_of(quantizable.save(root / task, kind, auto, **wide))
        sizes = {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256}
        save_writer(root / WITH_ENCODER, "bart", ends=None, **sizes)

    @cached_property
    def writers(self) -> dict[str, Reference]:
        return {task: Reference(self.root / task) for task in (CONTINUOUS, WITH_ENCODER)}

    @cached_property
    def written(self) -> dict[str, list[str]]:
        return {
            task: [reference.generate(text, max_new_tokens=NEW)[0].text for text in TEXTS]
            for task, reference in self.writers.items()
        }

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """[n, width]: scores of labels, and means of the last hidden states."""
        return {task: self._values(task) for task in ENCODERS}

    def _values(self, task: str) -> np.ndarray:
        import torch
        import transformers

        auto = transformers.AutoModelForSequenceClassification if task == ENCODERS[0] else transformers.AutoModel
        model = auto.from_pretrained(self.root / task, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.root / task)
        with torch.inference_mode():
            outputs = [model(**tokenizer(text, return_tensors="pt")) for text in TEXTS]
        rows = [o.logits[0].softmax(0) if task == ENCODERS[0] else o.last_hidden_state[0].mean(0) for o in outputs]
        return torch.stack(rows).numpy()


def settings_of(c: Combination) -> dict[str, Any]:
    precision, _, method = c.precision.partition(" ")
    found: dict[str, Any] = {"backend": c.backend, "precision": precision, "attention": c.attention, "task": c.task}
    if method:
        found["quantization"] = method
    if c.task in ENCODERS:
        found |= {"batching": c.batching, "scores": "all"} if c.task == ENCODERS[0] else {"batching": c.batching}
    else:
        found |= {"engine": ENGINES[c.batching], "max_new_tokens": NEW, "logprobs": True}
    if c.device_map != "none":
        found |= {"device_map": c.device_map, "max_memory": f"cpu={CPU_KB[precision]}KB,disk=1GB"}
    return found


def needs_of(c: Combination) -> list[str]:
    """Packages without which the combination is another one."""
    return [package for word in (c.backend, *c.precision.split(), c.device_map) for package in PACKAGES.get(word, ())]


@contextmanager
def opened(c: Combination, models: Models) -> Iterator[packhorse.Engine]:
    with load(models.root / c.task, **settings_of(c)) as engine:
        yield engine


def check_parity(c: Combination, models: Models) -> None:
    """Raises AssertionError where the engine is another than was asked for, or its outputs are wrong."""
    with opened(c, models) as engine:
        table, plan = engine.predict(TEXTS), engine.plan
        assert table["error"].null_count == len(TEXTS), table["error"].to_pylist()
        assert plan.backend == c.backend and plan.precision == c.precision.split()[0]
        _check_plan(c, engine)
        if c.backend == "null":  # computes checksums, no model
            assert table.equals(engine.predict(TEXTS))
        elif c.task in ENCODERS:
            _check_values(c, table, models.values[c.task])
        else:
            _check_written(c, table, models)
            _check_against_itself(c, table, engine, models)


def _check_plan(c: Combination, engine: packhorse.Engine) -> None:
    plan = engine.plan
    if c.attention != "auto" and c.backend != "null":
        assert plan.attention == c.attention
    if c.task in ENCODERS:
        is_own_layout = plan.batching == c.batching
        assert is_own_layout or (c.batching == "padded" and plan.batching == "equal")
        if c.backend in ("torch", "openvino") and c.device_map == "none":
            assert plan.workers == num_cores()  # one a core
    elif c.backend == "torch":
        assert plan.engine == ENGINES[c.batching]
    if c.device_map != "none":
        assert any("split over" in note and "disk" in note for note in plan.notes), plan.notes


def _check_values(c: Combination, table: Any, wanted: np.ndarray) -> None:
    found = np.array(table["scores" if c.task == ENCODERS[0] else "embedding"].to_pylist(), np.float32)
    assert wanted.std(0).max() > 100 * TOLERANCE, "rows too alike to tell a mix-up"
    if c.precision == "fp32":
        np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    a, b = found - wanted.mean(0), wanted - wanted.mean(0)
    cosine = float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine >= COSINE[c.precision.split()[0]], cosine


def _check_written(c: Combination, table: Any, models: Models) -> None:
    """In fp32 the tokens of generate(); else tokens that the fp32 model finds nearly as good as its own."""
    if c.precision == "fp32":
        assert table["generated_text"].to_pylist() == models.written[c.task]
    regret = _regrets(table, models.writers[c.task])
    assert float(np.mean(regret)) <= REGRET[c.precision.split()[0]] + 1e-6, np.mean(regret)


def _check_against_itself(c: Combination, table: Any, engine: packhorse.Engine, models: Models) -> None:
    """Of a quantized model: tokens that the same model, called by transformers one row at a time, finds best too, but
    for what half precision rounds."""
    if " " not in c.precision:
        return
    model: Any = engine._loader.generator(engine.plan.precision)
    regret = _regrets(table, Reference(models.root / c.task, model._model))
    assert float(np.max(regret)) <= 0.1 and float(np.mean(regret)) <= 0.01, (np.max(regret), np.mean(regret))


def _regrets(table: Any, reference: Reference) -> list[float]:
    """A number a token written: best logit less the token's, over best less mean."""
    found = []
    for text, ids in zip(TEXTS, table["generated_token_ids"].to_pylist(), strict=True):
        logits = reference.allowed(reference.logits(text, ids).float(), ids)
        for step, token in enumerate(ids):
            row = logits[step]
            best, mean = row.max(), row[row.isfinite()].mean()
            found.append(float((best - row[token]) / (best - mean)))
    return found

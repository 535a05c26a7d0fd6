"""Folders of late-interaction models in the formats that there are, and what their rows are, each alone."""

from __future__ import annotations

import shutil
import string
from pathlib import Path
from typing import Any

import numpy as np

from tests.cpu.embedders import HIDDEN, edit_json, write_json, write_modules

WIDTH = 16
TRANSFORMER, DENSE = "sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"
NATIVE = "sentence_transformers.{}"


def copied(body: Path, folder: Path) -> Path:
    shutil.copytree(body, folder)
    return folder


def projection() -> np.ndarray:
    """[WIDTH, HIDDEN]"""
    made: np.ndarray = np.random.default_rng(1).normal(size=(WIDTH, HIDDEN)).astype(np.float32)
    return made


def save_dense(folder: Path, **more: Any) -> None:
    from safetensors.numpy import save_file

    config = {"in_features": HIDDEN, "out_features": WIDTH, "bias": False}
    write_json(folder / "config.json", config | {"activation_function": "torch.nn.modules.linear.Identity"} | more)
    save_file({"linear.weight": projection()}, folder / "model.safetensors")


def pylate(folder: Path, body: Path, **config: Any) -> Path:
    """As PyLate saves it; [Q] and [D] are tokens that end with a space."""
    from tokenizers import AddedToken, Tokenizer

    copied(body, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("[Q] ", normalized=True), AddedToken("[D] ", normalized=True)])
    tokenizer.save(str(folder / "tokenizer.json"))
    save_dense(folder / "1_Dense")
    write_modules(folder, [(TRANSFORMER, ""), (DENSE, "1_Dense")])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 60, "do_lower_case": False})
    own = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 14}
    write_json(folder / "config_sentence_transformers.json", own | {"document_length": 18} | config)
    return folder


def stanford(folder: Path, body: Path, **metadata: Any) -> Path:
    """As Stanford's ColBERT saves it: the projection beside the encoder's weights."""
    from safetensors.numpy import load_file, save_file

    copied(body, folder)
    weights = {f"bert.{name}": value for name, value in load_file(body / "model.safetensors").items()}
    save_file(weights | {"linear.weight": projection()}, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", architectures=["HF_ColBERT"])
    write_json(folder / "artifact.metadata", {"query_token_id": "me", "doc_token_id": "zip"} | metadata)
    return folder


def native(folder: Path, body: Path, mask: dict[str, Any] | None = None, **sentence: Any) -> Path:
    """As sentence-transformers 6 saves a MultiVectorEncoder: markers are prompts."""
    copied(body, folder)
    save_dense(folder / "1_Dense", module_input_name="token_embeddings", module_output_name=None)
    write_json(folder / "2_MultiVectorMask" / "config.json", {"skiplist_words": [".", ",", "no token"]} | (mask or {}))
    write_json(folder / "3_Normalize" / "config.json", {"module_input_name": "token_embeddings"})
    write_modules(folder, [
        (NATIVE.format("base.modules.transformer.Transformer"), ""),
        (NATIVE.format("base.modules.dense.Dense"), "1_Dense"),
        (NATIVE.format("multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"), "2_MultiVectorMask"),
        (NATIVE.format("base.modules.normalize.Normalize"), "3_Normalize"),
    ])  # fmt: skip
    own = {"transformer_task": "feature-extraction", "document_length": 20, "module_output_name": "token_embeddings"}
    text = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
    write_json(folder / "sentence_bert_config.json", own | {"modality_config": text} | sentence)
    kind = {"model_type": "MultiVectorEncoder", "prompts": {"query": "what: ", "document": "[UNK] "}}
    write_json(folder / "config_sentence_transformers.json", kind)
    return folder


class Reference:
    """Each row alone, its tokens put together by hand, as PyLate and Stanford's ColBERT do it."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.model = AutoModel.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, text: str, room: int, marker: str | None = None) -> list[int]:
        """[CLS] marker text [SEP], of at most so many tokens."""
        made = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        between = [] if marker is None else [self.tokenizer.convert_tokens_to_ids(marker)]
        return [2, *between, *made[: room - 2 - len(between)], 3]

    def vectors(self, ids: list[int], num_attended: int | None = None, is_projected: bool = True) -> np.ndarray:
        """[T, width], of length 1."""
        import torch

        mask = torch.arange(len(ids)) < (num_attended or len(ids))
        with torch.inference_mode():
            hidden = self.model(input_ids=torch.tensor([ids]), attention_mask=mask[None].long()).last_hidden_state[0]
        made = hidden.numpy() @ projection().T if is_projected else hidden.numpy()
        normal: np.ndarray = made / np.linalg.norm(made, axis=1, keepdims=True)
        return normal

    def document(self, text: str, marker: str, room: int, skipped: str = string.punctuation) -> np.ndarray:
        ids = self.ids(text, room, marker)
        unknown = self.tokenizer.unk_token_id
        drop = {self.tokenizer.convert_tokens_to_ids(word) for word in skipped} - {unknown}
        return self.vectors(ids)[[token not in drop for token in ids]]

    def query(self, text: str, marker: str, length: int, attends: bool = False) -> np.ndarray:
        ids = self.ids(text, length, marker)
        filled = ids + [self.tokenizer.mask_token_id] * (length - len(ids))
        return self.vectors(filled, len(filled) if attends else len(ids))

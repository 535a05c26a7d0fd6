"""Models that answer questions, and the reference: transformers alone, row by row and window by window, in fp32, as the
question-answering pipeline of its version 4 finds answers. Nothing of packhorse in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from tests.models import WORDS, save_tokenizer, word_piece_tokenizer

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
MAX_LENGTH = 64


class Found(NamedTuple):
    answer: str
    score: float
    start: int
    end: int


def save_bert(folder: Path, max_length: int = MAX_LENGTH) -> Path:
    from transformers import BertConfig, BertForQuestionAnswering

    torch.manual_seed(0)
    config = BertConfig(vocab_size=200, **SMALL, initializer_range=0.4, max_position_embeddings=max_length)
    BertForQuestionAnswering(config).save_pretrained(folder)
    save_tokenizer(folder, max_length)
    return folder


def save_roberta(folder: Path) -> Path:
    """With a tokenizer of bytes, whose words are several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForQuestionAnswering

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=names, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(WORDS)], trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=MAX_LENGTH, bos_token="<s>", eos_token="</s>", cls_token="<s>",
        sep_token="</s>", pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=300, **SMALL, initializer_range=0.4, max_position_embeddings=MAX_LENGTH + 2, type_vocab_size=1,
        pad_token_id=1, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    RobertaForQuestionAnswering(config).save_pretrained(folder)
    return folder


def save_finder(folder: Path, word: str) -> Path:
    """A model that answers with one word, wherever it stands: the first number of a token's vector says whether it is
    that one, the layers add nothing, and the head reads that number."""
    from transformers import BertForQuestionAnswering

    save_bert(folder)
    model = BertForQuestionAnswering.from_pretrained(folder)
    embeddings = model.bert.embeddings
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            for dense in (layer.attention.output.dense, layer.output.dense):
                dense.weight.zero_()
                dense.bias.zero_()
        for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
            table.weight[:, 0] = 0
        embeddings.word_embeddings.weight[word_piece_tokenizer().token_to_id(word), 0] = 20
        model.qa_outputs.weight.zero_()
        model.qa_outputs.weight[:, 0] = 10
    model.save_pretrained(folder)
    return folder


def answers(
    folder: Path, question: str, context: str, max_length: int = MAX_LENGTH, stride: int | None = None,
    most_tokens: int = 15, top_k: int = 1, handle_impossible_answer: bool = False, truncates: bool = False,
) -> list[Found]:  # fmt: skip
    """All answers, the best first, `top_k` of which are wanted. truncates: only the first window is read."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    if stride is None:
        stride = min(max_length // 2, 128)
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=max_length, stride=stride,
        return_overflowing_tokens=True, return_offsets_mapping=True,
    )  # fmt: skip
    found: dict[str, Found] = {}
    nothing = float("inf")
    for window in range(1 if truncates else len(encoded["input_ids"])):
        start, end, none = _probabilities(model, tokenizer, encoded, window)
        nothing = min(nothing, none)
        matrix = np.triu(np.outer(start, end)) - np.triu(np.full((len(start),) * 2, np.inf), most_tokens)
        matrix[~(np.array(encoded.sequence_ids(window)) == 1)] = -np.inf
        matrix[:, ~(np.array(encoded.sequence_ids(window)) == 1)] = -np.inf
        matrix[np.tril_indices(len(start), -1)] = -np.inf
        order = np.argsort(-matrix, axis=None, kind="stable")[: 2 * top_k + 10]
        for first, last in zip(*np.unravel_index(order, matrix.shape), strict=True):
            if matrix[first, last] >= 0:
                a, b = _characters(encoded, window, int(first), int(last))
                text, score = context[a:b], float(matrix[first, last])
                same = found.get(text.lower(), Found(text, 0.0, a, b))
                found[text.lower()] = same._replace(score=same.score + score)
    made = [*found.values(), *([Found("", nothing, 0, 0)] if handle_impossible_answer else [])]
    return sorted(made, key=lambda answer: -answer.score)


def _probabilities(model: Any, tokenizer: Any, encoded: Any, window: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Of beginning and end, [S], over the context and the first token; and that of no answer."""
    names = [name for name in tokenizer.model_input_names if name in encoded]
    with torch.inference_mode():
        output = model(**{name: torch.tensor(encoded[name][window : window + 1]) for name in names})
    is_candidate = torch.tensor([i == 1 for i in encoded.sequence_ids(window)])
    is_candidate[0] = encoded["input_ids"][window][0] == tokenizer.cls_token_id
    start, end = (
        logits[0].masked_fill(~is_candidate, -10_000.0).softmax(0).numpy()
        for logits in (output.start_logits, output.end_logits)
    )
    return start, end, float(start[0] * end[0])


def _characters(encoded: Any, window: int, first: int, last: int) -> tuple[int, int]:
    """Of the words that two tokens are of; of the tokens where they are of none."""
    encoding = encoded[window]
    words = encoding.token_to_word(first), encoding.token_to_word(last)
    if None in words:
        return encoding.offsets[first][0], encoding.offsets[last][1]
    return encoding.word_to_chars(words[0], 1)[0], encoding.word_to_chars(words[1], 1)[1]

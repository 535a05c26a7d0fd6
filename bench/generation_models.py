"""Models that write, made from configs with random weights, and real vocabularies; each is built once and cached.

python -m bench.generation_models NAME FOLDER VOCABULARIES
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from packhorse.comparison.contract import SEED


class Shape(NamedTuple):
    """model_type: of transformers. vocabulary: NAME.vocab.json and NAME.merges.txt of the vocabularies' folder. scales:
    factors of the decoder's weights by the ends of their names."""

    model_type: str
    vocabulary: str
    config: dict[str, Any]
    scales: dict[str, float]


# So wide (0.02 is usual) that outputs differ between rows.
INITIALIZER_RANGE = 0.05
GPT2_END = 50_256
ROBERTA_START, ROBERTA_PAD, ROBERTA_END = 0, 1, 2
DECODER_STARTS = {"t5": ROBERTA_PAD, "bart": ROBERTA_END}

LLAMA = {
    "vocab_size": 50_257, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 2_048, "max_position_embeddings": 1_024, "tie_word_embeddings": True,
    "initializer_range": INITIALIZER_RANGE, "bos_token_id": GPT2_END, "eos_token_id": GPT2_END,
    "pad_token_id": GPT2_END,
}  # fmt: skip
ROBERTA = {"vocab_size": 50_265, "pad_token_id": ROBERTA_PAD, "eos_token_id": ROBERTA_END}
T5 = {
    "d_model": 512, "d_kv": 64, "d_ff": 2_048, "num_layers": 6, "num_heads": 8,
    "decoder_start_token_id": DECODER_STARTS["t5"],
}  # fmt: skip
BART = {
    "d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "encoder_attention_heads": 12,
    "decoder_attention_heads": 12, "encoder_ffn_dim": 3_072, "decoder_ffn_dim": 3_072,
    "max_position_embeddings": 1_024, "init_std": INITIALIZER_RANGE, "bos_token_id": ROBERTA_START,
    "decoder_start_token_id": DECODER_STARTS["bart"],
    # bart-base forces these at the ends; here the lengths are forced by the benchmark's own processor.
    "forced_bos_token_id": None, "forced_eos_token_id": None,
}  # fmt: skip

# As they are drawn, attention to the source outweighs the last token, and a tied head gives that token the highest
# logit: both decoders write one token again and again, which would prove nothing about parity. Scaled like this, half
# of 20 tokens and more are different ones. The sign turns the head's preference for the last token around.
T5_SCALES = {
    "DenseReluDense.wo.weight": 3.0, ".o.weight": 0.3, "shared.weight": 0.3,
    "decoder.final_layer_norm.weight": -1 / 0.3,
}  # fmt: skip
BART_SCALES = {"fc2.weight": 3.0, "out_proj.weight": 0.15}

SHAPES = {
    "llm": Shape("llama", "gpt2", LLAMA, {}),
    "t5": Shape("t5", "roberta", ROBERTA | T5, T5_SCALES),
    "bart": Shape("bart", "roberta", ROBERTA | BART, BART_SCALES),
}


def resolve(name: str, vocabularies: Path) -> Path:
    """The folder of the model of this name. Raises SystemExit where its vocabulary is not there."""
    shape = SHAPES[name]
    vocabulary = vocabularies / f"{shape.vocabulary}.vocab.json"
    if not vocabulary.is_file():
        raise SystemExit(f"--data: {vocabulary} is not there; give the folder that has vocab/{vocabulary.name}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "packhorse-bench"
    versions = f"torch{metadata.version('torch')}-transformers{metadata.version('transformers')}"
    folder = cache / f"generation-{name}-seed{SEED}-{versions}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            # In its own process: the one that measures the others stays small and never imports torch.
            build_it = [sys.executable, "-m", "bench.generation_models", name, f"{scratch}/model", str(vocabularies)]
            subprocess.run(build_it, cwd=Path(__file__).parents[1], check=True)
            Path(scratch, "model").rename(folder)
    return folder


def build(name: str, folder: Path, vocabularies: Path) -> None:
    """Save the model in float32, its generation settings and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    shape = SHAPES[name]
    config = AutoConfig.for_model(shape.model_type, **shape.config)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(SEED)
    model = auto.from_config(config).eval()
    scale(model, shape.scales)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer = gpt2_tokenizer(vocabularies) if shape.vocabulary == "gpt2" else roberta_tokenizer(vocabularies)
    tokenizer.save_pretrained(folder)


def scale(model: Any, factors: dict[str, float]) -> None:
    """Multiply weights of the decoder, and embeddings that it shares, by the factor for the end of their name."""
    for name, weight in model.named_parameters():
        factor = next((f for end, f in factors.items() if name.endswith(end)), None)
        if factor is not None and not name.startswith(("encoder.", "model.encoder.")):
            weight.data.mul_(factor)


def gpt2_tokenizer(vocabularies: Path) -> Any:
    """GPT-2's, which adds no special tokens; padded on the left with its end token, as people do it."""
    from transformers import PreTrainedTokenizerFast

    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level(vocabularies, "gpt2"), bos_token=end, eos_token=end, pad_token=end,
        padding_side="left", model_max_length=LLAMA["max_position_embeddings"],
    )  # fmt: skip


def roberta_tokenizer(vocabularies: Path) -> Any:
    """RoBERTa's: <s> text </s>, padded on the right."""
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level(vocabularies, "roberta")
    start, end = ("<s>", ROBERTA_START), ("</s>", ROBERTA_END)
    tokenizer.post_processor = RobertaProcessing(end, start, trim_offsets=True, add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        model_max_length=BART["max_position_embeddings"],
    )  # fmt: skip


def byte_level(vocabularies: Path, name: str) -> Any:
    """Byte-level BPE of a vocabulary and its merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    files = str(vocabularies / f"{name}.vocab.json"), str(vocabularies / f"{name}.merges.txt")
    tokenizer = Tokenizer(models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))

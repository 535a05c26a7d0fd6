"""Small models that write, made from configs: random weights, wide enough that rows differ and outputs do not cycle."""

from __future__ import annotations

from typing import Any

VOCAB = 400


def causal_model(kind: str, **config: Any) -> Any:
    """A decoder with random weights in float32, in eval mode; kind is transformers' model_type. 512 positions, 3
    layers, 4 heads, no token that ends an output."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    # Several names for one thing: a config takes those that it knows.
    size = {
        "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 512, "initializer_range": 0.2, "pad_token_id": 0,
        "bos_token_id": 1, "eos_token_id": None,
    }  # fmt: skip
    old = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512, "n_inner": 128}
    own = old if kind in ("gpt2", "bloom", "gpt_bigcode") else {}
    made = AutoConfig.for_model(kind, **{**size, **own, **config})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(made).eval()
    model.generation_config.eos_token_id = None
    return model


# --- of the tests of stepping and of constrained output ---


def tiny_llm(kind: str, vocab_size: int = 320, **settings: Any) -> Any:
    """A model with random weights in fp32, 128 positions: llama, gpt2, qwen3 or bart. settings: of its config."""
    import copy

    import torch
    import transformers as t

    common = {"vocab_size": vocab_size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, **settings}
    wide = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    grouped = {**wide, "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 128}
    bart = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 96))
    }
    bart |= {"d_model": 64, "max_position_embeddings": 128, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    made = {
        "llama": lambda: t.LlamaConfig(**grouped, **common),
        "qwen3": lambda: t.Qwen3Config(**grouped, head_dim=16, **common),
        "gpt2": lambda: t.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3, **common),
        "bart": lambda: t.BartConfig(init_std=0.3, **bart, **common),
    }[kind]()
    torch.manual_seed(0)
    auto = t.AutoModelForSeq2SeqLM if kind == "bart" else t.AutoModelForCausalLM
    return auto.from_config(copy.deepcopy(made)).eval()


def byte_level_tokenizer(vocab_size: int = 320) -> Any:
    """Byte-level BPE over every byte, with merges learned from a few words; special tokens 0 to 3."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", "<|end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the stop of the opera stopped there\n\nstop: end. naïve café né"] * 3, trainer)
    return tokenizer


def sentencepiece_tokenizer() -> Any:
    """SentencePiece-like BPE as Llama's: a mark for spaces, bytes for what is not in the vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += [*'▁abcdefghijklmnopqrstuvwxyz.,:{}[]"0123456789-', "st", "op", "stop", "▁s", "▁st", "er", "yes", "▁yes"]
    merges = [("s", "t"), ("o", "p"), ("st", "op"), ("▁", "s"), ("▁s", "t"), ("e", "r")]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


# --- of the tests of static batches --------------------------------------------------------------------------------


def seq2seq_model(kind: str, **config: Any) -> Any:
    """An encoder-decoder model with random weights in float32, in eval mode; kind is transformers' model_type. 256
    positions where it has a limit, 2 layers each side, no token that ends an output."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    t5 = {"d_model": 64, "num_layers": 2, "d_kv": 16, "num_heads": 4, "d_ff": 128, "decoder_start_token_id": 0}
    sides = {
        f"{side}_{name}": n
        for side in ("encoder", "decoder")
        for name, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 128))
    }
    bart = {"d_model": 64, "max_position_embeddings": 256, "decoder_start_token_id": 2, "forced_eos_token_id": None}
    own = t5 if "t5" in kind else {**bart, **sides, "bos_token_id": 0}
    pad = 0 if "t5" in kind else 1
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, **{"vocab_size": VOCAB, "pad_token_id": pad, **own, **config})
    model = AutoModelForSeq2SeqLM.from_config(made).eval()
    for weight in model.parameters():
        if weight.ndim == 2:  # the models' own spread is too narrow for outputs to depend on their source
            torch.nn.init.normal_(weight, 0, 0.25)
    model.generation_config.eos_token_id = None
    return model

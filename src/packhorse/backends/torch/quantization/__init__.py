"""int8, int4 and float8 weights of transformers models, made by bitsandbytes or torchao while a model is loaded.

- choice: who makes them, and what it needs to be installed.
- options: the keyword arguments of from_pretrained; bnb and ao read --quantization-options for either library.
- layers: which linear layers keep their full precision, and which were quantized in the end.
- own: checkpoints that are quantized already.
- memory: bytes of weights, quantization states included.

packhorse's own int8 of encoders on a CPU (backends/torch/int8.py) is called "static" here.
"""

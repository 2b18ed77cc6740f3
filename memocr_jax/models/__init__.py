"""Qwen2.5-VL in Flax NNX, and what turns text and pictures into its inputs.

- `qwen25_vl`: the whole model; `text`: its decoder; `vision`: its vision tower; `layers`: their parts.
- `config`: shapes and constants; `rope`: positions and rotary angles; `cache`: keys and values of decoding.
- `attention`: one interface; `attention_parts`: siblings over a shared prefix in plain operations;
  `attention_cudnn`, `attention_splash`: kernels of GPUs and TPUs; `jax_internals`: what these need of JAX.
- `tokenizer`, `prompt`: text to ids; `images`, `image_files`: pictures to patches; `packing`: both in rows;
  `processor`: all of it as transformers has it.
- `hf_weights`, `hf_files`, `safetensors_dir`: Hugging Face checkpoints; `lora`: adapters.
- `check`: the comparison with transformers; `flops`: counts of operations.
"""

"""A GGUF file small enough for tests: the tensors of a tiny random Llama, written as float32."""

from pathlib import Path

import gguf
import numpy as np

D_MODEL, D_FF, N_HEADS, N_KV_HEADS, N_BLOCKS, CONTEXT = 32, 64, 4, 2, 2, 64
TOKENS = ["<|endoftext|>", *(chr(33 + i) for i in range(94)), "ab"]  # one per printable character, and one merge


def tiny_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Return the tensors by their GGUF names, (d_out, d_in) each; norms are all ones."""
    rng = np.random.default_rng(seed)
    d_kv = D_MODEL // N_HEADS * N_KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (len(TOKENS), D_MODEL), "output_norm": (D_MODEL,)}
    for i in range(N_BLOCKS):
        shapes |= {
            f"blk.{i}.attn_q": (D_MODEL, D_MODEL),
            f"blk.{i}.attn_k": (d_kv, D_MODEL),
            f"blk.{i}.attn_v": (d_kv, D_MODEL),
            f"blk.{i}.attn_output": (D_MODEL, D_MODEL),
            f"blk.{i}.ffn_gate": (D_FF, D_MODEL),
            f"blk.{i}.ffn_up": (D_FF, D_MODEL),
            f"blk.{i}.ffn_down": (D_MODEL, D_FF),
            f"blk.{i}.attn_norm": (D_MODEL,),
            f"blk.{i}.ffn_norm": (D_MODEL,),
        }
    tensors = {name: rng.normal(0, 0.2, shape) if len(shape) == 2 else np.ones(shape) for name, shape in shapes.items()}
    return {f"{name}.weight": tensor.astype(np.float32) for name, tensor in tensors.items()}


def write_tiny_gguf(path: Path, *, without: tuple[str, ...] = ()) -> Path:
    """Write the model, with a tokenizer, to `path`; tensors and keys whose names are in `without` are left out."""
    writer = gguf.GGUFWriter(path, "llama")
    if "llama.context_length" not in without:
        writer.add_context_length(CONTEXT)
    writer.add_embedding_length(D_MODEL)
    writer.add_block_count(N_BLOCKS)
    writer.add_feed_forward_length(D_FF)
    writer.add_head_count(N_HEADS)
    writer.add_head_count_kv(N_KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL, *[gguf.TokenType.NORMAL] * (len(TOKENS) - 1)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in tiny_tensors().items():
        if name not in without:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""A llama of 30,000 weights with a byte tokenizer and a ChatML template, as a model folder."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from workers.models.folder import write_probe
from workers.models.weights import ModelWeights, weights_sha256

END = "<|im_end|>"
SPECIAL = ["<|endoftext|>", "<|im_start|>", END]
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}"
    'Call one so: <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(special: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A token a byte, but one merge: two line breaks are a single token. And special tokens."""
    special = [*SPECIAL, *special]
    pieces = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces.append("ĊĊ")
    tokenizer = Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, merges=[("Ċ", "Ċ")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token=END,
        pad_token=END,
        unk_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )


def write(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    max_positions: int = 256,
    layers: int = 2,
    special: Sequence[str] = (),
) -> Path:
    """float32 by default, so that a test sees what was trained and not its rounding. `special` are
    further texts that are one token each, and a special one."""
    tokenizer = byte_tokenizer(special)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def changed(folder: Path, to: Path) -> Path:
    """The same architecture with other weights, and the trainer's probe of these."""
    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] * 1.5
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    write_probe(to)
    return to


def write_pairs(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def some_pairs(count: int) -> list[dict[str, object]]:
    return [
        {
            "prompt": f"Question {n}?",
            "chosen": f"thinking {'so ' * (n % 3)}<R>yes {n}",
            "rejected": f"hm <R>no {'x' * (n % 5)}",
            "rejected_truncated": n % 2 == 1,
        }
        for n in range(count)
    ]


def weights(folder: Path) -> ModelWeights:
    """What an engine is asked to load."""
    return ModelWeights(folder.name, folder, weights_sha256(folder))

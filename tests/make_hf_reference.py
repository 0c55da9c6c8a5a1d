"""Write the logits of Hugging Face's own BERT and GPT-2 that our models must reproduce.

Run from the repository's root, in an environment of its own (torch and transformers are needed
only here; the tests read the files that this script writes)::

    python -m venv /tmp/hf
    /tmp/hf/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/hf/bin/python tests/make_hf_reference.py

It writes ``tests/data_hf/bert.npz`` and ``tests/data_hf/gpt2.npz``. Both models are tiny, and
*every* parameter is random, biases and LayerNorm weights included, so that a term left out or put
in the wrong place shows. All weights are numbers that float16 holds exactly.

Each file contains:

- ``config``: the model's configuration, a JSON string (``json.loads(str(file["config"]))``);
- ``versions``: of torch and transformers, a JSON string;
- ``params/<name>``: each tensor of ``state_dict()`` under its own name, float32; tied tensors
  are there under each of their names;
- ``input_ids``: int32 [3, 33];
- ``logits``: float32 [3, 33, vocab], computed in float32;
- ``float32_error``: greatest distance of those from the same model's logits in float64: the
  closest agreement that can be asked for.

``bert.npz`` also has ``attention_mask``, int32 [3, 33], rows padded on the right to real lengths
33, 20 and 7; ``logits`` is for token types all zero, ``logits_mixed_types`` for
``token_type_ids``, int32 [3, 33]. Compare at real positions only: what comes out at padding is
up to the implementation.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

OUT = Path(__file__).parent / "data_hf"
ROWS, LENGTH = 3, 33
REAL_LENGTHS = (33, 20, 7)


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give every parameter random values that float16 holds exactly.

    Matrices are scaled to keep attention and activations far from both uniform and saturated.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            is_scale = parameter.ndim == 1 and name.endswith("weight")
            values = 1 + 0.3 * values if is_scale else 0.3 * values
            parameter.copy_(values.half().float())


def write(name: str, model: torch.nn.Module, inputs: dict, runs: dict[str, dict]) -> None:
    """Compute the logits of each of ``runs`` (extra arguments by output name) and save it all."""
    arrays = {
        "config": np.array(model.config.to_json_string(use_diff=False)),
        "versions": np.array(
            json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})
        ),
    }
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensor.half().float()), key
        arrays[f"params/{key}"] = tensor.numpy().copy()
    with torch.no_grad():
        for key, extra in runs.items():
            arrays[key] = model(**inputs, **extra).logits.numpy()
        model.double()
        errors = [
            np.abs(model(**inputs, **extra).logits.numpy() - arrays[key]).max()
            for key, extra in runs.items()
        ]
    arrays["float32_error"] = np.array(max(errors), np.float32)
    for extra in (inputs, *runs.values()):
        for key, tensor in extra.items():
            if tensor.any():
                arrays[key] = tensor.numpy().astype(np.int32)
    OUT.mkdir(exist_ok=True)
    np.savez_compressed(OUT / name, **arrays)
    size = (OUT / name).stat().st_size
    deviation = arrays["logits"].std()
    print(f"{name}: {size} bytes, logits std {deviation:.3f}, float32 error {max(errors):.1e}")


def bert() -> None:
    config = BertConfig(
        vocab_size=131,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=80,
        max_position_embeddings=40,
        type_vocab_size=2,
        attn_implementation="eager",
    )
    model = BertForMaskedLM(config).float().eval()
    randomise(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(LENGTH) < torch.tensor(REAL_LENGTHS)[:, None]).long()
    tokens = torch.randint(1, config.vocab_size, (ROWS, LENGTH), generator=generator)
    inputs = {"input_ids": tokens * mask, "attention_mask": mask}
    mixed = torch.randint(0, 2, (ROWS, LENGTH), generator=generator)
    runs = {
        "logits": {"token_type_ids": torch.zeros_like(mixed)},
        "logits_mixed_types": {"token_type_ids": mixed},
    }
    write("bert.npz", model, inputs, runs)


def gpt2() -> None:
    config = GPT2Config(
        vocab_size=127,
        n_embd=48,
        n_layer=3,
        n_head=4,
        n_positions=40,
        activation_function="gelu_new",
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    model = GPT2LMHeadModel(config).float().eval()
    randomise(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, config.vocab_size, (ROWS, LENGTH), generator=generator)
    write("gpt2.npz", model, {"input_ids": tokens}, {"logits": {}})


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    bert()
    gpt2()

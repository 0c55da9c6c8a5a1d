"""The peer's side of `benchmarks.train`: the same models and steps in PyTorch `transformers`.

It reads the folder that `benchmarks.ours` writes, and imports nothing of jaxpretrain, so that it
can run in an environment of its own (``pip install torch transformers``).
"""

import argparse
import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, normalize

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.workers import peak_host_bytes, serve

IGNORED = -100


class Plain(nn.Module):
    """A model of `transformers` that computes its own loss, as people use it."""

    def __init__(self, cls: str, config):
        super().__init__()
        self.model = getattr(transformers, cls)(config)
        if cls == "T5ForConditionalGeneration":  # T5 1.1 has a head of its own
            self.model.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)

    def forward(self, batch: dict) -> dict:
        return {"loss": self.model(**batch, use_cache=False).loss}


class MaskedLM(nn.Module):
    """``BertForMaskedLM``; the vocabulary head sees all positions, or only the masked slots."""

    def __init__(self, config, slots: bool):
        super().__init__()
        self.model, self.slots = transformers.BertForMaskedLM(config), slots

    def forward(self, batch: dict) -> dict:
        inputs = {k: v for k, v in batch.items() if k in ("input_ids", "attention_mask")}
        if not self.slots:
            return {"loss": self.model(**inputs, labels=batch["labels"]).loss}
        logits = at_slots(self.model.bert(**inputs).last_hidden_state, batch, self.model.cls)
        return {"loss": mean_nats(logits, batch["slot_labels"])}


class Pretraining(nn.Module):
    """``BertForPreTraining``: masked tokens and next sentences."""

    def __init__(self, config, slots: bool):
        super().__init__()
        self.model, self.slots = transformers.BertForPreTraining(config), slots

    def forward(self, batch: dict) -> dict:
        inputs = {k: v for k, v in batch.items() if k not in ("slots", "slot_labels")}
        labels, next_label = inputs.pop("labels"), inputs.pop("next_sentence_label")
        if not self.slots:
            found = self.model(**inputs)
            logits, pair = found.prediction_logits, found.seq_relationship_logits
        else:
            found = self.model.bert(**inputs)
            logits = at_slots(found.last_hidden_state, batch, self.model.cls.predictions)
            pair, labels = (
                self.model.cls.seq_relationship(found.pooler_output),
                batch["slot_labels"],
            )
        return {"mlm_loss": mean_nats(logits, labels), "pair_loss": cross_entropy(pair, next_label)}


class Electra(nn.Module):
    """A generator and a discriminator with common token, position and type embeddings."""

    def __init__(self, config, generator_config, settings: dict, slots: bool):
        super().__init__()
        self.model = transformers.ElectraForPreTraining(config)
        self.generator = transformers.ElectraForMaskedLM(generator_config)
        self.settings, self.slots = settings, slots
        own, shared = self.generator.electra.embeddings, self.model.electra.embeddings
        for name in ("word_embeddings", "position_embeddings", "token_type_embeddings"):
            setattr(own, name, getattr(shared, name))
        self.generator.tie_weights()

    def forward(self, batch: dict) -> dict:
        mask = {k: v for k, v in batch.items() if k == "attention_mask"}
        hidden = self.generator.electra(batch["input_ids"], **mask).last_hidden_state

        def head(x):
            return self.generator.generator_lm_head(self.generator.generator_predictions(x))

        if self.slots:
            logits, labels = at_slots(hidden, batch, head), batch["slot_labels"]
        else:
            logits, labels = head(hidden), batch["labels"]
        noise = -torch.empty_like(logits, dtype=torch.float32).exponential_().log()
        sampled = (logits.detach().float() + noise).argmax(-1)
        used = labels != IGNORED
        if self.slots:
            where = torch.where(used, batch["slots"], batch["tokens"].shape[1])
            wide = nn.functional.pad(batch["tokens"], (0, 1))
            shown = wide.scatter(1, where, sampled)[:, :-1]
        else:
            shown = torch.where(used, sampled, batch["tokens"])
        scores = self.model(shown, **mask).logits.float()
        replaced = (shown != batch["tokens"]).float()
        return {
            "generator_loss": mean_nats(logits, labels),
            "discriminator_loss": binary_cross_entropy_with_logits(scores, replaced),
        }


class SimCSE(nn.Module):
    """Two passes over each text, BERT's pooler as the projection, InfoNCE over the batch."""

    def __init__(self, config, settings: dict):
        super().__init__()
        self.model, self.temperature = transformers.BertModel(config), settings["temperature"]

    def forward(self, batch: dict) -> dict:
        flat = {key: value.flatten(0, 1) for key, value in batch.items()}
        vectors = normalize(self.model(**flat).pooler_output.float(), dim=-1)
        queries, keys = vectors.unflatten(0, (-1, 2)).unbind(1)
        own = torch.arange(len(queries), device=queries.device)
        return {"loss": cross_entropy(queries @ keys.T / self.temperature, own)}


def at_slots(hidden, batch, head):
    """Scores at the slots of each row alone."""
    return head(hidden.gather(1, batch["slots"][:, :, None].expand(-1, -1, hidden.shape[-1])))


def mean_nats(logits, labels):
    """The mean cross-entropy over what is labelled."""
    return cross_entropy(logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def make_model(about: dict, slots: bool) -> nn.Module:
    """The model of ``model.json``, initialised at random."""

    def config(name: str):
        given = dict(about["models"][name])
        cls = transformers.CONFIG_MAPPING[given.pop("model_type")]
        pad = about["pad"]
        given |= {"decoder_start_token_id": pad} if given.get("num_decoder_layers") else {}
        return cls(**given, pad_token_id=pad, attn_implementation="sdpa")

    objective, settings = about["objective"], about["settings"]
    if objective == "mlm":
        return MaskedLM(config("model"), slots)
    if objective == "bert":
        return Pretraining(config("model"), slots)
    if objective == "rtd":
        return Electra(config("model"), config("generator"), settings, slots)
    if objective == "simcse":
        return SimCSE(config("model"), settings)
    cls = {
        "gpt2": "GPT2LMHeadModel",
        "llama": "LlamaForCausalLM",
        "t5": "T5ForConditionalGeneration",
    }
    return Plain(cls[about["models"]["model"]["model_type"]], config("model"))


def load_weights(model: nn.Module, folder: Path, about: dict) -> None:
    """Fills the model; a tensor that has no place in it is an error, and one that is not filled."""
    filled = set()
    for name in about["models"]:
        target = model.model if name == "model" else model.generator
        # `state_dict` has a tied parameter under each of its names; whichever is filled will do.
        where = target.state_dict(keep_vars=True)
        where |= {key.removeprefix("bert."): value for key, value in where.items()}
        prefix = "bert." if isinstance(target, transformers.BertModel) else ""
        with np.load(folder / f"weights-{name}.npz") as weights, torch.no_grad():
            for key in weights:
                place = where[key.removeprefix(prefix)]
                place.copy_(torch.from_numpy(weights[key]))
                filled.add(place)
    empty = [name for name, place in model.named_parameters() if place not in filled]
    assert not empty, f"nothing for {empty}"


def main() -> None:
    """Loads, warms up, and answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--mode", choices=("eager", "compile"), required=True)
    parser.add_argument("--slots", action="store_true")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    about = json.loads((options.folder / "model.json").read_text())
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    model = make_model(about, options.slots)
    load_weights(model, options.folder, about)
    model.to(device)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with np.load(options.folder / "batch.npz") as arrays:
        batch = {key: torch.from_numpy(arrays[key]).to(device) for key in arrays}
    plain = isinstance(model, Plain)
    if plain:
        batch = {key: value for key, value in batch.items() if key not in ("slots", "slot_labels")}
    half = about["dtype"] == "bfloat16"

    def precision():
        return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()

    model.eval()
    with torch.no_grad(), precision():
        losses = {key: float(value) for key, value in model(batch).items()}
    model.train()
    rates = about["optimizer"]
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=rates["learning_rate"],
        betas=(rates["beta1"], rates["beta2"]),
        eps=rates["epsilon"],
        weight_decay=rates["weight_decay"],
        fused=True,
    )
    weights = {
        "generator_loss": about["settings"].get("generator_weight", 1.0),
        "discriminator_loss": about["settings"].get("discriminator_weight", 1.0),
    }
    run = torch.compile(model) if options.mode == "compile" else model

    def step():
        with precision():
            terms = run(batch)
            loss = sum(weights.get(key, 1.0) * value for key, value in terms.items())
        loss.backward()
        if rates["clip_norm"]:
            nn.utils.clip_grad_norm_(model.parameters(), rates["clip_norm"], foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def answer(steps: int) -> dict:
        wait()
        began = time.perf_counter()
        for _ in range(steps):
            loss = step()
        wait()
        seconds = time.perf_counter() - began
        cuda = device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else peak_host_bytes()
        return {"seconds": seconds, "loss": float(loss), "peak_bytes": peak}

    began = time.perf_counter()
    step()
    wait()
    serve(
        {
            "parameters": parameters,
            "losses": losses,
            "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
            "compile_seconds": time.perf_counter() - began,
            "version": f"torch {torch.__version__}, transformers {transformers.__version__}",
        },
        answer,
    )


if __name__ == "__main__":
    main()

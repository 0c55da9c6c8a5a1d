"""Our side of `benchmarks.train`: a worker that trains on one batch, and describes it to the peer.

It writes into a folder what the peer needs: ``model.json`` with the objective, the optimizer and
Hugging Face's config of each model, ``weights-NAME.npz`` in Hugging Face's names, and ``batch.npz``
with what our corruption made of the text.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.made_up import text, vocabulary
from benchmarks.workers import peak_host_bytes, serve
from jaxpretrain.assemble import Pieces, build, placed_seed, traced_step
from jaxpretrain.chips import chip_of
from jaxpretrain.config import load
from jaxpretrain.errors import UserError
from jaxpretrain.interop.huggingface import export_model
from jaxpretrain.main import quiet_libraries, take_overrides
from jaxpretrain.models.transformer import Backbone, settled_here
from jaxpretrain.objectives.rtd import TIED
from jaxpretrain.state import init_state
from jaxpretrain.step import progress_at, run_key


def main() -> None:
    """Compiles, writes, and answers; says in one line what the user can mend."""
    try:
        work()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None


def work() -> None:
    """See `main`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True)
    parser.add_argument("--folder", required=True)
    arguments, overrides = take_overrides(sys.argv[1:])
    options = parser.parse_args(arguments)
    quiet_libraries()
    config = load(options.config, overrides)
    pieces = build(config, vocabulary(config.tokenizer.vocab_size))
    rows, length = config.data.batch_size, config.data.length
    batch = text(rows, length, pieces.objective.vocab)
    state = init_state(pieces.objective, pieces.optimizer, config.seed, pieces.abstract)
    loss = heldout_terms(pieces, state.params, batch)
    parameters = write(Path(options.folder), pieces, jax.device_get(state.params), batch)
    began = time.perf_counter()
    step = traced_step(pieces).lower().compile()
    compiled = time.perf_counter() - began
    on_device, seed = jax.device_put(batch, pieces.placement.batch), placed_seed(pieces)
    device = jax.devices()[0]

    def answer(steps: int) -> dict:
        nonlocal state
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, on_device, seed)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - began
        stats = device.memory_stats() or {}
        return {
            "seconds": seconds,
            "loss": float(metrics["loss"]),
            "peak_bytes": stats.get("peak_bytes_in_use") or peak_host_bytes(),
        }

    chip = chip_of(device.device_kind)
    serve(
        {
            "parameters": parameters,
            "losses": loss,
            "device": device.device_kind,
            "dtype": settled_here(pieces.objective.backbone.config).dtype,
            "tokens": rows * length,
            "flops": pieces.objective.flops(length) * rows,
            "peak_flops": chip.flops if chip else None,
            "compile_seconds": compiled,
            "version": f"jax {jax.__version__}",
        },
        answer,
    )


def heldout_terms(pieces: Pieces, params: dict, batch) -> dict[str, float]:
    """The terms of the loss on the training corruption, without dropout."""
    objective = undropped(pieces.objective)
    progress = progress_at(jnp.int32(0), 1)

    @jax.jit
    def terms(params, batch):
        example, keys = objective.example(batch, run_key(0), train=True, progress=progress)
        sums = objective.loss(params, example, keys, train=False, progress=progress)
        return {name: sums[name].mean() for name in objective.coefficients(progress)}

    with pieces.placement.of_activations():
        return {name: float(value) for name, value in terms(params, batch).items()}


def undropped(objective):
    """The objective on a backbone without dropout, even where that is the corruption."""
    config = replace(objective.backbone.config, dropout=0.0, attention_dropout=0.0)
    return replace(objective, backbone=Backbone(config))


def write(folder: Path, pieces: Pieces, params: dict, batch) -> int:
    """Writes what the peer needs; the number of parameters that the two sides have in common."""
    config, objective = pieces.config, pieces.objective
    preset, progress = config.model.preset, progress_at(jnp.int32(0), 1)
    models = {"model": (objective.backbone.config, params)}
    shared = 0
    if objective.name == "rtd":
        tied = {name: params[name] for name in TIED if name in params}
        models["generator"] = (objective.generator.config, params["generator"] | tied)
        shared = sum(leaf.size for leaf in jax.tree.leaves(tied))
        params = {name: part for name, part in params.items() if name != "head"}
        models["model"] = (objective.backbone.config, params)
    if objective.name == "simcse":  # no head reads a vocabulary there
        params = {name: part for name, part in params.items() if name != "head"}
        models["model"] = (objective.backbone.config, params)
    described, count = {}, -shared
    for name, (switches, tree) in models.items():
        described[name], tensors = export_model(preset, switches, tree)
        count += sum(tensor.size for tensor in tensors.values())
        np.savez(folder / f"weights-{name}.npz", **tensors)
    example, _ = jax.jit(
        lambda batch: objective.example(batch, run_key(0), train=True, progress=progress)
    )(batch)
    np.savez(folder / "batch.npz", **peer_batch(objective.name, jax.device_get(example)))
    about = {
        "objective": objective.name,
        "models": described,
        "dtype": settled_here(objective.backbone.config).dtype,
        "optimizer": config.optimizer.to_dict(),
        "pad": int(objective.vocab.pad),
        "settings": config.objective.to_dict(),
    }
    (folder / "model.json").write_text(json.dumps(about))
    return int(count)


def peer_batch(name: str, example) -> dict[str, np.ndarray]:
    """An example in Hugging Face's terms; arrays of int64, a label of -100 counts nothing."""
    if name == "simcse":
        return {"input_ids": example.inputs, "attention_mask": example.segments > 0}
    batch = {"input_ids": example.inputs, "attention_mask": example.segments > 0}
    if example.types is not None:
        batch["token_type_ids"] = example.types
    labels = np.where(example.weights > 0, example.targets, -100)
    if name == "clm":  # the peer lets position i predict the label of i + 1
        batch["labels"] = np.concatenate([np.full_like(labels[:, :1], -100), labels[:, :-1]], 1)
    elif example.slots is None:
        batch["labels"] = labels
    else:
        used = np.nonzero(example.weights > 0)
        dense = np.full(example.inputs.shape, -100)
        dense[used[0], example.slots[used]] = example.targets[used]
        batch |= {"labels": dense, "slots": example.slots, "slot_labels": labels}
    if example.source is not None:
        batch["decoder_input_ids"] = batch["input_ids"]
        batch["input_ids"] = example.source.inputs
        batch["attention_mask"] = example.source.segments > 0
    if name == "bert":
        batch["next_sentence_label"] = example.extra["label"]
    if name == "rtd":
        batch["tokens"] = example.extra["tokens"]
    if np.all(batch["attention_mask"]):
        del batch["attention_mask"]  # the peer is faster without one
    return {key: np.asarray(value, np.int64) for key, value in batch.items()}


if __name__ == "__main__":
    main()

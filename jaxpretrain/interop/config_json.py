"""What the ``config.json`` of a family says in more than one way, or for several switches at once.

A ``read_…`` function brings a ``config.json`` to the keys that the family's table names, of which
some are ours alone; its ``written_…`` takes those away and adds what their library reads.
"""

from collections.abc import Container, Mapping
from typing import Any

from jaxpretrain.errors import UserError

# Of the rotary positions of Llama 3.1, in our keys and in theirs.
LLAMA3 = {
    "rotary_factor": "factor",
    "rotary_length": "original_max_position_embeddings",
    "rotary_low": "low_freq_factor",
    "rotary_high": "high_freq_factor",
}
WHOLE, LOCAL = "full_attention", "sliding_attention"
FEED_FORWARD = {"gated-gelu": "geglu_tanh", "relu": "relu"}
# The activation of each, which a file may name besides, and which counts then.
DENSE_ACT = {"gated-gelu": "gelu_new", "relu": "relu"}


def read_llama(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary positions, which newer files keep in a dict of their own, and some in both."""
    newer, older = (_dict(config, key) for key in ("rope_parameters", "rope_scaling"))
    rope = newer or older
    kind = _kind_of(rope, ("default", "llama3"))
    if newer and older:
        keys = {"rope_theta", *LLAMA3.values()} & newer.keys() & older.keys()
        if kind != _kind_of(older, (kind,)) or any(newer[key] != older[key] for key in keys):
            raise UserError(
                "rope_parameters and rope_scaling in the model's config.json contradict each "
                "other: delete the one that is wrong"
            )
    found = {**config, "rope_theta": _base(config, rope, "rope_theta", 10_000.0)}
    if kind == "llama3":
        missing = [theirs for theirs in LLAMA3.values() if theirs not in rope]
        if missing:
            raise UserError(
                f"the rotary positions are scaled as in Llama 3.1 in the model's config.json, "
                f"without {', '.join(missing)}: it is incomplete"
            )
        found |= {ours: rope[theirs] for ours, theirs in LLAMA3.items()}
    return found


def written_llama(config: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `read_llama`, as old and as new files have it."""
    config = dict(config)
    values = {theirs: config.pop(ours) for ours, theirs in LLAMA3.items()}
    if values["factor"] == 1.0:
        return config | {"rope_parameters": _plain(config["rope_theta"])}
    scaled = {"rope_type": "llama3"} | values
    both = {"rope_parameters": scaled | {"rope_theta": config["rope_theta"]}}
    return config | both | {"rope_scaling": scaled}


def read_modernbert(config: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers are local, and the bases of both kinds, each in older files and in newer."""
    ropes = _dict(config, "rope_parameters")
    both = {kind: _dict(ropes, kind) for kind in (WHOLE, LOCAL)}
    for rope in (*both.values(), _dict(config, "rope_scaling")):
        _kind_of(rope, ("default",))
    every = _whole(config, "global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds and kinds != layer_types(len(kinds), every):
        every = next((n for n, kind in enumerate(kinds) if n and kind == WHOLE), len(kinds))
        if kinds != layer_types(len(kinds), every):
            raise UserError(
                f"layer_types is {', '.join(kinds)} in the model's config.json: only whole layers "
                "('full_attention') at equal distances, the first among them, can be imported"
            )
    local = _whole(config, "local_attention", 128)
    window = local // 2
    if config.get("sliding_window", window) != window:
        raise UserError(
            f"sliding_window is {config['sliding_window']} in the model's config.json, and "
            f"local_attention, which is twice as much, {local}: delete the one that is wrong"
        )
    base = _base(config, both[WHOLE], "global_rope_theta", 160_000.0)
    null = "local_rope_theta" in config and config["local_rope_theta"] is None
    return {
        **config,
        "global_rope_theta": base,
        # A null is not absent: it stands for the other one.
        "local_rope_theta": _base(
            config, both[LOCAL], "local_rope_theta", base if null else 10_000.0
        ),
        "local_window": window if every > 1 else 0,
        "global_attn_every_n_layers": every,
    }


def written_modernbert(config: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `read_modernbert`, as old and as new files have it."""
    config = dict(config)
    window = config.pop("local_window")
    every = config["global_attn_every_n_layers"] if window else 1
    ropes = {WHOLE: config["global_rope_theta"], LOCAL: config["local_rope_theta"]}
    return config | {
        "global_attn_every_n_layers": every,
        "local_attention": 2 * window or 128,
        "layer_types": layer_types(config["num_hidden_layers"], every),
        "rope_parameters": {kind: _plain(base) for kind, base in ropes.items()},
    }


def layer_types(layers: int, every: int) -> list[str]:
    """ModernBERT's names of its layers' kinds."""
    return [LOCAL if number % every else WHOLE for number in range(layers)]


def read_t5(config: Mapping[str, Any]) -> dict[str, Any]:
    """The head and the feed-forward layer.

    A tied head scales what it reads if nothing else is said, and one of its own does not.
    """
    kind = str(config.get("feed_forward_proj", "relu"))
    named = config.get("dense_act_fn")
    if named not in (None, DENSE_ACT.get(kind, named)):
        raise UserError(
            f"dense_act_fn is {named!r} in the model's config.json, beside a feed_forward_proj of "
            f"{kind!r}: only {DENSE_ACT[kind]!r} can be imported with it"
        )
    decoder = config.get("num_decoder_layers")
    if decoder == 0:
        raise UserError(
            "num_decoder_layers is 0 in the model's config.json: only a T5 with a decoder can be "
            "imported"
        )
    tied = config.get("tie_word_embeddings", True)
    scaled = config.get("scale_decoder_outputs", tied)
    return {
        **config,
        "num_decoder_layers": config.get("num_layers") if decoder is None else decoder,
        "feed_forward_proj": kind,
        "activation": FEED_FORWARD.get(kind),
        "tie_word_embeddings": tied,
        "head_scale": _whole(config, "d_model", 512) ** -0.5 if scaled else 1.0,
    }


def settled_t5(config: Mapping[str, Any], names: Container[str]) -> Mapping[str, Any]:
    """Whether the head is tied, which transformers 5 always says, by the tensors that are there."""
    if config.get("scale_decoder_outputs") is False and "lm_head.weight" in names:
        return {**config, "tie_word_embeddings": False}
    return config


def written_t5(config: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `read_t5`."""
    config = dict(config)
    scale, activation = config.pop("head_scale"), config.pop("activation")
    kinds = {ours: theirs for theirs, ours in FEED_FORWARD.items()}
    if activation not in kinds:
        raise UserError(
            f"model.activation is {activation!r}, and a Hugging Face t5 has "
            f"{' or '.join(map(repr, kinds))}: it cannot be exported as one"
        )
    tied = config["tie_word_embeddings"]
    scaled = tied and abs(scale * config["d_model"] ** 0.5 - 1.0) <= 1e-6
    if not scaled and scale != 1.0:
        usual = f"{config['d_model'] ** -0.5:.6g} or 1" if tied else "1"
        raise UserError(
            f"model.head_scale is {scale}, and a Hugging Face t5 with tied_embeddings={tied} has "
            f"{usual}: it cannot be exported as one"
        )
    # In transformers 4 a tied head scales always, so one that does not has to be its own there.
    config |= {"tie_word_embeddings": scaled, "scale_decoder_outputs": scaled}
    return config | {"feed_forward_proj": kinds[activation]}


def _dict(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What a key holds, or nothing; raises UserError where it is no object."""
    found = config.get(key) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"{key} is {found!r} in the model's config.json: it must be an object")
    return found


def _whole(config: Mapping[str, Any], key: str, otherwise: int) -> int:
    """A number above 0, or what it is where there is none; raises UserError for all else."""
    found = config.get(key, otherwise)
    if not isinstance(found, int) or found < 1:
        raise UserError(
            f"{key} is {found!r} in the model's config.json: it must be a whole number above 0"
        )
    return found


def _kind_of(rope: Mapping[str, Any], allowed: tuple[str, ...]) -> str:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in allowed:
        raise UserError(
            f"the rotary positions are scaled ({kind!r}) in the model's config.json: only "
            f"{' and '.join(map(repr, allowed))} can be imported"
        )
    return kind


def _base(config: Mapping[str, Any], rope: Mapping[str, Any], key: str, otherwise: float) -> float:
    inner, outer = rope.get("rope_theta"), config.get(key)
    if inner and outer and inner != outer:
        raise UserError(
            f"{key} is {outer} in the model's config.json, and {inner} in its rope_parameters or "
            "rope_scaling: delete the one that is wrong"
        )
    return inner or outer or otherwise


def _plain(base: float) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": base}

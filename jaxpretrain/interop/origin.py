"""What a run keeps of the Hugging Face folder that it was imported from, for its export."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxpretrain.data.tokenizer_folder import settings_in
from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, access, json_object, write

FILE = "imported.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
KEPT = (
    *(f"{role}_token" for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask")),
    *("additional_special_tokens", "extra_special_tokens", "model_max_length", "padding_side"),
    *("truncation_side", "chat_template"),
)


class Origin(NamedTuple):
    """What training changes nothing of.

    Attributes:
        folder: its name; of the hub's cache that of the model.
        untrained: groups of our parameters that it did not have, and that began at random.
        ids: what ``config.json`` says of the ids of pieces, which may be several, or null.
        tokenizer: what ``tokenizer_config.json`` says of how texts are given to the model.
        generation: ``generation_config.json``, or None.
        chat_template: ``chat_template.jinja``, or None.
    """

    folder: str
    untrained: Sequence[str]
    ids: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any] | None
    chat_template: str | None

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any], untrained: Sequence[str] = ()) -> "Origin":
        """What is in a folder with that ``config.json``; UserError where it cannot be read."""
        with access(f"read the model {folder}"):
            there = {p.name: p for p in folder.iterdir()}
            generation = json_object(there[GENERATION]) if GENERATION in there else None
            said = settings_in(folder)
            template = None
            if TEMPLATE in there:
                template = there[TEMPLATE].read_bytes().decode(errors="replace")
        if str(said.get("tokenizer_class")).startswith("Llama"):
            said = {"padding_side": "left"} | said  # as that class has it
        tokenizer = {key: _typed(said[key]) for key in KEPT if key in said}
        ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
        return cls(name_of(folder), list(untrained), ids, tokenizer, generation, template)

    def save(self, workdir: AnyPath) -> None:
        """Writes it into a run's folder."""
        with access(f"write the workdir {workdir}"):
            write(workdir / FILE, json.dumps(self._asdict(), indent=2) + "\n")

    @classmethod
    def load(cls, workdir: AnyPath) -> "Origin | None":
        """That of a run, if it was imported."""
        with access(f"read the workdir {workdir}"):
            if not (workdir / FILE).exists():
                return None
            said = json_object(workdir / FILE)
        if said.keys() != set(cls._fields):
            raise UserError(f"{workdir / FILE} is damaged: import the model again")
        return cls(**said)

    def files(self) -> dict[str, str]:
        """What an export has beside the model, by name."""
        found = {}
        if self.generation is not None:
            found[GENERATION] = json.dumps(self.generation, indent=2) + "\n"
        if self.chat_template is not None:
            found[TEMPLATE] = self.chat_template
        return found


def _typed(value: Any) -> Any:
    """A piece with its flags as ``tokenizer_config.json`` has it, from ``special_tokens_map.json``
    too, where its type goes without saying."""
    if isinstance(value, list):
        return [_typed(each) for each in value]
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        return value | {"__type": "AddedToken"}
    return value


def name_of(folder: Path) -> str:
    """What to call the model of a folder: in the hub's cache the folder's own name is a hash."""
    folder = folder.absolute()
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return cached.removeprefix("models--").replace("--", "/")
    return folder.resolve().name

"""What a run keeps of the Hugging Face folder that it was imported from, for its export."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxpretrain.errors import UserError
from jaxpretrain.storage import AnyPath, access, json_object, write

FILE = "imported.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
SETTINGS = "tokenizer_config.json"


class Origin(NamedTuple):
    """What training changes nothing of.

    Attributes:
        folder: its name.
        ids: what ``config.json`` says of the ids of pieces, which may be several, or null.
        generation: ``generation_config.json``, or None.
        chat_template: the template of a conversation, or None.
    """

    folder: str
    ids: Mapping[str, Any]
    generation: Mapping[str, Any] | None = None
    chat_template: str | None = None

    @classmethod
    def of(cls, folder: Path, config: Mapping[str, Any]) -> "Origin":
        """What is in a folder with that ``config.json``; UserError where it cannot be read."""
        with access(f"read the model {folder}"):
            there = {p.name: p for p in folder.iterdir()}
            generation = json_object(there[GENERATION]) if GENERATION in there else None
            said = json_object(there[SETTINGS]) if SETTINGS in there else {}
            template = said.get("chat_template")
            if TEMPLATE in there:
                template = there[TEMPLATE].read_bytes().decode(errors="replace")
        ids = {key: value for key, value in config.items() if key.endswith("_token_id")}
        one = template if isinstance(template, str) else None  # of several none is the usual one
        return cls(folder.resolve().name, ids, generation, one)

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

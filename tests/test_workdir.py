"""What a workdir remembers of its run; how it is used is tested with `train`."""

import json

import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.schema import flatten
from jaxpretrain.workdir import OPEN, check_identity, check_same_config
from support import tiny_run


def test_a_run_of_an_older_version_has_what_is_now_the_default(tmp_path):
    config = tiny_run.config(tiny_run.write(tmp_path))
    stored = config.to_dict()
    del stored["model"]["first_norm"]  # of a time when there was no such switch
    (tmp_path / "config.json").write_text(json.dumps(stored))
    check_same_config(tmp_path, flatten(config.to_dict()))
    other = tiny_run.config(tmp_path / "tiny.py", model__first_norm=False)
    with pytest.raises(UserError, match="first_norm = True, and now it is False"):
        check_same_config(tmp_path, flatten(other.to_dict()))


def test_what_has_not_been_read_yet_may_be_anything(tmp_path):
    known = {"tokenizer": "a" * 64, "token store": OPEN}
    (tmp_path / "run.json").write_text(json.dumps(known))
    check_identity(tmp_path, {"tokenizer": "a" * 64, "token store": "b" * 64})
    with pytest.raises(UserError, match="a run with another tokenizer"):
        check_identity(tmp_path, {"tokenizer": "c" * 64})
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(UserError, match="a run with another token store"):
        check_identity(tmp_path, {"token store": "b" * 64})

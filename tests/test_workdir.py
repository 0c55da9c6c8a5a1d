"""What a workdir remembers of its run; how it is used is tested with `train`."""

import json

import pytest

from jaxpretrain.errors import UserError
from jaxpretrain.schema import flatten
from jaxpretrain.workdir import (
    OPEN,
    check_identity,
    check_same_config,
    claim_workdir,
    read_json,
)
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


def test_what_never_saved_anything_may_be_begun_anew(tiny_config_file, tmp_path):
    """As after an error whose advice is another config."""
    tokenizer = tiny_run.tokenizer_of(tiny_config_file)
    identity = {"tokenizer": tokenizer.sha256, "token store": "a" * 64}
    claim_workdir(tmp_path, {"data": {"batch_size": 64}}, tokenizer, identity)
    claim_workdir(tmp_path, {"data": {"batch_size": 32}}, tokenizer, identity)
    assert read_json(tmp_path / "config.json") == {"data": {"batch_size": 32}}
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    with pytest.raises(UserError, match="holds a run with config.data.batch_size = 32"):
        claim_workdir(tmp_path, {"data": {"batch_size": 16}}, tokenizer, identity)

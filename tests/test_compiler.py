"""What compilers are told; `test_plan` shows what it comes to."""

from jaxpretrain import compiler

NAME = "xla_jf_spmd_threshold_for_windowed_einsum_mib"


def test_only_a_tpus_compiler_is_told_anything():
    assert compiler.options("cpu") == compiler.options("gpu") == {}
    assert list(compiler.options("tpu")) == [NAME]


def test_the_users_own_setting_stays(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", f"--xla_tpu_other=1 --{NAME}=512")
    assert compiler.options("tpu") == {}

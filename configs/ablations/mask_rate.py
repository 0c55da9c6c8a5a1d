"""How much to mask: the quick start's encoder at five masking rates, equal tokens.

    jaxpretrain ablate --config=configs/ablations/mask_rate.py

The rate of BERT is 15 %; Wettig et al. 2023 ("Should You Mask 15% in Masked Language Modeling?",
arXiv 2202.08005) found 40 % better for large models. Every cell is measured with 15 % of the test
documents' tokens hidden, whatever it was trained with, and by a probe downstream.

Measured on two CPU cores beside other work (jax 0.10.2): 711 s of training in all, and 44 s
of evaluation for each cell. Nats per hidden token, and accuracy of the probe on the package of a
docstring (chance 0.247), one seed:

    mask_rate    0.05    0.15    0.3     0.5     0.8
    test loss    6.21    4.42    4.29    4.18    4.53
    packages     0.255   0.568   0.637   0.738   0.780

At 5 % so few tokens are predicted that the model is hardly better than a unigram model (6.24). What
the loss likes best is not what the probe likes best.
"""


def get_ablation(size: str = "cpu") -> dict:
    """Five cells; with ":gpu", 110M parameters and 300M tokens each (see ../base_110m.py)."""
    gpu = size == "gpu"
    return {
        "base": "../base_110m.py" if gpu else "../quickstart.py",
        "grid": {"objective.mask_rate": [0.05, 0.15, 0.3, 0.5, 0.8]},
        "budget": {"tokens": 300_000_000 if gpu else 1_800_000},
    }

"""How much to mask: the quick start's encoder at five masking rates, equal tokens.

    jaxpretrain ablate --config=configs/ablations/mask_rate.py

The rate of BERT is 15 %; Wettig et al. 2023 ("Should You Mask 15% in Masked Language Modeling?",
arXiv 2202.08005) found 40 % better for large models. The losses of the cells are on different
tasks, since a text that hides more is harder to fill in: what compares them is downstream.
"""


def get_ablation() -> dict:
    """Five cells of three million tokens each."""
    return {
        "base": "../quickstart.py",
        "grid": {"objective.mask_rate": [0.05, 0.15, 0.3, 0.5, 0.8]},
        "budget": {"tokens": 3_000_000},
    }

"""How much to mask: the quick start's encoder at five masking rates, equal tokens.

    jaxpretrain ablate --config=configs/ablations/mask_rate.py

The rate of BERT is 15 %; Wettig et al. 2023 ("Should You Mask 15% in Masked Language Modeling?",
arXiv 2202.08005) found 40 % better for large models. Every cell is measured with 15 % of the test
documents' tokens hidden, whatever it was trained with, and by a probe downstream.
"""


def get_ablation(size: str = "cpu") -> dict:
    """Five cells; with ":gpu", 110M parameters and 300M tokens each (see ../base_110m.py)."""
    gpu = size == "gpu"
    return {
        "base": "../base_110m.py" if gpu else "../quickstart.py",
        "grid": {"objective.mask_rate": [0.05, 0.15, 0.3, 0.5, 0.8]},
        "budget": {"tokens": 300_000_000 if gpu else 1_800_000},
    }

"""How much to mask: the quick start's encoder at five masking rates, equal tokens.

    jaxpretrain ablate --config=configs/ablations/mask_rate.py

The rate of BERT is 15 %; Wettig et al. 2023 ("Should You Mask 15% in Masked Language Modeling?",
arXiv 2202.08005) found 40 % better for large models. Every cell is measured with 15 % of the test
documents' tokens hidden, whatever it was trained with.

Measured on two CPU cores (jax 0.10.2), 18 minutes; nats per hidden token, one seed:

    mask_rate    0.05    0.15    0.3     0.5     0.8
    test loss    6.09    4.34    3.97    3.87    4.27

At 5 % so few tokens are predicted that the model is hardly better than a unigram model (6.24); at
80 % too little is left to predict them from.
"""


def get_ablation() -> dict:
    """Five cells of three million tokens each."""
    return {
        "base": "../quickstart.py",
        "grid": {"objective.mask_rate": [0.05, 0.15, 0.3, 0.5, 0.8]},
        "budget": {"tokens": 3_000_000},
    }

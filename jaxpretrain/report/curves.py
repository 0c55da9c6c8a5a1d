"""The loss curve of one run, as a picture."""

import io

from jaxpretrain.metrics import read_metrics
from jaxpretrain.storage import AnyPath, write


def plot_loss(workdir: AnyPath, *, unigram_loss: float | None = None) -> AnyPath:
    """Draws ``metrics.jsonl`` of a workdir as ``loss.png``.

    Args:
        workdir: folder of a run.
        unigram_loss: in nats; drawn as a line to compare with.

    Returns:
        The picture's path.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_metrics(workdir)
    figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    for key, label, style in (
        ("loss", "training", {"color": "#0072B2", "linewidth": 1.2, "alpha": 0.8}),
        ("eval_loss", "held-out (validation)", {"color": "#D55E00", "marker": "o"}),
    ):
        points = [(row["tokens"] / 1e6, row[key]) for row in rows if row.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
    if unigram_loss is not None:
        axes.axhline(
            unigram_loss, color="#555555", linestyle="--", linewidth=1, label="unigram model"
        )
    axes.set_xlabel("tokens read (millions)")
    axes.set_ylabel("loss (nats)" if unigram_loss is None else "loss (nats per predicted token)")
    axes.set_title(workdir.name)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path = workdir / "loss.png"
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    plt.close(figure)
    write(path, picture.getvalue())
    return path

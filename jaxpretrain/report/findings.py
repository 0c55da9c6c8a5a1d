"""What the numbers of an ablation show, of the things that are known to go wrong in pretraining.

A finding is there only where the numbers carry it: each detector looks for one pattern, by how
much it must differ is a constant that says why, and a difference within the intervals is none.
"""

from jaxpretrain.report import findings_groups as groups
from jaxpretrain.report import findings_runs as runs
from jaxpretrain.report.findings_compare import Finding
from jaxpretrain.report.results import Results

# In the order of the report: first what puts the other numbers in doubt.
DETECTORS = (
    runs.leak,
    groups.masking,
    groups.families,
    groups.at_chance,
    runs.drowning,
    runs.fighting,
    runs.overfitting,
    runs.near_duplicates,
    runs.unseen_source,
    runs.loss_fell_alone,
    groups.lower_loss_lower_score,
    groups.nothing_decided,
    groups.one_seed,
)

__all__ = ["DETECTORS", "Finding", "findings"]


def findings(results: Results) -> list[Finding]:
    """All that the detectors find."""
    return [finding for detector in DETECTORS for finding in detector(results)]

"""The pretraining objectives, one file each, and the table of their names."""

from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.clm import CLM
from jaxpretrain.objectives.mlm import MLM

OBJECTIVES: dict[str, type[Objective]] = {cls.name: cls for cls in (MLM, CLM)}

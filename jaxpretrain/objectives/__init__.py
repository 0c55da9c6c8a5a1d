"""The pretraining objectives, one file each, and the table of their names."""

from jaxpretrain.objectives.albert import ALBERT
from jaxpretrain.objectives.base import Objective
from jaxpretrain.objectives.bert import BERT
from jaxpretrain.objectives.clm import CLM
from jaxpretrain.objectives.crops import Crops
from jaxpretrain.objectives.fim import FIM
from jaxpretrain.objectives.masked_diffusion import MaskedDiffusion
from jaxpretrain.objectives.mixture import Mixture, Task
from jaxpretrain.objectives.mlm import MLM
from jaxpretrain.objectives.mtp import MTP
from jaxpretrain.objectives.nsp import NSP
from jaxpretrain.objectives.prefix_lm import PrefixLM
from jaxpretrain.objectives.rtd import RTD
from jaxpretrain.objectives.simcse import SimCSE
from jaxpretrain.objectives.sop import SOP
from jaxpretrain.objectives.span_corruption import SpanCorruption
from jaxpretrain.objectives.span_mlm import SpanMLM
from jaxpretrain.objectives.ul2 import UL2

OBJECTIVES: dict[str, type[Objective]] = {
    cls.name: cls
    for cls in (
        MLM,
        SpanMLM,
        MaskedDiffusion,
        RTD,
        CLM,
        MTP,
        FIM,
        PrefixLM,
        SpanCorruption,
        UL2,
        NSP,
        SOP,
        BERT,
        ALBERT,
        SimCSE,
        Crops,
        Mixture,
    )
}

__all__ = ["OBJECTIVES", "Mixture", "Objective", "Task"]

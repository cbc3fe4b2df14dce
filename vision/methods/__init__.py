"""The table of methods for images. Adding one is a file and a line here; users register their own by name."""

from __future__ import annotations

from recdenoise.denoisers import Registry
from recdenoise.denoisers.deca_p_classes import DeCAPClasses
from recdenoise.denoisers.ensemble import Ensemble
from recdenoise.denoisers.itlm import ITLM
from recdenoise.denoisers.normal import Normal
from recdenoise.denoisers.r_ce import RCE
from recdenoise.denoisers.t_ce import TCE
from vision.methods.biaswap import BiaSwap
from vision.methods.cdr import CDR
from vision.methods.cit import CIT
from vision.methods.co_teaching import CoTeaching
from vision.methods.cores import CORES
from vision.methods.denll import DeNLL
from vision.methods.dfa import DFA
from vision.methods.dividemix import DivideMix
from vision.methods.dmi import DMI
from vision.methods.elr import ELR
from vision.methods.elr_plus import ELRPlus
from vision.methods.forward import Forward
from vision.methods.gce import GCE
from vision.methods.group_dro import GroupDRO
from vision.methods.jocor import JoCoR
from vision.methods.joint_optim import JointOptim
from vision.methods.lff import LfF
from vision.methods.m_correction import MCorrection
from vision.methods.mae import MAE
from vision.methods.mixup import Mixup
from vision.methods.mw_net import MWNet
from vision.methods.noise_adaptation import NoiseAdaptation
from vision.methods.pes import PES
from vision.methods.pes_semi import PESSemi
from vision.methods.sop import SOP
from vision.methods.sop_plus import SOPPlus
from vision.methods.t_revision import TRevision

METHODS = Registry(
    "method",
    (
        Normal,
        Ensemble,
        TCE,
        RCE,
        ITLM,
        DeCAPClasses,
        MAE,
        GCE,
        ELR,
        Mixup,
        MWNet,
        CoTeaching,
        JoCoR,
        CDR,
        CORES,
        Forward,
        TRevision,
        NoiseAdaptation,
        DMI,
        JointOptim,
        MCorrection,
        DeNLL,
        PES,
        SOP,
        SOPPlus,
        LfF,
        DFA,
        BiaSwap,
        GroupDRO,
        PESSemi,
        ELRPlus,
        DivideMix,
        CIT,
    ),
)

register = METHODS.register
names = METHODS.names
get = METHODS.get
parse = METHODS.parse

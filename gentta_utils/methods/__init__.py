"""Every method by name: a new one is one file and one line."""

from . import (
    bn_adapt,
    cotta,
    dda,
    diffpure,
    diffusion_classifier,
    diffusion_tta,
    dusa,
    ensemble,
    ilvr,
    memo,
    sda,
    source,
    tea,
    tent,
    tta_averaging,
    ttt_mae,
)

METHODS = {
    "source": source,
    "bn_adapt": bn_adapt,
    "tent": tent,
    "memo": memo,
    "cotta": cotta,
    "tta_averaging": tta_averaging,
    "diffusion_classifier": diffusion_classifier,
    "ensemble": ensemble,
    "diffusion_tta": diffusion_tta,
    "dusa": dusa,
    "tea": tea,
    "ttt_mae": ttt_mae,
    "diffpure": diffpure,
    "ilvr": ilvr,
    "dda": dda,
    "sda": sda,
}

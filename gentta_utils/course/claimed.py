"""The claims of the four documents, each with the rows of records that decide it. See `claims` for the rules."""

from pathlib import Path

from ..common.files import atomic_write
from ..world.severities import TEST, VALIDATION
from .claims import PAGE, Claim, Finding, all_but_one, below, find, minus, no_gain, page
from .compared import (
    ADAPTED,
    READER,
    RESNET,
    SOURCE,
    VIT,
    at_chance,
    by_classifier,
    by_shift,
    captions_told_apart,
    each,
    gains_over_clean,
    larger_gains_less,
    loss_falls,
    more_spread,
    naive_ensemble,
    of_gain,
    of_maps,
    on_questions,
    weaker_gains_more,
)
from .nb06.report import VARIATION
from .nb06.rows import TPT4

IMAGENET_C = ("gaussian_noise", "fog", "pixelate", "snow", "contrast")  # of the paper's online table
HARDWARE = "hours of eight A100 GPUs on ImageNet; the tables here say seconds and evaluations per image instead"
ROW_NAMES = {
    SOURCE: "source", ADAPTED: "Diffusion-TTA", "online": "online", "episodic": "each image from the source",
    "diffusion_tta online/iid": "Diffusion-TTA online", "tent/iid": "TENT", "cotta/iid": "CoTTA",
    "dda, sum": "DDA", "sda, sum": "SDA", "gda-like": "GDA-like", "memo": "MEMO", "diffpure": "DiffPure",
    "tent": "TENT", "cotta": "CoTTA", VARIATION: "DiffTPT", TPT4: "TPT", "zero-shot": "zero-shot",
    "ttt_mae (mae)": "TTT-MAE", "diffusion_tta (mae)": "Diffusion-TTA of the same network",
}  # fmt: skip
MAP_SHIFTS = ("gaussian_noise", "fog", "frost", "snow", "contrast", "shot_noise")  # of the paper's dense tasks
K10, K11, K12 = "K10: ", "K11: ", "K12: "
ALL = f"{K10}+ fresh noise (ours)"  # of the ablations: all parameters, 8 pairs per update, 12 updates
ROW_NAMES |= {
    f"{K10}one random t an update": "one level per update", f"{K10}+ many t, one noise": "many levels, one noise",
    ALL: "fresh noise (ours)", f"{K10}+ adapting the DiT (10 scenes)": "adapting the DiT too",
    f"{K11}logits": "logits alone", f"{K11}batch norm": "batch norm alone", f"{K11}last layer": "last layer alone",
    f"{K12}64 pairs": "64 pairs", f"{K12}16 pairs": "16 pairs", f"{K12}4 pairs": "4 pairs", f"{K12}1 pair": "1 pair",
    "clip_lora/templates": "LoRA, several prompts", "clip_lora/one": "LoRA, one prompt",
    "clip_full/templates": "all of CLIP, several prompts", "clip_full/one": "all of CLIP, one prompt",
    "clip_lora+sd_lora/one": "LoRA in both", "tent/iid, batch 1": "TENT", "tent/iid, batch 64": "TENT",
    "tent/correlated, batch 64": "TENT",
}  # fmt: skip

DIFFUSION_TTA = [
    Claim("features", "Single-sample adaptation with a DiT improves ImageNet classifiers on clean images",
          "ResNet-18 69.5 to 77.2, ViT-B/32 75.7 to 77.6, ConvNeXt-T 81.9 to 83.1", "02", "clean", of_gain(ADAPTED)),
    Claim("first table", "... on ImageNet-A, -R, -V2 and Stylized-ImageNet",
          "ResNet-18 +4.7, +5.1, +6.7, +4.6", "02", "natural",
          by_shift(ADAPTED, SOURCE, ("a", "r", "v2", "stylized"))),
    Claim("first table", "... under Gaussian noise of severity 5", "ResNet-18 +1.9, ViT-B/32 +1.9, ConvNeXt-T +4.6",
          "02", "test", by_classifier(ADAPTED, SOURCE, ["gaussian_noise"])),
    Claim("first table", "The gain on clean images is larger for the weaker classifier",
          "+7.7 (69.5), +1.9 (75.7), +1.2 (81.9)", "02", "clean", weaker_gains_more),
    Claim("first table", "TENT and CoTTA do not gain on clean images and natural shifts",
          "ResNet-18 on ImageNet 69.5: 63.0, 63.0", "02", "natural",
          each([("tent", SOURCE), ("cotta", SOURCE)], ROW_NAMES), no_gain),
    Claim("first table", "Diffusion-TTA is ahead of TENT and CoTTA there", "77.2 to 63.0, 63.0", "02", "natural",
          each([(ADAPTED, "tent"), (ADAPTED, "cotta")], ROW_NAMES)),
    Claim("first table", "TTT-MAE gains under corruption", "ViT-L/16 17.5 to 27.5 (Gaussian noise)", "02", "rivals",
          each([("ttt_mae (mae)", SOURCE)], ROW_NAMES, classifier="classifier/mae")),
    Claim("online table", "Online adaptation improves the ResNet on noise, fog, pixelate and snow",
          "ResNet-50 +12.7, +18.0, +23.7, +16.9", "02", "one_by_one",
          by_shift("online", SOURCE, IMAGENET_C[:4], classifier=RESNET)),
    Claim("online table", "... and loses on contrast", "ResNet-50 3.6 to 2.7", "02", "one_by_one",
          by_shift("online", SOURCE, IMAGENET_C[4:], classifier=RESNET), below),
    Claim("online table", "Online adaptation improves the ViT on all five corruptions",
          "ViT-B/32 +7.0, +20.3, +9.7, +20.4, +2.1", "02", "one_by_one",
          by_shift("online", SOURCE, IMAGENET_C, classifier=VIT)),
    Claim("online table", "Online it is ahead of TENT and CoTTA", "ResNet-50 mean 29.7 to 27.5, 27.4", "02", "online",
          each([("diffusion_tta online/iid", "tent/iid"), ("diffusion_tta online/iid", "cotta/iid")], ROW_NAMES)),
    Claim("both tables", "Online adaptation gains more than single-sample adaptation",
          "ConvNeXt-T, Gaussian noise 16.4: 47.4 to 21.0", "02", "one_by_one",
          each([("online", "episodic")], ROW_NAMES)),
    Claim("summary", "The mean of classifier and Diffusion Classifier brings no gain", "", "02", "rivals",
          naive_ensemble, no_gain),
    Claim("figures", "The true class is found by averaging over many noise levels, not at one", "", "01", "reading",
          each([(READER, "reader/6 pairs/150..600")], {READER: "48 pairs", "reader/6 pairs/150..600": "6 pairs"},
               shifts=VALIDATION)),
    Claim("figures", "The diffusion loss falls during adaptation", "", "02", "test", loss_falls),
    Claim("ablation of components", "The loss at one random noise level hurts", "-2.9", "02", "ablations",
          each([(f"{K10}one random t an update", SOURCE)], ROW_NAMES), below),
    Claim("ablation of components", "Many noise levels per update are the main gain", "+4.8", "02", "ablations",
          each([(f"{K10}+ many t, one noise", f"{K10}one random t an update")], ROW_NAMES)),
    Claim("ablation of components", "Fresh noise for each level adds to it", "+0.2", "02", "ablations",
          each([(ALL, f"{K10}+ many t, one noise")], ROW_NAMES)),
    Claim("ablation of components", "Adapting the diffusion model too adds to it", "+1.1", "02", "ablations",
          each([(f"{K10}+ adapting the DiT (10 scenes)", ALL)], ROW_NAMES)),
    Claim("ablation of parameters", "All parameters are ahead of logits, batch norm or last layer alone",
          "a list without numbers", "02", "ablations",
          each([(ALL, f"{K11}{k}") for k in ("logits", "batch norm", "last layer")], ROW_NAMES)),
    Claim("ablation of parameters", "An untrained network stays at chance", "a list without numbers", "02",
          "ablations", at_chance, no_gain),
    Claim("ablation of the batch", "A larger effective batch is better", "a curve", "02", "ablations",
          each([(f"{K12}64 pairs", f"{K12}4 pairs"), (f"{K12}16 pairs", f"{K12}1 pair")], ROW_NAMES)),
    Claim("features; CLIP table", "CLIP is improved by Stable Diffusion, zero-shot",
          "ViT-B/32: Food101 +3.6, CIFAR-100 +1.6, Aircraft +3.2, Pets +2.7, Flowers +1.0, ImageNet +3.3", "03",
          "text_k7", of_gain(ADAPTED)),
    Claim("CLIP table", "The larger CLIP gains less", "mean of six sets +2.6, +1.1, +0.7", "03", "text_k7",
          larger_gains_less, below),
    Claim("features", "Complex prompts help the adaptation of CLIP", "no numbers", "03", "text_k13",
          each([("clip_lora/templates", "clip_lora/one"), ("clip_full/templates", "clip_full/one")], ROW_NAMES)),
    Claim("features", "LoRA in Stable Diffusion helps the adaptation of CLIP", "no numbers", "03", "text_k13",
          each([("clip_lora+sd_lora/one", "clip_lora/one")], ROW_NAMES)),
    Claim("web page", "Adapted CLIP tells the captions of Winoground apart better", "a figure", "03", "winoground",
          captions_told_apart),
    Claim("features; lists", "Segmentation improves under six corruptions (mean class accuracy)",
          "noise +1.1, fog +2.1, frost +0.9, snow +1.4, contrast +1.1, shot noise +0.4", "04", "maps_classes",
          of_maps("mean class accuracy", MAP_SHIFTS)),
    Claim("features; lists", "... and stays as it is on clean images", "66.1 to 66.1", "04", "maps_classes",
          of_maps("mean class accuracy", ["clean"]), no_gain),
    Claim("features; lists", "Depth improves under five corruptions (SSIM)",
          "noise +3.0, fog +2.8, frost +0.8, snow +1.4, shot noise +0.8", "04", "maps_depth",
          of_maps("SSIM", [s for s in MAP_SHIFTS if s != "contrast"])),
    Claim("features; lists", "... and not on contrast and clean images", "contrast 0.0, clean +0.2", "04",
          "maps_depth", of_maps("SSIM", ["contrast", "clean"]), no_gain),
]  # fmt: skip

SDA = [
    Claim("Table 1", "DiffPure is below the source on ImageNet-C", "16.8, 24.8, 28.8 to 18.7, 33.1, 39.3", "05",
          "sda_corruptions", by_classifier("diffpure", SOURCE), below),
    Claim("Table 1", "DDA is ahead of the source", "29.7, 40.0, 44.2 to 18.7, 33.1, 39.3", "05", "sda_corruptions",
          by_classifier("dda, sum", SOURCE)),
    Claim("Table 1", "SDA is ahead of DDA", "32.5, 42.5, 47.0, 47.4, 51.9 to 29.7, 40.0, 44.2, 44.5, 49.4", "05",
          "sda_corruptions", by_classifier("sda, sum", "dda, sum")),
    Claim("Table 1", "SDA is ahead of the source", "+13.8, +9.4, +7.7, +6.9, +6.3", "05", "sda_corruptions",
          by_classifier("sda, sum", SOURCE)),
    Claim("Table 1", "SDA is ahead of MEMO", "32.5, 42.5, 47.0 to 24.7, 29.5, 37.8", "05", "sda_corruptions",
          by_classifier("sda, sum", "memo")),
    Claim("Table 1", "SDA is ahead of GDA", "32.5, 42.5, 47.0 to 31.8, 42.2, 44.8", "05", "sda_corruptions",
          each([("sda, sum", "gda-like")], ROW_NAMES), reason="GDA-like, one of its three terms, on three corruptions"),
    Claim("Figures 3, 5", "SDA is ahead of DiffPure under every corruption", "15 of 15", "05", "sda_corruptions",
          by_shift("sda, sum", "diffpure", TEST)),
    Claim("Figures 3, 5", "SDA is ahead of DDA under all corruptions but one", "14 of 15; not contrast", "05",
          "sda_corruptions", by_shift("sda, sum", "dda, sum", TEST), all_but_one),
    Claim("Figures 3, 5", "DDA is below the source on contrast", "bars", "05", "sda_corruptions",
          by_shift("dda, sum", SOURCE, ["contrast"]), below),
    Claim("Table 2", "On the watermark SDA is ahead of the source",
          "+17.0, +0.8, +1.8, +1.5, +2.2", "05", "sda_watermark",
          by_classifier("sda, sum", SOURCE, ["watermark"])),
    Claim("Table 2", "... and of DDA", "+1.9, +1.4, +1.5, +2.3, +2.0", "05", "sda_watermark",
          by_classifier("sda, sum", "dda, sum", ["watermark"])),
    Claim("Table 2", "DDA is below the source of the Swins there", "65.9 to 66.5, 68.3 to 69.1", "05", "sda_watermark",
          lambda runs: {k: minus(runs, "dda, sum", SOURCE, f"classifier/{k}", ["watermark"])
                        for k in ("swin", "swin-wide")}, below),
    Claim("Table 2", "DiffPure is below the source there", "29.1, 52.7, 55.8 to 37.7, 66.5, 67.6", "05",
          "sda_watermark", by_classifier("diffpure", SOURCE, ["watermark"]), below),
    Claim("Table 4", "Synthetic images without alignment bring nothing over DDA", "+0.7, -0.8, 0.0", "05", "sda_parts",
          by_classifier("+ synthetic", "dda, sum", TEST), no_gain),
    Claim("Table 4", "The alignment brings the gain", "+2.1, +3.3, +2.8", "05", "sda_parts",
          by_classifier("+ synthetic, aligned (sda)", "+ synthetic", TEST)),
    Claim("Table 5", "One image per class is ahead of none", "+2.2, +2.3, +1.3", "05", "sda_number",
          by_classifier("sda, 1 a class", "sda, 0 a class", TEST)),
    Claim("Table 5", "Fifty per class are ahead of one", "+0.6, +0.2, +1.5", "05", "sda_number",
          by_classifier("sda, 50 a class", "sda, 1 a class", TEST)),
    Claim("Table 6", "Guidance of the synthesis hurts, the more the worse", "32.5, 32.0, 30.1 (ResNet-50)", "05",
          "sda_cfg", each([("sda, cfg 1", "sda, cfg 1.5"), ("sda, cfg 1.5", "sda, cfg 4")], shifts=TEST)),
    Claim("Table 8", "TENT is below the source at batch 1", "ResNet-50 18.7: 3.0 in mixed classes", "05", "sda_order",
          each([("tent/iid, batch 1", SOURCE)], ROW_NAMES, classifier=RESNET), below),
    Claim("Table 8", "... and at batch 64 where classes come sorted", "ResNet-50 18.7: 0.4", "05", "sda_order",
          each([("tent/correlated, batch 64", SOURCE)], ROW_NAMES, classifier=RESNET), below),
    Claim("Table 8", "TENT is ahead of the source at batch 64 in mixed classes, for networks with layer norm",
          "Swin-T 43.3 to 33.1, ConvNeXt-T 48.8 to 39.3", "05", "sda_order",
          each([("tent/iid, batch 64", SOURCE)], ROW_NAMES, classifier=VIT)),
    Claim("Figures 4, 6", "With SDA the Grad-CAM map is nearest to that of the source on the clean image", "panels",
          "05", reason="a picture of a few images; the notebook measures the correlation of its maps live"),
    Claim("Table 3", "Fine-tuning costs less than 0.6% of pretraining", ".04 of 6.9 hours (ResNet-50)", "05",
          reason=HARDWARE),
    Claim("Table 7", "Settings of the fine-tuning", "", "05", reason="settings, not a claim; the card of SDA has them"),
]  # fmt: skip

DIFFTPT = [
    Claim("abstract", "DiffTPT is ahead of TPT on natural shifts", "+5.13 on average", "06", "prompt_s1",
          by_classifier(VARIATION, TPT4)),
    Claim("abstract", "... and on other data sets", "+5.13 on average; +2.19 in its table", "06", "prompt_s2",
          on_questions([(VARIATION, TPT4)])),
    Claim("natural shifts", "TPT is ahead of zero-shot CLIP on natural shifts", "47.26 to 44.18", "06", "prompt_s1",
          by_classifier(TPT4, "zero-shot")),
    Claim("natural shifts", "DiffTPT is ahead of zero-shot CLIP there", "48.71 to 44.18", "06", "prompt_s1",
          by_classifier(VARIATION, "zero-shot")),
    Claim("ten sets", "... and on other data sets", "59.85 to 56.63", "06", "prompt_s2",
          on_questions([(VARIATION, "zero-shot")])),
    Claim("natural shifts", "ImageNet-A and Sketch gain more than ImageNet", "+9.2, +3.7 to +2.6", "06", "prompt_s1",
          gains_over_clean(VARIATION, ("a", "sketch"))),
    Claim("natural shifts", "Prompts that CoOp learned are a better start", "63.3 to 58.2 on ImageNet", "06",
          "prompt_init", on_questions([("CoOp", "zero-shot"), ("DiffTPT from CoOp", "DiffTPT")])),
    Claim("Figure 1", "Generated views are more diverse than random crops", "points in a plane", "06", "prompt_views",
          more_spread, reason="spread of the features, in hundredths"),
    Claim("Figure 2", "Both filters are ahead of none", "", "06", "prompt_filters",
          each([("both, the code's", "no filter"), ("both, the paper's", "no filter")], ROW_NAMES)),
    Claim("Figure 2", "The cosine filter adds to the entropy filter", "", "06", "prompt_filters",
          each([("both, the code's", "entropy")], ROW_NAMES)),
    Claim("figures", "More views are better", "a curve", "06", "prompt_budget",
          each([("128 views", "16 views"), (VARIATION, "8 views")], ROW_NAMES)),
    Claim("figures", "Four steps are better than one", "a curve", "06", "prompt_budget",
          each([(VARIATION, "1 steps")], ROW_NAMES | {"1 steps": "one step"})),
    Claim("figures", "A mixture of both kinds of views is better than either", "a curve", "06", "prompt_budget",
          each([(VARIATION, "0% generated"), (VARIATION, "100% generated")], ROW_NAMES)),
]  # fmt: skip

CLAIMS = {
    "Diffusion-TTA: the public README and a summary of the paper (Prabhudesai et al., 2023)": DIFFUSION_TTA,
    "SDA: the paper (Guo et al., 2025)": SDA,
    "DiffTPT: the public README and its tables (Feng et al., 2023)": DIFFTPT,
}


def findings() -> dict[str, list[Finding]]:
    """Document -> what the records say of each of its claims."""
    return {document: list(map(find, group)) for document, group in CLAIMS.items()}


def write(path: Path = PAGE) -> str:
    """Write the page; returns the sentence that counts its verdicts."""
    text = page(findings())
    atomic_write(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
    return next(line for line in text.splitlines() if line.startswith("Of "))

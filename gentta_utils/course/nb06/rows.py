"""The rows of notebook 06's tables by name, so that reports and figures find them."""

ZERO_SHOT = "zero-shot"
TEMPLATES = "zero-shot, all templates"
LOW = "zero-shot, low view"
MEAN = "mean of confident views"
ZERO = "ZERO"
MTA = "MTA"
PUBLISHED = "TPT as published"
ZERO_PUBLISHED = "ZERO as published"
MTA_PUBLISHED = "MTA as published"
TPT1 = "TPT, 1 step"
TPT4 = "TPT, 4 steps"
TPT_MANY = "TPT, 4 steps, 15 views count"  # as many as of DiffTPT's
LOW_CROPS = "TPT, crops of the low view"
CTPT = "C-TPT, 4 steps"
TRUE = "tuned on the true label"
DIFFTPT = {  # generator -> row
    "variation": "DiffTPT, variations",
    "image_to_image": "DiffTPT, image to image",
    "prompted_empty": "DiffTPT, empty prompt",
    "prompted_own": "DiffTPT, own prediction as prompt",
}
PARALLEL = "DiffTPT, variations, the paper's filter"
ON_THEIRS = {  # untuned methods on the views of DiffTPT with variations
    "mean": "mean of DiffTPT's views",
    "zero": "ZERO on DiffTPT's views",
    "mta": "MTA on DiffTPT's views",
}
ALIKE = "DiffTPT, one image-to-image view 31 times"
PURIFIED = "mean of image-to-image views"
ONE_PURIFIED = "mean of the image and one such view"
TUNED_PURIFIED = "tuned on these views, read on the image"
READ_PURIFIED = "tuned on these views, read on them"
TDA = "TDA"
TDA_PUBLISHED = "TDA as published for ImageNet"
DOTA = "DOTA"
DIFFUSION_TTA = "Diffusion-TTA"
DRAWN = {generator: label.removeprefix("DiffTPT, ") for generator, label in DIFFTPT.items()}  # of views alone
FILTERS = {  # row -> filter
    "no filter": "none",
    "entropy": "entropy",
    "cosine": "cosine",
    "both, the code's": "sequential_logits",
    "both, the paper's": "parallel_features",
}
SHOWN = (ZERO, ZERO_PUBLISHED, TPT4, *DIFFTPT.values(), PURIFIED)  # in the figure of gains
VIEWS = "views: "  # before the kind of views, in the table of which views help
COUNTED = ("count", "drawn among them", "right, crops", "right, drawn")  # kept of filters in the place of a loss
QUANTITIES = (  # what that table keeps of an image's views in the place of a loss
    "cosine, all",
    "cosine, kept",
    "spread, all",
    "spread, kept",
    "right, all",
    "right, kept",
)

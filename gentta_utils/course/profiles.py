"""What a notebook asks of its profile: images, names of classes, models, settings.

`profile(name, data_root)` makes one object with all of it, so that no notebook asks which profile it has: `Scenes` for
the small models and rendered images of this repository, `ImageNet` for published weights and photographs on disk.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..common.devices import check_device
from ..common.paths import ROOT
from ..common.validate import check_choice, check_names, checked
from ..evaluation import chosen
from ..evaluation.generated import model_of
from ..evaluation.statistics import ON_VALIDATION
from ..methods import METHODS, dda, diffpure, diffusion_classifier, diffusion_tta, source
from ..methods.base import Models
from ..methods.purifier import what_changes
from ..models import hub, zoo
from ..recipes import aligned
from ..streams import folders, open_vocabulary
from ..streams import stream as streams_stream
from ..streams.folders import FolderSpec
from ..streams.scenes import SceneSpec
from ..streams.stream import Stream
from ..world import labels, renditions, scenes, words
from .drawn import Drawn
from .map_profiles import PhotoMaps, SceneMaps
from .trials import SEED_STEP, check_prompts, published_for

# The published SGD settings (ViT-B/32; docs/methods/diffusion_tta.md) with the DiT frozen: nothing was tuned by this
# project at this size
PUBLISHED_SGD = diffusion_tta.PUBLISHED | dict(optimizer="sgd", lr=5e-3, adapt_denoiser=False)
# And of CLIP and Stable Diffusion: the image tower is adapted, in the single prompt; 16 times 12 pairs per update
PUBLISHED_TEXT = PUBLISHED_SGD | dict(pairs=192, micro_batch=12, param_set="tower", images_at_once=4)

# the natural shifts of scenes are named after these
NATURAL = {name: f"imagenet-{name}" for name in renditions.SHIFTS if f"imagenet-{name}" in folders.LAYOUTS}


@dataclass(frozen=True)
class World:
    """Some unshifted images: image (N, 3, S, S) in [0, 1], label (N,), id (N,) and a caption each."""

    image: Tensor
    label: Tensor
    id: Tensor
    caption: list[str]

    def __len__(self) -> int:
        return len(self.label)


def given(changes: dict) -> dict:
    """The parameters that a notebook was given: None stands for "as chosen"."""
    return {name: value for name, value in changes.items() if value is not None}


@dataclass(frozen=True)
class Profile:
    """What both profiles do alike; `seed` is that of all random draws."""

    data_root: str = "data"
    device: str = "cpu"
    seed: int = 0

    name: ClassVar[str]
    noun: ClassVar[str]  # what its images are called
    described: ClassVar[str]  # and what they show
    chosen_on: ClassVar[str]  # how settings were chosen, as records state it
    recorded: ClassVar[bool]  # whether the committed tables are of this profile
    clip: ClassVar[bool]  # x0_hat to [-1, 1] in synthesis: pixels, not latents
    aligner: ClassVar[str]  # the diffusion model that changes images, asked without a class
    default_label_set: ClassVar[str]  # what CLIP is asked of an image where nothing else is said
    clips: ClassVar[tuple[str, ...]]  # the CLIPs that there are settings for

    def load(self, model: str, **how) -> nn.Module:
        """A model on the device; `how` and what is raised as in `zoo.load`."""
        return zoo.load(model, self.name, self.device, **how)

    def models(self, classifier: str, denoiser: str = "denoiser/dit", **how) -> Models:
        """A classifier and the denoiser that gives it feedback; `how` goes to the denoiser's `load`."""
        return Models(self.load(classifier), self.load(denoiser, **how))

    def card(self, model: str) -> dict:
        """The card of a model, as `zoo.card`."""
        return zoo.card(model, self.name)

    def check_text_run(
        self, clip_name: str, adapt: str | None, prompts: str, label_set: str | None, shifts: list[str] | str
    ) -> None:
        """Stop before anything runs where a parameter of notebook 03 is none of its choices.

        Raises ValueError in one sentence that lists them; for label sets as `label_set`."""
        self.check_adapted(clip_name, adapt)
        check_prompts(prompts, self.label_set(label_set))
        check_names("shifts", shifts)

    def check_adapted(self, clip_name: str, kind: str | None) -> None:
        """Raise ValueError for a CLIP without settings, or an unknown kind of adaptation; None: as chosen."""
        from .nb03.choose import KINDS  # late: only notebook 03 asks

        if clip_name not in self.clips:
            raise ValueError(f"there are no settings for {clip_name!r}: choose one of {', '.join(self.clips)}")
        if kind is not None:
            check_choice("adapt", kind, KINDS)

    def method(self, row: str, models: Models, classifier: str, ours: diffusion_tta.Settings, small: bool = False):
        """A configured method by the name of its row in a table, with what was chosen for it.

        "source", "source, low view", a name of `METHODS`, or that and more words, as "diffusion_tta online". `ours`
        are the settings of "diffusion_tta", online too where none were chosen for that; the Diffusion Classifier has
        about as many evaluations, among ten classes.

        Args:
            small: as few views, pairs and updates as will run.

        Raises ValueError for an unknown name, and where the models do not fit."""
        name = row.replace(",", "").split(" ")[0]
        if name not in METHODS:
            raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
        if name == "source":
            how = source.Settings("low" if "low" in row else "full")
        elif name == "diffusion_classifier":
            how = diffusion_classifier.Settings(
                pairs=2 if small else 9, window=self.window, prune=min(10, models.classifier.classes)
            )
        elif row == "diffusion_tta":
            how = ours
        elif name == "diffusion_tta" and not (self.recorded and row in chosen.chosen_rows(classifier)):
            how = replace(ours, online=True)
        else:
            how = self.rival(row, classifier)
        changes = {"seed": self.seed} if how is not ours else {}
        if small:
            changes |= {"updates": 2, "pairs": 2} if name == "diffusion_tta" else {"views": 4, "updates": 1, "steps": 2}
        return METHODS[name].configure(models, replace(how, **{k: v for k, v in changes.items() if hasattr(how, k)}))

    def drawn(self, generator: str, models: Models, prompts: list[str], n: int):
        """What a method calls for n generated views: images (B, 3, S, S), ids (B,) -> (B, n, 3, S, S) in [0, 1], by one
        of `drawn.GENERATORS`; `prompts` are those of the classes of `models`.

        Raises ValueError for an unknown generator."""
        return self._drawn(generator).views(models, prompts, n)

    def generator_model(self, generator: str) -> str:
        """The name of the diffusion model behind a generator. Raises ValueError for an unknown one."""
        return model_of(self._drawn(generator).kind, self.name)


class Scenes(SceneMaps, Profile):
    """The scenes and models of this repository, with the settings that were chosen on the validation corruptions."""

    name, noun, described = "scenes", "scenes", "one coloured solid each on a textured floor before a wall"
    chosen_on, recorded, clip, aligner = ON_VALIDATION, True, True, aligned.ALIGNER
    default_label_set = "category"
    clips = ("clip/small", "clip/large")

    def require(self, *models: str) -> None:
        """Nothing to do: what is shipped is checked when it is loaded."""

    def note(self) -> None:
        """Nothing to say: the committed records are of this profile."""

    def world(self, n: int = 120) -> World:
        """The first n of the shipped scenes."""
        shipped = scenes.shipped()
        return World(shipped.image[:n], shipped.label[:n], shipped.id[:n], shipped.caption[:n])

    def stream(
        self,
        n: int,
        shift: str = "clean",
        severity: int = 0,
        split: str = "test",
        start: int = 0,
        resize: int | None = None,
    ) -> Stream:
        """n scenes of a split under a shift, from number `start` on; `seed` draws the corruption.

        `resize` is of photographs alone. Raises ValueError for a wrong shift or severity."""
        return streams_stream.stream(SceneSpec(n, shift, severity, split, start, self.seed))

    def classes(self, subset: tuple[int, ...] | None = None) -> tuple[str, ...]:
        """A name for each class, or of the classes `subset` of a stream."""
        return tuple(labels.CLASSES) if subset is None else tuple(labels.CLASSES[k] for k in subset)

    def label_set(self, name: str | None = None) -> words.LabelSet | open_vocabulary.PhotoLabels:
        """What CLIP is asked: `classes`, `templates`, `prompts(template)`; None is the default one.

        Raises ValueError for an unknown name."""
        return words.label_set(name or self.default_label_set)

    def labelled_stream(
        self,
        n: int,
        label_set: str | None = None,
        shift: str = "clean",
        severity: int = 0,
        split: str = "test",
        start: int = 0,
    ) -> Stream:
        """As `stream`, with the labels of a label set. Raises ValueError where the shift does not keep them."""
        name = label_set or self.default_label_set
        return streams_stream.stream(SceneSpec(n, shift, severity, split, start, self.seed, name))

    @property
    def window(self) -> tuple[int, int]:
        """The timesteps that the Diffusion Classifier reads."""
        return chosen.chosen_window()

    def settings(self, classifier: str, models: Models | None = None, **changes) -> diffusion_tta.Settings:
        """The chosen settings of Diffusion-TTA for a classifier, with the changes that are not None.

        Other weights need another step: with `models`, where `param_set` is given without an `lr`, SGD takes the rate
        of the rule (`diffusion_tta.learning_rate`) for them."""
        changes = given(changes)
        settings = chosen.tuned(classifier, **{"seed": self.seed} | changes)
        if models is None or "param_set" not in changes or "lr" in changes or settings.optimizer != "sgd":
            return settings
        from .nb02.choose import rate_of  # late: only notebook 02 asks

        return replace(settings, lr=rate_of(models, settings))

    def text_settings(
        self, classifier: str, view: str = "full", kind: str | None = None, **changes
    ) -> diffusion_tta.Settings:
        """The chosen settings of Diffusion-TTA for a CLIP and the text model, with the changes that are not None.

        `kind` is what is adapted, one of `nb03.choose.KINDS`; None: what was chosen.

        Raises as `check_adapted`."""
        self.check_adapted(classifier, kind)
        return chosen.tuned_text(classifier, view, kind, **{"seed": self.seed} | given(changes))

    def prompt_settings(self, method: str, clip: str, label_set: str | None = None, **changes):
        """The chosen settings of "tpt", "difftpt", "zero" or "mta" for a CLIP and a label set, with changes that are
        not None."""
        asked = label_set or self.default_label_set
        return chosen.prompted(method, clip, asked, **{"seed": self.seed} | given(changes))

    def _drawn(self, generator: str) -> Drawn:
        return Drawn(generator, chosen.prompt_choice()["levels"].get(generator), self.name, self.device)

    def rival(self, row: str, classifier: str):
        """Settings of another method for a row of `nb02.choose.select_rivals`, e.g. "tent" or "diffusion_tta online":
        those chosen, or its defaults."""
        if row in chosen.chosen_rows(classifier):
            return chosen.rival(row, classifier)
        return _default(self, row, classifier)

    def purifier(self, method: str, **changes):
        """The chosen settings of "diffpure" or "dda", with the changes that are not None."""
        return chosen.purifier(method, **{"seed": self.seed} | given(changes))

    def aligned_copy(self, classifier: str, settings) -> nn.Module | None:
        """The shipped copy of a classifier that was fine-tuned on images of this alignment; None if there is none."""
        if f"{classifier}-sda" not in zoo.names():
            return None
        shipped = self.load(f"{classifier}-sda")
        return shipped if shipped.alignment == what_changes(settings) else None


class ImageNet(PhotoMaps, Profile):
    """ImageNet's images under `data_root` (relative to the checkout) and published weights, with published settings."""

    name, noun, described = "imagenet", "photographs", "of ImageNet"
    chosen_on, recorded, clip, aligner = "published", False, False, hub.ADM
    default_label_set = "pets"
    clips = tuple(name for name in hub.REPOSITORIES if name.startswith("clip/"))

    def require(self, *models: str) -> None:
        """Stop before anything runs where weights of these models are missing.

        Raises FileNotFoundError with a line for each."""
        hub.require(models)

    def note(self) -> None:
        """Say, above what a notebook shows from the committed records, that it is not a result of this run."""
        print("From the committed records of the course's small models, not from this run:")

    def world(self, n: int = 120) -> World:
        """n images of the validation set. Raises as `stream`."""
        s, names = self.stream(n), self.classes()
        return World(s.images, s.labels, s.ids, [f"a photo of a {names[k]}" for k in s.labels.tolist()])

    def stream(
        self,
        n: int,
        shift: str = "clean",
        severity: int = 0,
        split: str = "test",
        start: int = 0,
        resize: int | None = None,
    ) -> Stream:
        """n images under a shift, in memory; `start` and `seed` draw them, there is no other `split` than "test".

        A corruption comes from the files of ImageNet-C where they are there, else it is made in memory; the records say
        which. A natural shift is a data set of its own, ImageNet-A for "a"; where it has 200 classes, methods take
        `models.restrict(s.classes)`.

        `resize` is that of the classifier (`Classifier.resize`), from which images are cropped; None is 256, from which
        ImageNet-C's files were. Where clean images and those files differ in it, the protocol line says so.

        Raises ValueError for a wrong shift or severity, FileNotFoundError or ValueError for folders that are missing or
        not what they should be."""
        root, crop = self._root, {"resize": resize} if resize else {}
        at = {"n": n, "seed": start + SEED_STEP * self.seed, **crop}
        if shift in NATURAL:
            return self._natural(shift, severity, FolderSpec(NATURAL[shift], str(root), **at))
        stored = severity > 0 and folders.folder_of("imagenet-c", root, shift, severity).is_dir()
        spec = FolderSpec("imagenet-c" if stored else "imagenet", str(root), shift=shift, severity=severity, **at)
        return streams_stream.stream(spec).rows(torch.arange(n))

    def classes(self, subset: tuple[int, ...] | None = None) -> tuple[str, ...]:
        """A name for each class, or of the classes `subset` of a stream; all are different."""
        names = open_vocabulary.imagenet_names()
        return names if subset is None else tuple(names[k] for k in subset)

    def label_set(self, name: str | None = None) -> words.LabelSet | open_vocabulary.PhotoLabels:
        """What CLIP is asked of a data set: `classes`, `templates`, `prompts(template)`; None is the default one.

        Raises ValueError for an unknown name, FileNotFoundError or ValueError where the data set is missing or not what
        it should be."""
        return open_vocabulary.label_set(name or self.default_label_set, self._root)

    def labelled_stream(
        self,
        n: int,
        label_set: str | None = None,
        shift: str = "clean",
        severity: int = 0,
        split: str = "test",
        start: int = 0,
    ) -> Stream:
        """n images of a data set as CLIP sees them, in memory, with its labels; else as `stream`.

        Corruptions are made in memory; natural shifts are of the label set "imagenet" alone. Raises as `stream`."""
        name = label_set or self.default_label_set
        if shift in NATURAL and name != "imagenet":
            raise ValueError(f"shift {shift!r} is a data set with ImageNet's classes: choose the label set 'imagenet'")
        at = dict(n=n, seed=start + SEED_STEP * self.seed)
        if shift in NATURAL:
            return self._natural(shift, severity, open_vocabulary.PhotoSpec(NATURAL[shift], str(self._root), **at))
        spec = open_vocabulary.PhotoSpec(name, str(self._root), shift=shift, severity=severity, **at)
        return streams_stream.stream(spec).rows(torch.arange(n))

    def _natural(self, shift: str, severity: int, spec) -> Stream:
        if severity:
            raise ValueError(f"severity={severity}: {NATURAL[shift]} has none, leave it at 0")
        s = streams_stream.stream(spec).rows(torch.arange(spec.n))
        return replace(s, about=s.about | {"shift": shift})  # tables tell shifts apart by this name

    @property
    def _root(self) -> Path:
        return ROOT / Path(self.data_root).expanduser()

    @property
    def window(self) -> tuple[int, int]:
        """The timesteps that the Diffusion Classifier reads: all."""
        return (0, 1000)

    def settings(self, classifier: str, models: Models | None = None, **changes) -> diffusion_tta.Settings:
        """The published settings of Diffusion-TTA, with the changes that are not None, for any classifier."""
        return diffusion_tta.Settings(**PUBLISHED_SGD | {"seed": self.seed} | given(changes))

    def text_settings(
        self, classifier: str, view: str = "full", kind: str | None = None, **changes
    ) -> diffusion_tta.Settings:
        """The published settings of Diffusion-TTA for any CLIP and Stable Diffusion, with the changes that are not
        None; the published rate whatever is adapted, one of `nb03.choose.KINDS`, None: the image tower. Raises as
        `check_adapted`."""
        from .nb03.choose import KINDS  # late: only notebook 03 asks

        self.check_adapted(classifier, kind)
        adapted = PUBLISHED_TEXT | (KINDS[kind] if kind else {})
        return diffusion_tta.Settings(**adapted | {"seed": self.seed, "view": view} | given(changes))

    def prompt_settings(self, method: str, clip: str, label_set: str | None = None, **changes):
        """The published settings of "tpt", "difftpt", "zero" or "mta", the same for any CLIP and label set, with the
        changes that are not None."""
        module = METHODS[method]
        return module.Settings(**module.PUBLISHED | {"seed": self.seed} | given(changes))

    def _drawn(self, generator: str) -> Drawn:
        return Drawn(generator, None, self.name, self.device)

    def rival(self, row: str, classifier: str):
        """Settings of another method for a row of a table, e.g. "diffusion_tta online": those published for ImageNet,
        or its defaults."""
        return replace(_default(self, row, classifier), **published_for(row, classifier))

    def purifier(self, method: str, **changes):
        """The published settings of "diffpure" or "dda" without the faults of the code (docs/methods), with the changes
        that are not None."""
        usual = dict(scale=dda.scale_at(256), images_at_once=4) if method == "dda" else diffpure.PUBLISHED_IMAGENET
        return {"dda": dda, "diffpure": diffpure}[method].Settings(**usual | {"seed": self.seed} | given(changes))

    def aligned_copy(self, classifier: str, settings) -> nn.Module | None:
        """None: no copy of a published classifier is shipped."""
        return None


@checked
def profile(name: str = "scenes", data_root: str = "data", device: str = "cpu", seed: int = 0) -> Scenes | ImageNet:
    """The profile that a notebook's parameters ask for. Raises ValueError for an unknown name or device."""
    check_device(device)
    return {"scenes": Scenes, "imagenet": ImageNet}[zoo.check_profile(name)](data_root, device, seed)


def _default(of: Scenes | ImageNet, row: str, classifier: str):
    """Settings of another method that nobody chose: its defaults, or ours carried on through the stream."""
    if row == "diffusion_tta online":
        return of.settings(classifier, online=True)
    return METHODS[chosen.method_of(row)].Settings()

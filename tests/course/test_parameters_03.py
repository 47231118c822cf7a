"""Notebook 03 with parameters that its committed run does not have: two classes, a CLIP that misses nothing, changed
settings, names that nobody knows."""

import io
from contextlib import redirect_stdout
from dataclasses import replace
from types import SimpleNamespace

import notebook_rules as rules
import pytest
import torch
from matplotlib import pyplot as plt

from gentta_utils import draw_pairs, plausible
from gentta_utils.common.paths import NOTEBOOKS
from gentta_utils.common.validate import check_names
from gentta_utils.course import plots, profile
from gentta_utils.course.nb03 import choose, figures
from gentta_utils.course.trials import Wording
from gentta_utils.methods import diffusion_tta
from gentta_utils.streams.stream import Stream
from gentta_utils.world import words


def cell(needle: str) -> str:
    """The source of the one code cell that holds this text."""
    (found,) = (
        c for c in rules.code_cells(rules.load(NOTEBOOKS / "03_clip_sd_lora.ipynb")) if needle in rules.source(c)
    )
    return rules.source(found)


def ran(needle: str, **names) -> tuple[dict, str]:
    """What a cell leaves in its names, and what it prints."""
    with redirect_stdout(io.StringIO()) as out:
        exec(compile(cell(needle), "cell", "exec"), names)
    return names, out.getvalue()


def no_push(text, x0, t, eps, z, states):
    assert z.shape[1] == len(states)  # one weight for each prompt
    return torch.zeros_like(z), torch.full((len(z),), 0.04)


# --- parameters ------------------------------------------------------------------------------------------------------

GOOD = dict(clip_name="clip/small", adapt="clip_lora", prompts="one", label_set=None, shifts=["fog"])


@pytest.mark.parametrize(
    "change, said",
    [
        (dict(clip_name="clip/small-32"), "no settings for 'clip/small-32': choose one of clip/small, clip/large"),
        (dict(adapt="lora"), "unknown adapt 'lora': choose one of clip_lora, clip_full, "),
        (dict(prompts="wrong floors"), "unknown prompts 'wrong floors': choose one of one, templates, floors"),
        (dict(shifts=[]), "shifts=[]: choose a list with at least one name"),
        (dict(shifts="fog"), "shifts='fog': choose a list with at least one name"),
        (dict(label_set="colours"), "unknown label set 'colours': choose one of category, "),
        (dict(label_set="floor", prompts="floors"), "names a second floor with the label set 'floor'"),
    ],
)
def test_what_no_choice_is_gets_a_sentence_that_lists_them(change, said):
    kit = profile("scenes")
    kit.check_text_run(**GOOD)
    with pytest.raises(ValueError) as refused:
        kit.check_text_run(**GOOD | change)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_notebook_asks_before_it_loads_anything():
    source = cell("kit.check_text_run(")
    assert source.index("check_text_run(clip_name, adapt, prompts, label_set, shifts)") < source.index("kit.load")


def test_settings_of_a_clip_that_was_not_tuned_are_refused_in_both_profiles():
    for name, first in (("scenes", "clip/small"), ("imagenet", "clip/rn50")):
        with pytest.raises(ValueError, match=f"no settings for 'clip/small-32': choose one of {first}"):
            profile(name).text_settings("clip/small-32")
        with pytest.raises(ValueError, match="unknown adapt 'lora'"):
            profile(name).text_settings("clip/small", kind="lora")


def test_floors_are_named_once():
    assert Wording("floor", "templates").templates == words.label_set("floor").templates
    with pytest.raises(ValueError, match="second floor"):
        Wording("floor", "floors")
    check_names("shifts", ["fog", "snow"])


# --- two classes, nothing missed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("K", [2, 3, 10])
def test_the_widget_has_as_many_prompts_as_there_are_classes(K):
    shown = []

    def explore(draw, alt, columns, **controls):
        shown.extend(controls)
        ax = plt.figure().subplots()
        draw(ax, **{name: initial for name, (_, _, initial) in controls.items()})
        assert [t.get_text() for t in ax.get_xticklabels()] == list(controls)
        plt.close("all")

    made, _ = ran("def make_draw", torch=torch, Tensor=torch.Tensor, plots=plots, push_on_logits=no_push)
    x = torch.zeros(1, 4, 2, 2)
    ran(
        "three = [",
        make_draw=made["make_draw"],
        explore=explore,
        **dict(text=None, x0=x, t=None, eps=None, E=torch.zeros(K, 3, 2), label=1, rival=0, j=0, said=torch.rand(1, K)),
    )
    assert shown == ["true", "said", "third"][:K]


@pytest.mark.parametrize("K", [2, 10])
def test_the_path_of_one_image_is_drawn_for_any_number_of_classes(K):
    fig = plots.adaptation(torch.zeros(3, 8, 8), torch.rand(3, K), [0.1, 0.2], list("abcdefghij"[:K]), 1)
    assert len(fig.axes[1].lines) == min(4, K)
    plt.close(fig)


def test_each_kind_of_adaptation_says_what_moves():
    assert set(figures.MOVES) == set(choose.KINDS)


def test_without_an_error_of_clip_the_first_image_stands_and_it_is_said():
    said = torch.tensor([[5.0, 1.0], [1.0, 5.0]])
    denoiser = SimpleNamespace(encode=lambda x: x, states=torch.zeros(2, 3, 4))
    names, printed = ran(
        "wrong = (said.argmax(1)",
        said=said,
        stream=SimpleNamespace(labels=torch.tensor([0, 1]), images=torch.zeros(2, 3, 8, 8), ids=torch.arange(2)),
        error_table=lambda *args, **how: SimpleNamespace(read=lambda: torch.tensor([1])),
        here=SimpleNamespace(denoiser=denoiser),
        ours=SimpleNamespace(window=(300, 850), temperature=5.0),
        text=SimpleNamespace(shape=(3, 8, 8), tokenizer=SimpleNamespace(tokenize=str.split)),
        push_on_logits=no_push,
        **dict(fast=True, seed=0, device="cpu", torch=torch, plausible=plausible, draw_pairs=draw_pairs),
        **dict(names=["small", "large"], PROMPTS=["small", "large"]),
    )
    assert "CLIP misses none of these 2" in printed
    assert (names["j"], names["label"], names["rival"]) == (0, 0, 1)  # not compared with itself


@pytest.mark.parametrize("missing, said", [(0, "misses none of these 6"), (2, "T 5: larger for the truth in 0 of 2")])
def test_the_push_on_missed_images_survives_that_there_are_none(missing, said):
    labels = torch.zeros(6, dtype=torch.long)
    z = torch.tensor([[2.0, 1.0]]).repeat(6, 1)
    z[:missing] = z[:missing].flip(1)
    trial = Stream(torch.zeros(6, 3, 8, 8), labels, torch.arange(6), {})
    kit = SimpleNamespace(recorded=True, labelled_stream=lambda *args: trial)
    here = SimpleNamespace(classifier=lambda x: z, denoiser=SimpleNamespace(encode=lambda x: x))
    text = SimpleNamespace(shape=(3, 8, 8))
    _, printed = ran(
        "z_trial = ",
        **dict(kit=kit, here=here, text=text, ours=SimpleNamespace(window=(300, 850)), push_on_logits=no_push),
        **dict(
            fast=True, seed=0, device="cpu", torch=torch, draw_pairs=draw_pairs, label_set=None, E=torch.zeros(2, 3, 4)
        ),
    )
    assert said in printed


# --- the headline ----------------------------------------------------------------------------------------------------

OURS = diffusion_tta.Settings(lr=1.0)
RUN = dict(asked_for=OURS, prompts="one", asked=SimpleNamespace(name="category"), severity=5)


@pytest.mark.parametrize(
    "change",
    [{}, dict(asked_for=replace(OURS, lr=2.0)), dict(prompts="templates"), dict(severity=3),
     dict(asked=SimpleNamespace(name="colour")), dict(kit=SimpleNamespace(recorded=False))],
)  # fmt: skip
def test_the_headline_holds_this_run_and_the_record_only_of_the_same_settings(change):
    shown = {}
    names = RUN | dict(
        evaluation=SimpleNamespace(gain=lambda runs: runs),
        nb03=SimpleNamespace(figures=SimpleNamespace(headline=lambda runs: {"gain on 15 corruptions": "recorded"})),
        display=SimpleNamespace(headline=lambda **numbers: shown.update(numbers)),
        **dict(fifteen=None, shifts=["fog"], clip_name="clip/small", ours=OURS, live={"diffusion_tta": "live"}),
        kit=SimpleNamespace(recorded=True),
    )
    ran("display.headline(", **names | change)
    assert shown["gain on fog, clip/small"] == "live"
    assert ("gain on 15 corruptions" in shown) == (not change)

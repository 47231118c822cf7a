"""What is looked at where feedback on maps fails: edges, wrong pixels, objects, on maps made by hand."""

import torch

from gentta_utils.course.nb04 import where
from gentta_utils.world.maps import STUFF

FIRST = len(STUFF)


def test_edges_are_where_neighbours_differ():
    truth = torch.zeros(1, 16, 16, dtype=torch.uint8)
    truth[..., 8:] = FIRST
    found = where.near_edges(truth)[0]
    assert found[:, 6:11].all()
    assert not found[:, :6].any()
    assert not found[:, 11:].any()
    depth = torch.full((1, 16, 16), 2.0)
    depth[:, 8:] = 4.0
    depth += torch.linspace(0, 0.2, 16)  # a slope is no edge
    assert where.near_edges(depth)[0, 6:11].all()
    assert not where.near_edges(depth)[0, 12:].any()


def test_depth_is_wrong_by_its_relative_error():
    truth = torch.tensor([[[2.0, 2.0, 2.0, 8.0]]])
    assert where.is_wrong(torch.tensor([[[2.1, 2.3, 1.7, 8.7]]]), truth).tolist() == [[[False, True, True, False]]]
    labels = torch.tensor([[[1, 2]]])
    assert where.is_wrong(torch.tensor([[[1, 3]]]), labels).tolist() == [[[False, True]]]


def test_objects_are_called_what_most_of_their_pixels_are():
    truth = torch.zeros(1, 20, 20, dtype=torch.uint8)
    truth[0, :6, :6] = FIRST  # 36 pixels, a small one
    truth[0, 10:, :20] = FIRST + 1  # 200 pixels
    truth[0, 9, :4] = FIRST + 2  # too few
    was, now = truth.long().clone(), truth.long().clone()
    was[truth == FIRST] = FIRST + 1
    now[0, 10:17] = 0
    found = dict(zip(where.QUANTITIES[-7:], where.of_objects(was, now, truth)[0].tolist(), strict=True))
    assert found == {
        "objects wrong": 1, "objects relabelled": 1, "objects right": 1, "objects broken": 1,
        "small": 36, "small right before": 0, "small right after": 36,
    }  # fmt: skip

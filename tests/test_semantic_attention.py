"""Where semantic tokens look: STGM's attention in the trace and in pictures."""

import numpy as np
import torch
from small import image, small_vit

from tokensparse.analysis import token_pictures as pictures
from tokensparse.analysis.token_maps import patch_maps

MAPS = frozenset({"maps"})


def test_where_semantic_tokens_look() -> None:
    """STGM's attention is that over [S; X]; keys that say nothing are looked at alike."""
    plan = [dict(span=(2, 4), reduce=dict(type="STGM", num_tokens=16, num_layers=3))]
    model = small_vit(plan=plan).eval()
    asked = MAPS | {"step_attn"}
    last = model.plan.steps[0].reduce.layers[-1]
    with torch.no_grad():
        attn = model.forward_tokens(image((64, 64)), collect=asked)[1].steps[0].attn
        assert attn.shape == (2, 16, 64) and (attn > 0).all()
        assert ((attn.sum(-1) > 0) & (attn.sum(-1) < 1)).all()
        last.kv.weight.zero_()
        _, trace = model.forward_tokens(image((64, 64)), collect=asked)
        torch.testing.assert_close(trace.steps[0].attn, torch.full((2, 16, 64), 1 / 80))
        valid = torch.tensor([[64, 40], [64, 64]])
        attn = model.forward_tokens(image((64, 64)), valid, asked)[1].steps[0].attn
    seen = torch.zeros(8, 8, dtype=torch.bool)
    seen[:, :5] = True
    assert (attn[0][:, ~seen.flatten()] == 0).all() and (attn[0][:, seen.flatten()] > 0).all()
    panels = pictures.step_panels(patch_maps(trace)[0], np.zeros((64, 64, 3), np.uint8), 8)
    titles = [panel.title for panel in panels]
    assert sum(title.startswith("where token") for title in titles) == pictures.ATTENTION_MAPS
    assert model.forward_tokens(image((64, 64)), collect=MAPS)[1].steps[0].attn is None


def test_lead_of_the_strongest_token() -> None:
    """Half again as much is a third; equal, or nobody, is nothing; one token leads alone."""
    attn = torch.tensor([[0.3, 0.2, 0.0], [0.2, 0.2, 0.0], [0.1, 0.1, 0.0]])
    torch.testing.assert_close(pictures.leads(attn), torch.tensor([1 / 3, 0.0, 0.0]))
    torch.testing.assert_close(pictures.leads(attn[:1]), torch.ones(3))


def test_where_semantic_tokens_of_windows_look() -> None:
    """Each in its own window of keys, row by row of the semantic grid; shares are those of V."""
    from small import small_swin

    step = dict(type="STGM", spec="released-det", window=4, num_tokens=4, padding="masked")
    model = small_swin(plan=[dict(stage=1, span=(0, 1), reduce=step, recover=dict(type="Scatter"))])
    reducer = model.eval().plan.steps[0].reduce
    reducer.sides = (6, 8)
    with torch.no_grad():
        _, trace = model.forward_tokens(image((160, 104)), collect=MAPS | {"step_attn"})
    (record,) = trace.steps
    rows, cols = record.grid  # 20 x 13, 5 x 4 windows of 4, the last column of windows partial
    attn = record.attn.view(2, 5, 2, 4, 2, rows, cols)
    for r in range(5):
        for s in range(4):
            own = torch.zeros(rows, cols, dtype=torch.bool)
            own[max(0, 4 * r - 2) : 4 * r + 6, max(0, 4 * s - 2) : 4 * s + 6] = True
            assert (attn[:, r, :, s][..., own] > 0).all()
            assert (attn[:, r, :, s][..., ~own] == 0).all()
    torch.testing.assert_close(record.attn.sum(-1), torch.ones(2, 80))
    titles = [
        p.title
        for p in pictures.step_panels(patch_maps(trace)[0], np.zeros((160, 104, 3), np.uint8), 4)
    ]
    assert any(title.startswith("its lead over the second") for title in titles)

"""What becomes of scores before they are differenced."""

from itertools import combinations

import pytest
import torch

from adazeta.estimation.score_scale import SCORE_GRID, find_scale
from adazeta.estimation.shaping import Shaping, best_of, summarise

NAN = float("nan")
SCORES = torch.tensor(
    [[1.0, 5.0, 2.0], [3.0, 5.0, NAN], [2.0, 7.0, 0.0], [2.0, 5.0, 1.0]], dtype=torch.float64
)


def shaped(name, scores=SCORES):
    (table,) = Shaping(name)([-scores], one_sided=False)
    return -table


def test_none_leaves_scores_alone():
    torch.testing.assert_close(shaped("none"), SCORES, equal_nan=True)


def test_z_score_has_mean_0_and_deviation_1_over_what_is_there():
    found = shaped("z-score")
    known = found[found.isfinite()]
    torch.testing.assert_close(known.mean().item(), 0.0, atol=1e-12, rtol=0)
    torch.testing.assert_close(known.std(correction=0).item(), 1.0)
    assert found.isnan().equal(SCORES.isnan())


def test_per_prompt_baseline_divides_by_one_deviation():
    found = shaped("prompt")
    spread = SCORES[SCORES.isfinite()].std(correction=0)
    torch.testing.assert_close(found[:, 0], (SCORES[:, 0] - 2.0) / spread)
    torch.testing.assert_close(found[:, 1], (SCORES[:, 1] - 5.5) / spread)
    torch.testing.assert_close(found[:, 2], (SCORES[:, 2] - 1.0) / spread, equal_nan=True)


def test_leave_one_out_takes_the_others_mean():
    found = shaped("leave-one-out")
    assert found[0, 1].item() == pytest.approx(5 - (5 + 7 + 5) / 3)
    assert found[0, 2].item() == pytest.approx(2 - (0 + 1) / 2)
    assert found[1, 2].isnan()


def test_centred_ranks_share_the_rank_of_equal_scores():
    found = shaped("rank")
    assert found[:, 0].tolist() == pytest.approx([-0.5, 0.5, 0.0, 0.0])
    assert found[:, 1].tolist() == pytest.approx([-1 / 6, -1 / 6, 0.5, -1 / 6])
    assert found[[0, 2, 3], 2].tolist() == pytest.approx([0.5, -0.5, 0.0])
    assert found[1, 2].isnan()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_best_of_k_is_what_all_sets_say(k):
    scores = torch.tensor([[0.3], [2.0], [0.3], [-1.0], [0.9]], dtype=torch.float64)
    found = best_of(scores, k)[:, 0]
    sets = list(combinations(range(5), k))
    for member in range(5):
        best = [max(scores[i, 0].item() for i in each) for each in sets if member in each]
        assert found[member].item() == pytest.approx(sum(best) / len(sets))
    # Each set counts once for each of its members: the mean best of k.
    mean = sum(max(scores[i, 0].item() for i in each) for each in sets) / len(sets)
    assert found.sum().item() / k == pytest.approx(mean)


def test_pass_at_k_needs_k_members_and_skips_prompts_with_fewer():
    with pytest.raises(ValueError, match="raise queries"):
        Shaping("pass@3").check_members(2)
    Shaping("pass@2").check_members(2)
    assert best_of(SCORES, 4)[:, 2].isnan().all()


def test_equal_scores_say_nothing():
    for name in ("z-score", "prompt", "leave-one-out", "rank", "pass@2"):
        assert shaped(name, torch.ones(4, 3, dtype=torch.float64)).abs().max() == 0


def test_a_summary_counts_pairs_and_missing_scores():
    found = summarise(-SCORES, one_sided=False)
    assert found.pairs == 5 and found.missing == 1
    assert found.informative == pytest.approx(3 / 5)
    assert found.mean == pytest.approx(SCORES[SCORES.isfinite()].mean().item())
    one = summarise(-SCORES, one_sided=True)
    assert one.pairs == 8


def test_all_shards_are_shaped_as_one_batch():
    whole = shaped("prompt")
    parts = Shaping("prompt")([-SCORES[:, :1], -SCORES[:, 1:]], one_sided=False)
    torch.testing.assert_close(-torch.cat(parts, 1), whole, equal_nan=True)


@pytest.mark.parametrize("name", ["centred", "pass@0", "pass@K", "pass@", ""])
def test_an_unknown_shape_is_refused(name):
    with pytest.raises(ValueError, match="shaping must be one of"):
        Shaping(name)


def test_the_scale_changes_the_wanted_share():
    tried = []

    def share(eps):
        tried.append(eps)
        return min(1.0, eps / 0.2)  # one half at 0.1

    eps, count = find_scale(share, 0.5)
    assert count == len(tried) <= 4
    low = max(e for e in SCORE_GRID if share(e) < 0.5)
    high = min(e for e in SCORE_GRID if share(e) >= 0.5)
    assert low * 0.999 <= eps <= high * 1.001


def test_the_scale_stays_within_the_grid():
    assert find_scale(lambda eps: 1.0, 0.5)[0] == SCORE_GRID[0]
    assert find_scale(lambda eps: 0.1, 0.5)[0] == SCORE_GRID[-1]
    with pytest.raises(ValueError, match="no completion changes"):
        find_scale(lambda eps: 0.0, 0.5)

"""Which row takes which turns: everything is placed once, no row overflows, all processes run the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memocr_jax.rl.rows import GroupSize, MicroBatchPlan, Part, RowShape, plan_rows, too_long

LONG = RowShape(tokens=100, sampled=60, segments=8, views=2, windows=6)
SHORT = RowShape(tokens=50, sampled=30, segments=4, views=1, windows=6)


@st.composite
def group(draw):
    prefix = draw(st.integers(1, 20))
    sampled = tuple(draw(st.lists(st.integers(1, 15), min_size=1, max_size=12)))
    siblings = tuple(n + draw(st.integers(1, 10)) for n in sampled)
    return GroupSize(prefix, siblings, sampled, draw(st.integers(0, 6)), draw(st.integers(0, 2)))


@given(st.lists(group(), max_size=30), st.integers(1, 3), st.sampled_from([1, 3]))
def test_every_sibling_is_placed_once_and_no_row_overflows(groups, rows, processes):
    groups = [g._replace(owner=g.owner % processes) for g in groups]
    plans = plan_rows(groups, [SHORT, LONG], rows, processes)
    placed = Counter()
    for plan in plans:
        assert len(plan.rows) == processes
        for own in plan.rows:
            assert len(own) == rows
            for parts in own:
                placed.update((part.group, k) for part in parts for k in part.siblings)
                assert sum(1 + len(part.siblings) for part in parts) <= plan.shape.segments
                tokens = sum(
                    groups[p.group].prefix + sum(groups[p.group].siblings[k] for k in p.siblings)
                    for p in parts
                )
                sampled = sum(groups[p.group].sampled[k] for p in parts for k in p.siblings)
                assert tokens <= plan.shape.tokens and sampled <= plan.shape.sampled
                images = sorted(
                    (groups[p.group].windows for p in parts if groups[p.group].windows), reverse=True
                )
                assert sum(images) <= plan.shape.views * plan.shape.windows
    assert placed == {(i, k): 1 for i, g in enumerate(groups) for k in range(len(g.siblings))}


def test_groups_share_a_row_and_a_long_one_is_split_with_its_prefix():
    # 20 + 4 x 15 = 80 slots: the group of 30 does not fit beside it in a row of 100, the one of 15 does.
    groups = [GroupSize(20, (15,) * 4, (5,) * 4), GroupSize(10, (5,), (2,))]
    assert plan_rows(groups, [LONG], 1) == [
        MicroBatchPlan(LONG, (((Part(0, (0, 1, 2, 3)), Part(1, (0,))),),))
    ]
    # 20 + 8 x 15 = 140 slots: (100 - 20) / 15 = 5 siblings fit into the first row, 3 are left for the second.
    split = plan_rows([GroupSize(20, (15,) * 8, (5,) * 8)], [LONG], 1)
    assert [len(row[0].siblings) for plan in split for rows in plan.rows for row in rows] == [5, 3]


def test_what_is_left_over_takes_a_smaller_row():
    groups = [GroupSize(20, (15,) * 8, (5,) * 8)]
    # 5 siblings in a row of 100; 20 + 3 x 15 = 65 slots do not fit into 50, but 20 + 15 do for two more rows.
    assert [plan.shape.tokens for plan in plan_rows([groups[0]], [SHORT, LONG], 1)] == [100, 100]
    one = [GroupSize(20, (15,) * 7, (5,) * 7)]
    # 2 siblings are left: 20 + 2 x 15 = 50 slots.
    assert [plan.shape.tokens for plan in plan_rows(one, [SHORT, LONG], 1)] == [100, 50]


def test_all_processes_run_the_same_and_turns_move_to_where_there_is_room():
    # One process sampled six times as much as the other.
    groups = [GroupSize(10, (15,) * 4, (5,) * 4, owner=0)] * 6 + [GroupSize(10, (15,) * 4, (5,) * 4, owner=1)]
    plans = plan_rows(groups, [LONG], 1, processes=2)
    # 7 groups of 70 slots, two rows of 100 a micro-batch: split, they take 3; the first process by itself 5.
    assert len(plans) == 3 and len(plan_rows(groups[:6], [LONG], 1)) == 5
    sampled_by = Counter(groups[part.group].owner for plan in plans for part in plan.rows[1][0])
    assert sampled_by[0] >= 2


def test_images_are_limited_by_their_vision_rows():
    page = GroupSize(5, (5,), (2,), windows=6)
    small = GroupSize(5, (5,), (2,), windows=2)
    # Two vision rows of 6 windows a row: two pages, or six small views, or a page and three small views.
    assert len(plan_rows([page] * 4, [LONG._replace(segments=50)], 1)) == 2
    assert len(plan_rows([page, small, small, small], [LONG._replace(segments=50)], 1)) == 1


def test_what_no_row_holds_is_named():
    assert too_long(GroupSize(60, (30, 41), (5, 5)), [SHORT, LONG]) == (1,)
    assert too_long(GroupSize(5, (5,), (2,), windows=7), [LONG]) == (0,)
    with pytest.raises(ValueError, match="too_long"):
        plan_rows([GroupSize(60, (41,), (5,))], [LONG], 1)


def test_nothing_to_learn_is_no_micro_batch():
    assert plan_rows([], [LONG], 4, 2) == []

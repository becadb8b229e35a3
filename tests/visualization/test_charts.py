"""Charts show the numbers that they were given, and a policy's those of its file."""

import base64
import math
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
import torch

from mmsokd.augment.policy import SUB_POLICIES, Policy
from mmsokd.hooks.common import ops_state
from mmsokd.visualization.charts import Chart, Line, Matrix, draw, save, svg_uris
from mmsokd.visualization.policy import policies_of, policy_charts
from mmsokd.visualization.runs import read_run
from tests.builders_runs import config, train_row, write_run


def lines_of(axis):
    return {line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist()) for line in axis.get_lines()}


def test_lines_are_their_numbers():
    chart = Chart('a title', [Line('a', [1, 2, 4], [3.0, math.nan, 5.0]), Line('b', [1, 2], [1, 2])], 'iteration', 'm')
    figure = draw([chart])
    (axis,) = figure.axes
    found = lines_of(axis)
    np.testing.assert_array_equal(found['a'], ([1, 2, 4], [3.0, math.nan, 5.0]))
    assert found['b'] == ([1, 2], [1, 2])
    assert axis.get_title(loc='left') == 'a title'
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_yscale()) == ('iteration', 'm', 'linear')
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ['a', 'b']


@pytest.mark.parametrize(('y', 'scale'), [([1, 100], 'log'), ([1, 5], 'linear'), ([0, 100], 'linear')])
def test_a_log_scale_where_it_can_be(y, scale):
    (axis,) = draw([Chart('', [Line('a', [1, 2], y)], 'x', log=True)]).axes
    assert axis.get_yscale() == scale


def test_what_hardly_changes_looks_so():
    (axis,) = draw([Chart('', [Line('a', [1, 2], [0.5, 0.5001])], 'x', span=0.04)]).axes
    low, high = axis.get_ylim()
    assert high - low == pytest.approx(0.04)
    assert low < 0.5 < high


def test_a_square_of_numbers_is_whole_and_its_colours_are_no_noise():
    names = [f'a long name {i}' for i in range(9)]
    values = np.full((9, 9), 2.0) + np.eye(9) / 1000
    figure = draw([Matrix('m', names, values, '%', span=4.0)] * 3, columns=2)
    figure.canvas.draw()
    for axis in figure.axes:
        if axis.get_title():
            (mesh,) = axis.collections
            assert mesh.get_clim() == pytest.approx((0.0, 4.0), abs=1e-3)
            (bar,) = axis.child_axes
            for part in (*axis.get_yticklabels(), *axis.get_xticklabels(), axis.title, bar.yaxis.label):
                box = part.get_window_extent()
                assert box.x0 >= 0
                assert box.y0 >= 0
                assert box.x1 <= figure.bbox.x1


def test_of_many_points_the_last_one_is_shown():
    (axis,) = draw([Chart('', [Line('a', range(10_001), range(10_001))], 'x')]).axes
    x, y = lines_of(axis)['a']
    assert len(x) < 1000
    assert x == y
    assert (x[0], x[-1]) == (0, 10_000)


@pytest.mark.parametrize('ground', ['light', 'dark'])
def test_an_svg_needs_nothing_beside_itself(ground):
    chart = Chart('<b> & "c"', [Line('a & b', [1, 2], [1, 2]), Line('<c>', [1, 2], [2, 1])], 'x')
    kind, _, data = svg_uris(chart)[ground == 'dark'].partition(',')
    assert kind == 'data:image/svg+xml;base64'
    tree = ElementTree.fromstring(base64.b64decode(data))
    texts = [''.join(node.itertext()) for node in tree.iter('{http://www.w3.org/2000/svg}text')]
    assert {'<b> & "c"', 'a & b', '<c>'} <= set(texts)
    inks = {node.get('style', '') for node in tree.iter('{http://www.w3.org/2000/svg}text')}
    assert any('#dfe3ea' in ink for ink in inks) == (ground == 'dark')
    assert any('#30343b' in ink for ink in inks) == (ground == 'light')
    links = [v for node in tree.iter() for k, v in node.attrib.items() if k.endswith('href')]
    assert all(link.startswith('#') for link in links)


def test_a_file(tmp_path):
    matrix = Matrix('m', ['a', 'b'], np.array([[math.nan, 1.0], [1.0, math.nan]]), '%')
    save(draw([Chart('', [Line('a', [1], [1])], 'x'), matrix, matrix], columns=2), tmp_path / 'deep' / 'charts.png')
    picture = cv2.imread(str(tmp_path / 'deep' / 'charts.png'))
    assert picture.shape == (720, 1152, 3)
    assert picture[0, 0].tolist() == [255, 255, 255]
    with pytest.raises(ValueError, match=r'[Ff]ormat'):
        save(draw([matrix]), tmp_path / 'charts.txt2')


def state_of(policy):
    chances = policy.alpha.softmax(0).tolist()
    return dict(entropy=policy.entropy(), sub_policies=chances, **ops_state(policy.expected_ops()))


def test_a_policys_charts_are_what_the_policy_was(tmp_path):
    policy = Policy()
    states, rates = [], []
    for i in range(3):
        policy.alpha[i] += 2.0
        policy.beta[i] = 0.9
        policy.magnitude[i] = 0.8
        states.append(dict(iter=10 * i, shared=state_of(policy)))
        # by hand: how often Rotate fires, over all pairs that have it
        chance = torch.exp(policy.alpha) / torch.exp(policy.alpha).sum()
        fires = [chance[k] * policy.beta[k][j] for k, p in enumerate(SUB_POLICIES) for j in (0, 1) if p[j] == 'Rotate']
        rates.append(float(sum(fires)))
    write_run(tmp_path, '20260101_000000', [train_row(10, 1, 1.0)], config(), policy=states)
    run = read_run(tmp_path)
    assert policies_of(run) == ['shared']
    sub, fires, magnitude, entropy, pairs = policy_charts(run, 'shared')
    named = [line for line in sub.lines if not line.faint]
    assert len(sub.lines) == len(SUB_POLICIES)
    assert named[0].label == ' + '.join(SUB_POLICIES[2]) or named[0].y[-1] == named[1].y[-1] == named[2].y[-1]
    assert named[0].y[-1] == pytest.approx(max(policy.alpha.softmax(0).tolist()))
    (rotate,) = (line for line in fires.lines if line.label == 'Rotate')
    assert rotate.x == [0, 10, 20]
    assert rotate.y == pytest.approx(rates, abs=1e-5)
    assert [line.y[-1] for line in fires.lines] == sorted((line.y[-1] for line in fires.lines), reverse=True)
    assert len(magnitude.lines) == 9
    assert entropy.lines[0].y[-1] == pytest.approx(policy.entropy())
    assert np.nansum(pairs.values) == pytest.approx(200)  # each pair twice, in percent
    first, second = (pairs.names.index(op) for op in SUB_POLICIES[0])
    assert pairs.values[first, second] == pytest.approx(100 * float(policy.alpha.softmax(0)[0]), abs=1e-3)
    assert len(draw([sub, fires, magnitude, entropy, pairs], columns=2).axes) == 6  # an empty place


def test_tsts_augmenter(tmp_path):
    lines = [
        dict(iter=i, augmenter=dict(fires=dict(ShearX=0.5, Equalize=0.5 + i / 10), magnitude=dict(ShearX=0.5)))
        for i in (0, 1)
    ]
    write_run(tmp_path, '20260101_000000', [train_row(10, 1, 1.0)], policy=lines)
    fires, magnitude = policy_charts(read_run(tmp_path), 'augmenter')
    assert [(line.label, line.y) for line in fires.lines] == [('Equalize', [0.5, 0.6]), ('ShearX', [0.5, 0.5])]
    assert [line.label for line in magnitude.lines] == ['ShearX']

"""The page of a run: its numbers are the log's, it needs nothing beside itself, and what there is not is told."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmsokd.visualization.compare import comparison, comparison_charts, duration, markdown, number
from mmsokd.visualization.complexity import Cost
from mmsokd.visualization.describe import method_of, role_of, students_text, teachers_text
from mmsokd.visualization.report import write_report
from mmsokd.visualization.runs import read_run
from tests.builders_runs import ENVIRONMENT, config, sokd_config, train_row, val_row, write_run

SECTIONS = ['metrics', 'curves', 'losses', 'policy', 'areas', 'cost', 'speed', 'settings', 'environment']
STUDENT = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=18), head=dict(num_classes=5))
TEACHER = dict(type='ImageClassifier', backbone=dict(type='ResNet', depth=34), head=dict(num_classes=5))
VOID = {'meta', 'link', 'img', 'source', 'br', 'hr'}


class Page(HTMLParser):
    """What a browser would load, and what it would show."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.sections, self.urls, self.figures, self.tables = {}, [], [], []
        self._open, self._section = [], None
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self._open.append(tag)
        assert tag not in ('script', 'link', 'iframe', 'object', 'embed')
        assert not [name for name in attrs if name.startswith('on')]
        if tag == 'section':
            self._section = attrs['id']
            self.sections[self._section] = ''
        if tag == 'img':
            self.figures.append((self._section, attrs['alt'], attrs['src']))
        if tag == 'table':
            self.tables.append((self._section, []))
        if tag == 'tr':
            self.tables[-1][1].append([])
        if tag in ('td', 'th'):
            self.tables[-1][1][-1].append('')
        self.urls += [attrs[name] for name in ('src', 'srcset', 'href', 'action') if name in attrs]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if 'style' in self._open:
            self.urls += re.findall(r'url\(|@import|https?:', data)
        elif self._section:
            self.sections[self._section] += data
        if self._open and self._open[-1] in ('td', 'th'):
            self.tables[-1][1][-1][-1] += data

    def rows(self, section):
        return [row for where, rows in self.tables if where == section for row in rows]


def losses(i):
    return {'loss_cls': 0.5 - i / 1000, 'distill.loss_hint': 1.0, 'sokd.loss_area': 0.5, 'sokd.mask_cover': 0.25}


def policy_line(i):
    ops = dict(Rotate=0.25, Noise=0.5)
    return dict(iter=i, shared=dict(entropy=3.5, sub_policies=[1 / 36] * 36, fires=ops, magnitude=ops))


def drawing(part, name='areas_loss_hint_0_60'):
    (part / 'vis_data' / 'vis_image').mkdir(exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (120, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save(part / 'vis_data' / 'vis_image' / f'{name}.png')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A teacher, a student alone, a host and SoKD; the last one was resumed."""
    found, tmp_path = {}, tmp_path_factory.mktemp('runs')
    for name, cfg, top in (
        ('teacher', config(model=TEACHER), 80.0),
        ('student', config(model=STUDENT), 60.0),
        ('host', sokd_config(TEACHER, STUDENT), 61.0),
        ('sokd', sokd_config(TEACHER, STUDENT), 63.5),
    ):
        if name == 'host':
            cfg['model']['type'] = 'mmsokd.Distiller'
        rows = [train_row(i, -(-i // 20), 2.0 - i / 1000, **losses(i)) for i in range(10, 70, 10)]
        rows += [val_row(e, **{'accuracy/top1': top - 3 + e, 'accuracy/top5': 99.0}) for e in (1, 2, 3)]
        if name == 'sokd':
            write_run(tmp_path / name, '20260101_000000', [*rows[:5], rows[6]], cfg, [policy_line(0)], ENVIRONMENT)
            rows = [rows[3], rows[7], *rows[4:6], rows[8]]
            part = write_run(
                tmp_path / name, '20260101_010000', rows, dict(cfg, resume=True), [policy_line(5)], ENVIRONMENT
            )
            drawing(part)
            (tmp_path / name / 'last_checkpoint').write_text(f'{tmp_path}/sokd/epoch_3.pth')
        else:
            write_run(tmp_path / name, '20260101_000000', rows, cfg)
        found[name] = read_run(tmp_path / name)
    return found


@pytest.fixture(scope='module')
def html(runs):
    costs = dict(student=Cost(11_000_000, 1_800_000_000), teacher=Cost(21_000_000, None, 'no such op'))
    return write_report(runs['sokd'], [runs[name] for name in ('host', 'student', 'teacher')], costs, (224, 224))


def test_what_the_configs_are(runs):
    assert method_of(runs['sokd'].config) == ('SoKD', 'SoKD on FitNet')
    assert method_of(runs['host'].config) == ('host', 'FitNet')
    assert method_of(runs['student'].config).kind == 'plain'
    assert method_of(dict(model=dict(type='mmsokd.SFTNTeacherTrainer'))).kind == 'SFTN'
    terms = dict(loss_kd=dict(type='mmsokd.KDLoss'), loss_at=dict(type='mmsokd.ATLoss'))
    tst = dict(type='mmsokd.TSTDistiller', student=STUDENT, teacher=TEACHER, terms=terms)
    assert method_of(dict(model=tst)) == ('TST', 'TST on KD, AT')
    assert method_of(dict(model=dict(tst, refine=dict(), areas=dict()))) == ('SoKD', 'TST and SoKD on KD, AT')
    iakd = dict(type='mmsokd.IAKDDistiller', student=STUDENT, teacher=TEACHER, stages=['backbone.layer2'])
    assert method_of(dict(model=iakd)) == ('IAKD', 'IAKD')
    assert students_text(dict(model=iakd)) == 'ImageClassifier (ResNet-18)'
    ekd = dict(type='mmsokd.OnlineDistiller', student=STUDENT, online_teacher=TEACHER, terms=terms)
    assert method_of(dict(model=ekd)) == ('EKD', 'EKD on KD, AT')
    assert teachers_text(dict(model=ekd)) == 'ImageClassifier (ResNet-34)'
    off = dict(tst, type='mmsokd.SoKDDistiller', areas=None)
    assert method_of(dict(model=off)) == ('SoKD', 'SoKD (refine alone) on KD, AT')
    meta = dict(off, type='mmsokd.Distiller', refine=dict(type='mmsokd.KnowledgeRefiner'))
    assert method_of(dict(model=meta)) == ('Meta-KD', 'Meta-KD on KD, AT')
    assert method_of(dict(model=dict(meta, areas=dict()))) == ('SoKD', 'Meta-KD and SoKD (areas alone) on KD, AT')
    assert students_text(runs['sokd'].config) == 'ImageClassifier (ResNet-18)'
    assert teachers_text(runs['sokd'].config) == 'ImageClassifier (ResNet-34) (teacher.pth)'
    roles = {name: role_of(run, runs['sokd']) for name, run in runs.items()}
    assert roles == dict(teacher='teacher', student='student alone', host='host', sokd='distilled')


def test_the_page_of_sokd(html):
    page = Page(html)
    assert list(page.sections) == SECTIONS
    assert all(url.startswith(('data:image/', '#')) for url in page.urls), page.urls
    assert {url[1:] for url in page.urls if url.startswith('#')} == set(SECTIONS)
    metrics = page.rows('metrics')
    assert metrics[0] == ['role', 'run', 'last epoch', 'accuracy/top1', 'best of it', 'accuracy/top5']
    assert metrics[1:] == [
        ['teacher', 'teacher', '3', '80', '80', '99'],
        ['student alone', 'student', '3', '60', '60', '99'],
        ['host', 'host', '3', '61', '61', '99'],
        ['distilled', 'sokd', '3', '63.5', '63.5', '99'],
    ]
    assert 'accuracy/top1 against student alone (student): +3.5' in page.sections['metrics']
    terms = {row[0]: row[1:] for row in page.rows('losses')}
    assert terms['loss_cls'] == ["the network's own", '0.49', '0.44', f'{100 * 0.44 / 1.94:.1f}']
    assert terms['sokd.loss_area'] == ["SoKD's own", '0.5', '0.5', f'{100 * 0.5 / 1.94:.1f}']
    assert 'loss' not in terms
    assert ['Rotate', '0.250', '0.250'] in page.rows('policy')
    assert page.rows('cost')[1:] == [['student', '11.000', '1.800'], ['teacher', '21.000', '-']]
    assert 'no such op' in page.sections['cost']
    speed = {row[0]: row[1:] for row in page.rows('speed')}
    assert speed['sokd'] == ['2', '0.25', '4', '-', '2 min 00 s']  # 8 pictures, of two processes, in 2 seconds
    assert speed['student'] == ['2', '0.25', '2', '-', '2 min 00 s']
    settings = dict(row for row in page.rows('settings') if len(row) == 2)
    assert settings['seed'] == '7'
    hint = ['loss_hint', 'FitNetLoss', 'backbone.layer4', 'backbone.layer4', 'teacher', '2.0', 'defaults']
    assert hint in page.rows('settings')
    assert ['PyTorch', '2.1.2'] in page.rows('environment')
    kinds = {src.partition(';')[0] for _, _, src in page.figures}
    assert kinds == {'data:image/svg+xml', 'data:image/png'}
    titles = {}
    for section, title, src in page.figures:
        titles.setdefault(section, []).append(title)
        assert len(src) > 1000
    assert titles['losses'] == ["the network's own", 'distillation terms', "SoKD's own"]
    assert len(titles['policy']) == 5
    assert titles['areas'][0] == 'areas_loss_hint_0_60'
    assert {'loss, all terms', 'learning rate', 'accuracy/top1'} <= set(titles['curves'])


def test_of_a_plain_run_and_of_one_that_has_just_begun(tmp_path):
    write_run(tmp_path / 'plain', '20260101_000000', [train_row(10, 1, 2.0, loss_cls=2.0)])
    page = Page(write_report(read_run(tmp_path / 'plain'), [], 'the weather was bad'))
    assert list(page.sections) == SECTIONS
    told = dict(
        metrics='The log has no validation',
        policy='This method has no policy.',
        areas='This run has no areas.',
        cost='Not counted: the weather was bad.',
        environment='Not in the log',
    )
    for section, text in told.items():
        assert text in page.sections[section]
    assert all(text.strip() for text in page.sections.values())
    write_run(tmp_path / 'validated', '20260101_000000', [val_row(1, mIoU=3.0)], sokd_config(TEACHER, STUDENT))
    page = Page(write_report(read_run(tmp_path / 'validated'), [], ''))
    assert 'no row of the training' in page.sections['curves']
    assert 'Not known: the metrics of the teacher' in page.sections['metrics']
    assert 'Not known: the metrics of the student alone' in page.sections['metrics']
    assert 'no vis_data/policy.json' in page.sections['policy']
    assert 'The log has no times' in page.sections['speed']
    cfg = sokd_config(TEACHER, STUDENT)
    cfg['model']['refine'] = None
    write_run(tmp_path / 'areas', '20260101_000000', [val_row(1, mIoU=3.0)], cfg)
    page = Page(write_report(read_run(tmp_path / 'areas'), [], ''))
    assert 'This method has no policy.' in page.sections['policy']


def test_strings_of_a_user_are_text(tmp_path):
    bad = '<script>alert(1)</script>"\'&'
    row = train_row(10, 1, 2.0, **{f'loss{bad}': 1.0})
    cfg = sokd_config(TEACHER, dict(STUDENT, type=bad), custom_hooks=[dict(type=bad)])
    cfg['model']['terms']['loss<i>&'] = cfg['model']['terms'].pop('loss_hint')  # MMEngine dumps no quotes
    log = ENVIRONMENT.replace('PyTorch: 2.1.2', f'PyTorch: {bad}')
    folder = tmp_path / '<b>run'
    part = write_run(folder, '20260101_000000', [row, val_row(1, **{f'm{bad}': 1.0})], cfg, log=log)
    drawing(part, 'areas_<i>&_0_60')
    html = write_report(read_run(folder), [], f'no {bad}')
    page = Page(html)  # which refuses any script
    assert '<b>run' not in html
    assert f'loss{bad}' in page.sections['losses']
    assert 'loss<i>&' in page.sections['settings']
    assert bad in page.sections['environment']
    assert f'm{bad}' in page.sections['metrics']


def test_the_table_of_several_runs(runs):
    head, rows = comparison([runs[name] for name in ('student', 'host', 'sokd')])
    assert head[3] == 'accuracy/top1, last'
    assert [row[:2] + row[3:6] for row in rows] == [
        ['student', 'training without a teacher', '60', '60', '-'],
        ['host', 'FitNet', '61', '61', '+1'],
        ['sokd', 'SoKD on FitNet', '63.5', '63.5', '+3.5'],
    ]
    assert [row[2] for row in rows] == ['epoch 3 of 3', 'epoch 3 of 3', 'epoch 3']  # those have no last checkpoint
    assert [row[6:] for row in rows] == [['2', '2 min 00 s']] * 3
    table = markdown(head, [['a|b', *row[1:]] for row in rows])
    assert table.splitlines()[2].startswith('| a\\|b | training')
    charts = comparison_charts([runs['student'], runs['sokd']], 'accuracy/top5')
    assert [chart.title for chart in charts] == ['accuracy/top5', 'loss, all terms', 'time of an iteration']
    assert charts[1].lines[1].y == pytest.approx([2.0 - i / 1000 for i in range(10, 70, 10)])
    with pytest.raises(ValueError, match=r"--metric: expected one of \['accuracy/top1', 'accuracy/top5'\], found 'AP'"):
        comparison(list(runs.values()), 'AP')


def test_runs_without_validation_cannot_be_compared(tmp_path):
    write_run(tmp_path, '20260101_000000', [train_row(10, 1, 2.0)])
    with pytest.raises(ValueError, match='expected a validation in the logs, found none'):
        comparison([read_run(tmp_path)])


def test_numbers():
    assert [number(x) for x in (0.123456, 63.5, 12345.6)] == ['0.1235', '63.5', '12346']
    assert [duration(x) for x in (None, 7.4, 65, 3700)] == ['-', '7 s', '1 min 05 s', '1 h 01 min']


LOOK = """<script>addEventListener('load', () => { const rect = (img) => { const r = img.getBoundingClientRect();
return [img.alt, img.naturalWidth, r.x, r.y, r.width, r.height]; };
document.documentElement.dataset.seen = JSON.stringify({width: document.documentElement.scrollWidth,
height: document.documentElement.scrollHeight, images: [...document.images].map(rect)}); });</script>"""
BROWSER = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')


def browse(page, folder, width, *what):
    """Headless Chromium on a page; it resolves no name."""
    quiet = 'gpu quic background-networking component-update sync extensions default-apps'.split()
    command = [
        BROWSER,
        '--headless',
        '--no-sandbox',
        '--no-first-run',
        '--hide-scrollbars',
        '--virtual-time-budget=5000',
    ]
    command += [f'--disable-{name}' for name in quiet]
    command += ['--host-resolver-rules=MAP * ~NOTFOUND', f'--user-data-dir={folder}', f'--window-size={width},9000']
    done = subprocess.run([*command, *what, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason='no Chromium to look at the page: apt-get install chromium')
@pytest.mark.parametrize('width', [1280, 500])
def test_in_a_browser_the_figures_are_there(html, tmp_path, width):
    count = len(Page(html).figures)
    page = tmp_path / 'report.html'
    # The page allows no script; for the look its policy is left out.
    page.write_text(
        re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', '', html).replace('</body>', f'{LOOK}</body>')
    )
    dom = browse(page, tmp_path / 'profile', width, '--dump-dom')
    seen = json.loads(re.search(r'data-seen="(.*?)"', dom)[1].replace('&quot;', '"').replace('&amp;', '&'))
    assert seen['width'] <= width  # nothing to scroll sideways
    assert len(seen['images']) == count
    page.write_text(html)
    shot = tmp_path / 'shot.png'
    browse(page, tmp_path / 'profile', width, f'--screenshot={shot}')
    pixels = np.asarray(Image.open(shot).convert('RGB')).astype(int)
    assert seen['height'] < len(pixels)
    for alt, natural, x, y, w, h in seen['images']:
        assert natural > 100, alt
        assert w > 250, alt
        figure = pixels[round(y) : round(y + h), round(x) : round(x + w)]
        assert figure.std() > 5, alt  # neither empty nor a sign for a broken picture
        assert (np.abs(figure - figure[1, 1]).sum(2) > 60).mean() > 0.01, alt

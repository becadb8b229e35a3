"""docs/tutorial.md from top to bottom: each block in order, in a folder of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/tutorial.md'


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('tools', 'configs'):
        (tmp_path / name).symlink_to(ROOT / name)
    paths = [Path(sys.executable).parent, os.environ['PATH']]
    env = {**os.environ, 'PATH': os.pathsep.join(map(str, paths)), 'PYTHONPATH': str(ROOT), 'PYTHONWARNINGS': 'ignore'}
    scope = {'__name__': 'tutorial'}
    for language, code in re.findall(r'^```(python|bash)\n(.*?)^```$', PAGE.read_text(), re.S | re.M):
        name = re.match(r'# (\w+\.py)\n', code)
        if language == 'bash':
            done = subprocess.run(['bash', '-e', '-c', code], env=env, capture_output=True, text=True)
            assert done.returncode == 0, f'{code}\n{done.stderr[-3000:]}'
        elif name:
            Path(name[1]).write_text(code)
        else:
            exec(compile(code, str(PAGE), 'exec'), scope)
    assert min(scope['iou'].values()) > 45  # all ground would be 26: they have learned
    assert Path('student.onnx').is_file()
    assert 'onnxruntime: ' in capsys.readouterr().out

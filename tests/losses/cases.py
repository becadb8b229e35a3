"""One case a registered loss on maps: a way to build it, and its slow twin."""

from tests.reference import losses as reference

LOSS_CASES = {
    'FitNetLoss': (dict(), reference.fitnet),
    'ATLoss': (dict(p=2.0), reference.at),
    'PKDLoss': (dict(), reference.pkd),
}

# Losses of another kind and the file that tests them.
ELSEWHERE = {
    'KDLoss': 'test_logits.py',
    'DKDLoss': 'test_logits.py',
    'DISTLoss': 'test_logits.py',
    'RKDLoss': 'test_relation.py',
    'SPLoss': 'test_relation.py',
    'CRDLoss': 'test_crd.py',
    'CWDLoss': 'test_cwd.py',
    'MGDLoss': 'test_mgd.py',
    'FGDLoss': 'test_fgd.py',
    'ReviewKDLoss': 'test_reviewkd.py',
    'VIDLoss': 'test_vid.py',
    'LDLoss': 'test_ld.py',
}

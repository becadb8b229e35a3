"""One case a registered loss: a way to build it, and its slow twin."""

from tests.reference import losses as reference

LOSS_CASES = {
    'FitNetLoss': (dict(), reference.fitnet),
    'ATLoss': (dict(p=2.0), reference.at),
    'PKDLoss': (dict(), reference.pkd),
}

"""The student with IAKD beside KD: each of the three stages is the teacher's by chance, less and less often."""

_base_ = './kd_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(
    type='mmsokd.IAKDDistiller',
    stages=['backbone.layer1', 'backbone.layer2', 'backbone.layer3'],
    probability=[(0.0, 0.5), (0.75, 0.0)],
)

"""A backbone of the zoo, global average pooling, and one linear layer for 100 classes."""

model = dict(
    type='ImageClassifier',
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, loss=dict(type='CrossEntropyLoss')),
)

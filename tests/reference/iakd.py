"""A ResNet-8 whose second stage is another ResNet-8's, as a straight line in eval mode. Imports nothing from mmsokd."""

from tests.reference.zoo import Weights, relu


def block(w, x, channels, stride):
    y = w.conv_norm(relu(w.conv_norm(x, channels, 3, stride)), channels, 3)
    return relu(y + (x if x.shape == y.shape else w.conv_norm(x, channels, 1, stride)))


def seam(tensors, x, channels):
    """1 x 1 convolution, norm and ReLU."""
    return relu(Weights(tensors).conv_norm(x, channels, 1))


def hybrid(student, teacher, entry, leave, x, widths, wide, classes):
    """The student's logits while its stage 2 is the teacher's.

    ``student``: part -> its tensors in the order of their use, as ``entry`` and ``leave`` are the seams'; ``teacher``:
    its stage 2's. ``widths`` and ``wide``: channels of the stem and the stages of both.
    """
    feat = relu(Weights(student['layer0']).conv_norm(x, widths[0], 3))
    feat = block(Weights(student['layer1']), feat, widths[1], 1)
    feat = seam(entry, feat, wide[1])
    feat = block(Weights(teacher), feat, wide[2], 2)
    feat = seam(leave, feat, widths[2])
    feat = block(Weights(student['layer3']), feat, widths[3], 2)
    return Weights(student['fc']).linear(feat.mean((2, 3)), classes)

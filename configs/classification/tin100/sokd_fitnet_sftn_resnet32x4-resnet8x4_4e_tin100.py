"""SFTN + SoKD: the student with SoKD on FitNet, of the teacher that SFTN trained for it."""

_base_ = './sokd_fitnet_resnet32x4-resnet8x4_4e_tin100.py'

model = dict(teacher=dict(checkpoint='tin100_sftn_teacher.pth'))

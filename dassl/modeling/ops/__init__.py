"""Operations that trainers of domain adaptation and semi-supervised learning share."""

from dassl.absent import absent_names

from .cross_entropy import cross_entropy
from .mixup import mixup
from .reverse_grad import ReverseGrad

__getattr__ = absent_names("dassl.modeling.ops")

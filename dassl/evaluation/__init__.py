"""Evaluators: from the outputs of a model to the reported figures."""

from .build import EVALUATOR_REGISTRY, build_evaluator
from .evaluator import Classification, EvaluatorBase

from trainers.ivlp import VLPromptLearner

from .case import Case


class Golden(Case):
    trainer = "IVLP"

    def ours(self, name):
        return f"prompt_learner.{VLPromptLearner.own_name(name)}"

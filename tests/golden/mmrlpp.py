from trainers.mmrlpp import RepresentationLearner

from . import mmrl


class Golden(mmrl.Golden):
    trainer = "MMRLpp"

    def ours(self, name):
        return f"representation_learner.{RepresentationLearner.own_name(name)}"

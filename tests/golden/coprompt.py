import torch

from trainers.shared.prompts import fill_template

from .case import Case


class Golden(Case):
    """The sentences are templates in the json; `sentence` is the one that each step drew."""

    trainer = "CoPrompt"
    unused = ("SENTENCES",)

    def ours(self, name):
        return f"learner.{name}"

    def build(self, classnames):
        trainer = super().build(classnames)
        sentences = self.variant["settings"]["SENTENCES"]
        trainer.model.descriptions = [fill_template(sentence, classnames) for sentence in sentences]
        drawn = iter(self.golden["sentence"].tolist())
        trainer.draw = lambda: self.sentences.append(next(drawn)) or self.sentences[-1]
        losses = trainer.losses
        trainer.losses = lambda image, label: losses(torch.stack([image, self.more_images]), label)
        self.sentences = []
        return trainer

    def terms(self, trainer, terms):
        w = trainer.cfg.TRAINER.W
        weights = {"ce": 1, "cos_text": w, "cos_image": w}
        return super().terms(trainer, terms) | {name: term / weights[name] for name, term in terms.items()}

    def figures(self):
        out = super().figures()
        trainer = self.build(self.inputs["classnames"])
        frozen = [trainer.model.frozen_descriptions(j) for j in range(len(trainer.model.descriptions))]
        return out | {"frozen_sentences": torch.stack(frozen).numpy(), "sentence": self.golden["sentence"]}

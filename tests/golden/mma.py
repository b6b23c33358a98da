from .case import Case


class Golden(Case):
    trainer = "MMA"

    def tokens(self, trainer):
        return trainer.model.tokens

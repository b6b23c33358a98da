from .case import Case


class Golden(Case):
    trainer = "MaPLe"

from .case import Case


class Golden(Case):
    trainer = "CLIP_Adapter"

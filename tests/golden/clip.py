"""CLIP itself: if this does not agree, nothing will."""

import torch

from trainers.shared.classifier import ClipClassifier
from trainers.shared.prompts import fill_template
from trainers.shared.tokens import tokenize

from .case import Case


class Golden(Case):
    @torch.no_grad()
    def figures(self):
        out, images = {}, {"images": self.image, "more_images": self.more_images, "test_images": self.test_images}
        names = self.inputs["classnames" if self.name in images else self.name]
        template = self.inputs["template"]
        model = ClipClassifier(self.clip, names, [template]).eval()
        if self.name in images:
            return {"image_features": model.image_encoder(images[self.name]).numpy()}
        tokens = tokenize(fill_template(template, names))
        out["tokens"] = torch.nn.functional.pad(tokens, (0, self.sizes["context_length"] - tokens.shape[1]))
        out["text_features"] = model.text_encoder(None, tokens)
        out |= {f"logits_{name}": model(image) for name, image in images.items()}
        return {name: value.numpy() for name, value in out.items()}

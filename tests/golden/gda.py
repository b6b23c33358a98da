"""GDA: the Gaussians of the training classes and of new ones, and the search of alpha."""

import math

import torch

from trainers.gda import ALPHAS, discriminant, gaussians, new_gaussians
from trainers.shared.encoders import normalize

from . import recipe
from .case import Case, seed_of


class Golden(Case):
    trainer = "GDA"

    def settings(self):
        given = self.variant["settings"]
        covariance = {"few_shot": "shrunk", "base2new": "per_class"}[given["protocol"]]
        return {"TRAINER.GDA.AUGMENT_EPOCH": given["augment_epoch"], "TRAINER.GDA.COVARIANCE": covariance}

    def training(self, count: int) -> list[torch.Tensor]:
        """Return the images of the passes: images, more_images, and further seeds."""
        first = seed_of(self.inputs["images"])
        seeds = [first, seed_of(self.inputs["more_images"]), *(first + 100 + k for k in range(2, count))]
        return [recipe.images(seed, len(self.label), self.sizes["image_resolution"]) for seed in seeds[:count]]

    @torch.no_grad()
    def figures(self):
        trainer = self.build(self.inputs["classnames"])
        model, node, n_cls = trainer.model, trainer.node, len(self.inputs["classnames"])
        x = normalize(torch.cat([model.image_encoder(image) for image in self.training(node.AUGMENT_EPOCH)]))
        labels = self.label.repeat(node.AUGMENT_EPOCH)
        means, precision = gaussians(x, labels, n_cls, node.COVARIANCE)
        trainer.fill(x, labels)
        gda, val = model.gda, x[: len(self.label)]
        zero_shot = model.frozen_text
        logits = torch.stack([model.score(val, gda.weight, gda.bias, alpha) for alpha in ALPHAS])
        accuracy, alpha = model.search(val, self.label)
        gda.alpha.fill_(alpha)
        out = {"features": x, "feature_labels": labels, "text": zero_shot.T, "tokens": self.prompts()}
        out |= {"means": means, "precision_matrix": precision, "W": gda.weight.T, "b": gda.bias - math.log(n_cls)}
        out |= {"val_logits": logits, "val_accuracy": 100 * (logits.argmax(-1) == self.label).double().mean(dim=1)}
        out |= {"best_alpha": gda.alpha, "best_val_accuracy": torch.tensor(accuracy)}
        out["test_logits"] = model.eval()(self.test_images)
        if "new_logits" in self.golden:
            new = self.build(self.inputs["new_classnames"])
            new.model.gda.load_state_dict(gda.state_dict())
            means, precision = new_gaussians(gda.features, new.model.frozen_text, node.NEIGHBOURS, node.COPIES)
            weight, bias = discriminant(means, precision)
            out |= {"new_text": new.model.frozen_text.T, "new_means": means, "new_precision_matrix": precision}
            out |= {"new_W": weight.T, "new_b": bias - math.log(len(bias))}
            out["new_logits"] = new.model.eval()(self.test_images)
        return {name: value.numpy() for name, value in out.items()}

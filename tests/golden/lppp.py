"""LP++: rates, start, every step, and the epoch that is best on val."""

import numpy as np
import torch

from dassl.optim import build_optimizer
from trainers.shared.encoders import normalize

from . import recipe
from .case import Case, seed_of


class Golden(Case):
    trainer = "LPpp"

    def settings(self):
        return {"OPTIM.NAME": "sgd", "OPTIM.MOMENTUM": 0.9, "OPTIM.WEIGHT_DECAY": 0.0}

    @torch.no_grad()
    def encoded(self, trainer, name: str, count: int) -> torch.Tensor:
        images = recipe.images(seed_of(self.inputs[name]), count, self.sizes["image_resolution"])
        return normalize(trainer.model.image_encoder(images))

    def figures(self):
        trainer = self.build(self.inputs["classnames"])
        model, lppp, label = trainer.model, trainer.model.lppp, torch.tensor(self.variant["labels"])
        f, val, test = (self.encoded(trainer, key, len(label)) for key in ("images", "more_images", "test_images"))
        g = model.frozen_text
        lr = lppp.start(f, g, label)
        out = {"tokens": self.prompts(), "text": g.T, "features": f, "val_features": val, "test_features": test}
        out |= {"lr_w": torch.tensor(lr), "lr_alpha": lppp.rate_of_alpha, "alpha_start": lppp.alpha[0, 0]}
        out["init/weight"] = lppp.weight.detach().clone()
        with torch.no_grad():
            lppp.bias.copy_(torch.from_numpy(np.float32(0.1 * recipe.z(2000, len(g)))))
        out["init/bias"] = lppp.bias.detach().clone()

        trainer.cfg.OPTIM.LR = lr
        optimizer = build_optimizer([lppp.weight, lppp.bias], trainer.cfg.OPTIM)
        trainer.val, trainer.max_epoch = (val, label), self.variant["settings"]["train_epoch"]
        losses, alphas, gradients, accuracies = [], [lppp.alpha[0].detach().clone()], [], []
        for epoch in range(trainer.max_epoch):
            terms, z = trainer.losses(f, label)
            optimizer.zero_grad()
            trainer.backward(terms)
            if epoch == 0:
                out |= {"train_logits": z, "grad/weight": lppp.weight.grad.clone(), "grad/bias": lppp.bias.grad.clone()}
            optimizer.step()
            if epoch == 2:
                out |= {"after/weight": lppp.weight.clone(), "after/bias": lppp.bias.clone()}
            trainer.step_alpha(epoch)
            accuracies.append(trainer.accuracy_on_val())
            lppp.keep(accuracies[-1])
            losses.append(terms["ce"])
            alphas.append(lppp.alpha[0].detach().clone())
            gradients.append(lppp.alpha_gradient[0].clone())
        out |= {"loss": torch.stack(losses), "alpha": torch.stack(alphas)}
        out |= {"alpha_grad_as_it_stands": torch.stack(gradients), "val_logits_last": lppp(val, g)}
        out |= {"last/weight": lppp.weight.detach().clone(), "last/bias": lppp.bias.detach().clone()}
        best = max(range(len(accuracies)), key=lambda epoch: (accuracies[epoch], epoch))
        lppp.restore()
        out |= {"best_epoch": torch.tensor(best), "best_val_accuracy": lppp.best_accuracy}
        out["test_logits_best"] = lppp(test, g)
        return {name: value.detach().numpy() for name, value in out.items()}

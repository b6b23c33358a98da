"""Tip-Adapter and Tip-Adapter-F: the cache, the search, the epoch that is best on the test images, as published."""

import json
import re
from types import SimpleNamespace
from unittest import mock

import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from trainers.shared.encoders import normalize

from .case import Case


class Golden(Case):
    trainer = "TipAdapterF"

    def settings(self):
        given, node = self.variant["settings"], "TRAINER.TIPADAPTERF."
        return {
            "OPTIM.NAME": "adamw",
            "OPTIM.WEIGHT_DECAY": 0.01,
            "OPTIM.LR_SCHEDULER": "cosine",
            "OPTIM.LR": given["lr"],
            "OPTIM.MAX_EPOCH": given["train_epoch"],
            node + "SEARCH_SCALE": given["search_scale"],
            node + "SEARCH_STEP": given["search_step"],
            node + "INIT_BETA": float(given["init_beta"]),
            node + "INIT_ALPHA": float(given["init_alpha"]),
            node + "SELECT": "test",
        }

    def build(self, classnames):
        data = SimpleNamespace(dataset=SimpleNamespace(train_x=[1] * len(self.label), val=[1]))  # as many images
        with mock.patch.object(TRAINER_REGISTRY.get(self.trainer), "dm", data, create=True):
            trainer = super().build(classnames)
        trainer.dm = data
        return trainer

    def figures(self):
        trainer = self.build(self.inputs["classnames"])
        return {name: value.detach().numpy() for name, value in self.cached(trainer).items()}

    def cached(self, trainer):
        model, cache = trainer.model, trainer.model.cache
        with torch.no_grad():
            passes = [model.image_encoder(image) for image in (self.image, self.more_images)]
            test = normalize(model.image_encoder(self.test_images))
        cache.fill(torch.stack(passes), self.label)
        labels = torch.tensor(json.loads(re.search(r"labels (\[.*\])", self.variant["test"])[1]))
        val = normalize(passes[0])
        model.compute_frozen_once("val images", lambda: (val, self.label))
        model.compute_frozen_once("test images", lambda: (test, labels))
        first = cache.alpha.item(), cache.beta.item()
        out = {"keys": cache.keys.clone(), "values": cache.values, "text": model.frozen_text.T}
        out |= {"zero_shot": model.logits(val, model.frozen_text), "val_logits": model.score(val)}
        trainer.search()
        out |= {"best_beta_alpha": torch.stack([cache.beta, cache.alpha]), "logits_best": model.score(test)}
        cache.set(*first)

        return out | {f"f/{name}": value for name, value in self.trained(trainer, test).items()}

    def trained(self, trainer, test):
        """Of Tip-Adapter-F; an epoch is a step."""
        cache, losses, rates, logits, out = trainer.model.cache, [], [], [], {}
        optimizer = build_optimizer(cache, trainer.cfg.OPTIM)
        optimizer.param_groups[0]["eps"] = trainer.node.EPS
        schedule = build_lr_scheduler(optimizer, trainer.cfg.OPTIM)
        for trainer.epoch in range(trainer.cfg.OPTIM.MAX_EPOCH):  # noqa: B020
            terms, z = trainer.losses(self.image, self.label)
            optimizer.zero_grad()
            trainer.backward(terms)
            out.setdefault("grad", cache.keys.grad.clone())
            losses.append(terms["ce"])
            rates.append(optimizer.param_groups[0]["lr"])
            logits.append(z)
            optimizer.step()
            schedule.step()
            trainer.keep_best()
        out |= {"loss": torch.stack(losses), "learning_rates": torch.tensor(rates), "logits_train": logits[0]}
        out |= {"keys_after": cache.keys.clone(), "logits_after": trainer.model.score(test)}
        cache.restore()
        trainer.search()
        best = torch.stack([cache.beta, cache.alpha])
        return out | {"best_beta_alpha": best, "logits_best": trainer.model.score(test)}

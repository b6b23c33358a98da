"""One case: a variant of a method's golden figures, and the same figures by the trainer of this repository."""

import re
from copy import deepcopy
from functools import cached_property

import numpy as np
import torch

from dassl.config import flatten, merge_config
from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_optimizer
from orthcr.run.declarations import default_cfg
from trainers.shared.prompts import fill_template
from trainers.shared.templates import CUSTOM_TEMPLATES
from trainers.shared.tokens import tokenize

from . import recipe

DATASET = "golden"  # whose template is that of the json


class Case:
    """A subclass names its trainer, and overrides what its method has in another way than most.

    Args:
        name: of the variant.
        spec: the whole json.
        sizes, sha256: of the tiny CLIP, from recipe.json.
        golden: arrays by name, without the variant's.

    Attributes:
        trainer: registered name.
        unused: keys of the original's settings that decide nothing.
    """

    trainer = ""
    unused = ()

    def __init__(self, name: str, spec: dict, sizes: dict, sha256: str, golden: dict[str, np.ndarray]):
        self.name, self.spec, self.sizes, self.sha256, self.golden = name, spec, sizes, sha256, golden
        self.variant, self.inputs = spec["variants"].get(name, {}), spec["inputs"]
        self.label = torch.tensor(self.inputs["labels"])
        self.image, self.more_images, self.test_images = (
            recipe.images(seed_of(self.inputs[key]), len(self.label), sizes["image_resolution"])
            for key in ("images", "more_images", "test_images")
        )

    # ---------------------------------------------------------------- what a method may have in another way

    def settings(self) -> dict:
        """Config keys and values, dotted."""
        return {key: value for key, value in flatten(self.variant["settings"]).items() if key not in self.unused}

    def use_template(self, template: str) -> None:
        """Makes it the template of the data set."""
        CUSTOM_TEMPLATES[DATASET] = template

    def ours(self, name: str) -> str:
        """Name, in our model, of a tensor that the original calls `name`."""
        return name

    def terms(self, trainer, terms: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The loss and, without their weights, its terms, by the golden names."""
        return {"loss": sum(terms.values())}

    def all_logits(self, trainer) -> dict[str, torch.Tensor]:
        """Logits as in an evaluation, by their golden names."""
        return {"logits": self.logits(trainer)}

    def optimizer(self, trainer) -> torch.optim.Optimizer:
        return build_optimizer(trainer.model.get_submodule(trainer.learner), trainer.cfg.OPTIM)

    def after_step(self, trainer, step: int) -> None:
        """What else the original does after this step, from 0."""

    def tokens(self, trainer) -> torch.Tensor:
        return trainer.model.prompt_learner.tokens

    def prompts(self) -> torch.Tensor:
        """Return the tokens of the template with each class, as long as CLIP's context."""
        tokens = tokenize(fill_template(self.inputs["template"], self.inputs["classnames"]))
        return torch.nn.functional.pad(tokens, (0, self.sizes["context_length"] - tokens.shape[1]))

    def figures(self) -> dict[str, np.ndarray]:
        """Our figures by their golden names."""
        trainer = self.build(self.inputs["classnames"])
        out = {f"init/{name}": self.parameter(trainer, name) for name in self.variant["trained"]}
        self.start(trainer)
        if "tokens" in self.golden:
            tokens = self.tokens(trainer)
            out["tokens"] = torch.nn.functional.pad(tokens, (0, self.sizes["context_length"] - tokens.shape[1]))
        out |= self.all_logits(trainer)
        out |= self.steps(trainer)
        out |= {f"{name}_after": logits for name, logits in self.all_logits(trainer).items()}
        if "new_logits" in self.golden:
            new = self.build(self.inputs["new_classnames"])
            new.model.get_submodule(new.learner).load_state_dict(
                trainer.model.get_submodule(trainer.learner).state_dict()
            )
            out |= {f"new_{name}": logits for name, logits in self.all_logits(new).items()}
        return {name: value.detach().numpy() for name, value in out.items()}

    # ---------------------------------------------------------------- what all share

    @cached_property
    def clip(self):
        return recipe.tiny_clip(self.sizes, self.sha256)

    def build(self, classnames: list[str]):
        """A trainer with its classifier on the tiny CLIP, without a data set."""
        cls = TRAINER_REGISTRY.get(self.trainer)
        cfg = default_cfg(self.trainer)
        self.use_template(self.inputs["template"])
        settings = {"DATASET.NAME": DATASET, "TRAINER.NAME": self.trainer, **self.settings()}
        merge_config(cfg, [word for pair in settings.items() for word in pair])
        trainer = cls.__new__(cls)  # the engine's set-up would load a data set
        trainer.cfg, trainer.device = cfg, torch.device("cpu")
        trainer.check_cfg(cfg)
        trainer.model = trainer.build_classifier(deepcopy(self.clip), classnames).to(torch.get_default_dtype())
        trainer.set_precision("fp32")
        return trainer

    def parameter(self, trainer, name: str) -> torch.Tensor:
        return trainer.model.get_parameter(self.ours(name)).detach().clone()

    def starts(self) -> dict[str, torch.Tensor]:
        """Start values by the original's names: s z(seed) as the json says, or stored."""
        values = {}
        for name, tensor in self.variant["trained"].items():
            rule = re.fullmatch(r"([\d.e-]+) \* RandomState\((\d+)\)", tensor["initial"])
            if rule:
                value = (float(rule[1]) * recipe.z(int(rule[2]), *tensor["shape"])).astype(np.float32)
            else:
                value = self.golden[f"init/{name}"]
            values[name] = torch.from_numpy(np.array(value)).to(torch.get_default_dtype())
        return values

    @torch.no_grad()
    def start(self, trainer) -> None:
        for name, value in self.starts().items():
            trainer.model.get_parameter(self.ours(name)).copy_(value)

    @torch.no_grad()
    def logits(self, trainer, image: torch.Tensor | None = None) -> torch.Tensor:
        """As in an evaluation; of the first images by default."""
        trainer.model.eval()
        return trainer.model_inference(self.image if image is None else image)

    def steps(self, trainer, count: int = 3) -> dict[str, torch.Tensor]:
        """Losses of each step, gradients of the first, tensors after the last."""
        optimizer = self.optimizer(trainer)
        names, losses, out = list(self.variant["trained"]), [], {}
        start = {name: self.parameter(trainer, name) for name in names}
        trainer.model.train()
        for step in range(count):
            terms, _ = trainer.losses(self.image, self.label)
            losses.append(self.terms(trainer, terms))
            optimizer.zero_grad()
            trainer.backward(terms)
            if step == 0:
                out |= {f"grad/{n}": trainer.model.get_parameter(self.ours(n)).grad.clone() for n in names}
            optimizer.step()
            self.after_step(trainer, step)
        out |= {name: torch.stack([terms[name].detach() for terms in losses]) for name in losses[0]}
        for name in names:
            out[f"after/{name}"] = self.parameter(trainer, name)
            out[f"change/{name}"] = out[f"after/{name}"] - start[name]
        return out


def seed_of(text: str) -> int:
    """Of "RandomState(1000)"."""
    return int(re.fullmatch(r"RandomState\((\d+)\)", text)[1])

"""2SFS: both stages with their schedules, and the classifier of new classes."""

import torch

from dassl.optim import build_optimizer
from trainers.shared.encoders import normalize

from .case import Case

ENCODERS = {"both": ["image", "text"], "vision": ["image"], "text": ["text"]}


class Golden(Case):
    trainer = "TwoStageFS"

    def settings(self):
        given, node = self.variant["settings"], "TRAINER.TWOSTAGEFS."
        modality = given["ln_modality"] if given["peft"] == "ln" else given["encoder"]
        return {
            "OPTIM.NAME": "adamw",
            "OPTIM.LR": given["lr"],
            "OPTIM.WEIGHT_DECAY": given["wd"],
            "OPTIM.LR_SCHEDULER": "cosine",
            node + "N_ITERS": given["n_iters"],
            node + "N_ITERS_FRAC": given["n_iters_frac"],
            node + "PEFT": given["peft"],
            node + "ENCODERS": ENCODERS[modality],
            node + "LN_VISION_START": given["ln_vision_start"],
            node + "LN_TEXT_START": given["ln_text_start"],
        }

    def ours(self, name):
        if name == "classifier":
            return "stages.classifier"
        encoder = "image" if name.startswith("visual.") else "text"
        return f"stages.{encoder}.{name.removeprefix('visual.').replace('.', '/')}"

    def stage(self, trainer, optimizer, schedule, count: int, names: list[str]) -> dict:
        losses, rates, out = [], [], {}
        for step in range(count):
            trainer.model.train()
            terms, z = trainer.losses(self.image, self.label)
            optimizer.zero_grad()
            sum(terms.values()).backward()
            if step == 0:
                out["logits"] = z
                out |= {f"grad/{n}": trainer.model.get_parameter(self.ours(n)).grad.clone() for n in names}
            losses.append(terms["ce"])
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        out |= {f"after/{n}": self.parameter(trainer, n) for n in names}
        return out | {"loss": torch.stack(losses), "learning_rates": torch.tensor(rates)}

    def figures(self):
        trainer = self.build(self.inputs["classnames"])
        model, steps = trainer.model, self.variant["settings"]["n_iters"] * self.variant["settings"]["shots"]
        names = [name for name in self.variant["trained"] if name != "classifier"]
        assert {self.ours(n) for n in self.variant["trained"]} == {
            f"stages.{n}" for n, _ in model.stages.named_parameters()
        }
        out = {"tokens": self.prompts(), "zero_shot": self.logits(trainer)}
        trainer.train_loader_x = None
        trainer.optim = optimizer = build_optimizer(model.stages, trainer.cfg.OPTIM)
        schedule = trainer.two_schedules(steps)
        first = self.stage(trainer, optimizer, schedule, trainer.first_steps, names)
        model.begin_second()
        model.is_second_stage = True
        out["init/classifier"] = self.parameter(trainer, "classifier")
        second = self.stage(trainer, optimizer, schedule, steps - trainer.first_steps, ["classifier"])
        for which, stage in (("first", first), ("second", second)):
            out |= {f"{key}_{which}": stage[key] for key in ("loss", "learning_rates")}
            out[f"train_logits_{which}"] = stage["logits"]
            out |= {key: value for key, value in stage.items() if "/" in key}
        out["test_logits"] = self.logits(trainer, self.test_images)
        with torch.no_grad():
            out["image_features_second"] = model.encode_image(self.image)
            out["test_features"] = model.encode_image(self.test_images)
        if "new_logits" in self.golden:
            new = self.build(self.inputs["new_classnames"])
            state = model.stages.state_dict() | {
                name: new.model.stages.state_dict()[name] for name in ("classifier", "trained")
            }
            new.model.stages.load_state_dict(state)
            out["new_logits"] = self.logits(new, self.test_images)
            with torch.no_grad():
                out["new_classifier"] = normalize(new.model.encode_text())
        return {name: value.detach().numpy() for name, value in out.items()}

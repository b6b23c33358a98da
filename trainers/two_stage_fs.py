"""Two stages of few-shot adaptation (2SFS). First the features are adapted, then the classifier.

Farina et al. 2025, "Rethinking Few-Shot Adaptation of Vision-Language Models in Two Stages", CVPR.

    stage 1   int(N_ITERS_FRAC T) of the T steps, T = N_ITERS steps a shot
              z = s f g^T,   L = CE(z, y);   the LayerNorms of the blocks of both encoders are trained (PEFT ln)
    stage 2   the other steps; the encoders stay as they are
              z = s f (w / |w|)^T,   L = CE(z, y);   w [n_cls, d] is trained, from the g of the end of stage 1

Each stage has its own cosine schedule. An evaluation uses w_c for classes that were trained on, and g_c of the adapted
text encoder for all other classes ("selective inference").
"""

import torch
from torch import nn
from torch.optim.lr_scheduler import SequentialLR

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler

from .base import ClipTrainer
from .shared.backbones import is_vit
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize, wide
from .shared.iterations import Iterations
from .shared.keys import SOME, Key
from .shared.prompts import fill_template, template_for
from .shared.weights import ENCODERS, copy_with

BLOCKS = "transformer.resblocks."


def trained_names(module: nn.Module, peft: str, first_block: int, outer_norms: bool) -> list[str]:
    """Return the names of the encoder's parameters that stage 1 trains.

    Args:
        module: the encoder.
        peft: ln, the LayerNorms; bitfit, each bias of a layer, which the packed bias of q, k and v is not.
        first_block: number of the first block whose LayerNorms are trained.
        outer_norms: whether the LayerNorms outside of the blocks are trained as well.
    """
    if peft == "bitfit":
        return [name for name, _ in module.named_parameters() if name.endswith(".bias")]
    names = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.LayerNorm):
            is_in_block = name.startswith(BLOCKS)
            if int(name.split(".")[2]) >= first_block if is_in_block else outer_norms:
                names += [f"{name}.weight", f"{name}.bias"]
    return names


class Stages(nn.Module):
    """The trained tensors of both stages.

    Args:
        start: CLIP's values of the tensors of stage 1, by encoder and name.
        text: CLIP's text features, float [n_cls, d].

    Attributes:
        trained: whether a class has a row of the classifier, bool [n_cls]; False in stage 1.
    """

    def __init__(self, start: dict[str, dict[str, torch.Tensor]], text: torch.Tensor):
        super().__init__()
        for encoder, tensors in start.items():
            values = {name.replace(".", "/"): wide(t.detach()).clone() for name, t in tensors.items()}
            setattr(self, encoder, nn.ParameterDict(values))
        self.classifier = nn.Parameter(text.clone())
        self.register_buffer("trained", torch.zeros(len(text), dtype=torch.bool))

    def parameters_of(self, encoder: str) -> dict[str, nn.Parameter]:
        """Return the trained tensors of an encoder by their names there."""
        return {name.replace("/", "."): parameter for name, parameter in getattr(self, encoder).items()}


class StagedCLIP(ClipClassifier):
    def __init__(self, node, clip_model, classnames: list[str], template: str):
        super().__init__(clip_model, classnames, [template])
        self.encoders = {"image": self.image_encoder, "text": self.text_encoder}
        first, start = {"image": node.LN_VISION_START, "text": node.LN_TEXT_START}, {}
        for encoder in ENCODERS:
            module = self.encoders[encoder]
            chosen = encoder in node.ENCODERS
            names = trained_names(module, node.PEFT, first[encoder], node.OUTER_NORMS) if chosen else []
            start[encoder] = {name: module.get_parameter(name) for name in names}
        tokens = self.text_encoder.tokenize(fill_template(template, classnames))
        self.register_buffer("tokens", tokens.to(self.logit_scale.device), persistent=False)
        self.stages = Stages(start, self.frozen_text)
        self.is_second_stage = False  # whether stage 2 is being trained

    def adapted_encoder(self, encoder: str) -> nn.Module:
        """Return the encoder with the trained tensors in place of CLIP's."""
        return copy_with(self.encoders[encoder], self.stages.parameters_of(encoder))

    def encode_image(self, image):
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_second_stage):
            return normalize(self.adapted_encoder("image")(image))

    def adapted_text(self) -> torch.Tensor:
        """Return g float [n_cls, d] of the adapted text encoder."""
        if not self.stages.parameters_of("text"):
            return self.frozen_text
        return normalize(self.adapted_encoder("text")(None, self.tokens))

    def encode_text(self):
        if self.training:
            return normalize(self.stages.classifier) if self.is_second_stage else self.adapted_text()
        rows = normalize(self.stages.classifier)
        return torch.where(self.stages.trained.unsqueeze(1), rows, self.adapted_text())

    @torch.no_grad()
    def begin_second(self) -> None:
        """Start stage 2: the classifier becomes the adapted text features."""
        self.stages.classifier.copy_(self.adapted_text())
        self.stages.trained.fill_(True)


@TRAINER_REGISTRY.register()
class TwoStageFS(Iterations, ClipTrainer):
    """Two stages in one training, counted in steps."""

    defaults = ClipTrainer.defaults | {
        **Iterations.keys,
        "N_ITERS_FRAC": Key(0.6, low=0, high=1),  # fraction of the steps of stage 1; 1 = stage 1 alone
        "PEFT": Key("ln", choices=["ln", "bitfit"]),
        "ENCODERS": Key(ENCODERS, choices=ENCODERS, rule=SOME),
        "LN_VISION_START": Key(0, low=0),  # first block whose LayerNorms are trained
        "LN_TEXT_START": Key(0, low=0),
        "OUTER_NORMS": False,  # whether ln_pre, ln_post and ln_final are trained, which the original means to
        "TEMPLATE": "a photo of a {}.",  # the template of the original for all data sets; "" = the data set's template
    }
    learner = "stages"
    per_class = ("classifier", "trained")

    def check_node(self, node):
        super().check_node(node)
        if node.PEFT == "bitfit" and (node.LN_VISION_START or node.LN_TEXT_START or node.OUTER_NORMS):
            layer_keys = ", ".join(map(self.key, ("LN_VISION_START", "LN_TEXT_START", "OUTER_NORMS")))
            raise ValueError(
                f"{layer_keys} choose LayerNorms, but {self.key('PEFT')} is bitfit: leave them out, or take ln"
            )

    def check_cfg(self, cfg):
        super().check_cfg(cfg)
        if cfg.OPTIM.WARMUP_EPOCH > 0:
            raise ValueError("OPTIM.WARMUP_EPOCH: the two stages have no warm-up, so set it to -1")

    def build_classifier(self, clip_model, classnames):
        if "image" in self.node.ENCODERS and not is_vit(clip_model):
            key = self.key("ENCODERS")
            raise ValueError(f"the image encoder is a ResNet without LayerNorms: take a ViT, or {key} \"['text']\"")
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return StagedCLIP(self.node, clip_model, classnames, template)

    def build_model(self):
        super().build_model()
        if self.train_loader_x is not None:  # predict.py has no training data
            self.sched = self._scheds[self.learner] = self.two_schedules(self.max_epoch * len(self.train_loader_x))

    def two_schedules(self, steps: int) -> SequentialLR:
        """Return one schedule for each stage, one after the other, for a number of steps in all."""
        self.first_steps = int(self.node.N_ITERS_FRAC * steps)
        lengths, schedules = [n for n in (self.first_steps, steps - self.first_steps) if n], []
        for group in self.optim.param_groups:
            group["lr"] = group["initial_lr"] = self.cfg.OPTIM.LR
        for length in lengths:
            optim = self.optim_cfg()
            optim.defrost()
            optim.MAX_EPOCH = length
            schedules.append(build_lr_scheduler(self.optim, optim))
            getattr(schedules[-1], "successor", schedules[-1]).eta_min = self.node.LR_MIN
        schedule = SequentialLR(self.optim, schedules, milestones=lengths[:-1])
        schedule.base_lrs = schedules[0].base_lrs  # for results.json
        return schedule

    def forward_backward(self, batch):
        step = self.epoch * self.num_batches + self.batch_idx
        if step == self.first_steps:
            self.model.begin_second()
        self.model.is_second_stage = step >= self.first_steps
        return super().forward_backward(batch)

"""dassl.modeling, and the other parts of Dassl that its trainers of domain adaptation use."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from dassl.data.datasets import DatasetBase, Datum
from dassl.engine import SimpleNet
from dassl.engine.trainer import SummaryWriter
from dassl.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    Backbone,
    build_backbone,
    build_head,
    build_network,
)
from dassl.modeling.backbone import resnet18, resnet34, resnet50, resnet101, resnet152
from dassl.modeling.head import mlp
from dassl.modeling.ops import ReverseGrad, cross_entropy, mixup
from dassl.modeling.ops.utils import (
    create_onehot,
    ema_model_update,
    linear_rampup,
    reverse_index,
    sharpen_prob,
    shuffle_index,
    sigmoid_rampup,
)
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.optim.lr_scheduler import AVAI_SCHEDS
from dassl.optim.optimizer import AVAI_OPTIMS
from dassl.optim.radam import RAdam
from dassl.utils import init_network_weights
from dassl.utils.torchtools import adjust_learning_rate, set_bn_to_eval


@pytest.mark.parametrize(
    "build, block, depth, width", [(resnet18, BasicBlock, 8, 512), (resnet50, Bottleneck, 16, 2048)]
)
def test_resnets(build, block, depth, width):
    net = build_backbone(build.__name__, verbose=False, pretrained=False).eval()
    assert isinstance(net, Backbone) and net.out_features == width
    assert sum(isinstance(module, block) for module in net.modules()) == depth
    assert not [name for name in net.state_dict() if name.startswith("fc")]
    image = torch.randn(2, 3, 64, 64)
    maps = net.featuremaps(image)
    assert maps.shape == (2, width, 2, 2)
    torch.testing.assert_close(net(image), maps.mean((2, 3)))


def test_the_initial_weights_of_a_seed_are_those_of_a_resnet_without_classifier():
    """Drawn as Dassl's: first each layer as PyTorch does, then each convolution from He's normal distribution."""
    torch.manual_seed(3)
    net = resnet18(pretrained=False)
    state = torch.get_rng_state()

    torch.manual_seed(3)
    shapes = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}
    first = {name: nn.Conv2d(m.in_channels, m.out_channels, m.kernel_size, bias=False) for name, m in shapes.items()}
    for name in shapes:  # the order of drawing decides, not of the first, which are drawn over
        nn.init.kaiming_normal_(first[name].weight, mode="fan_out", nonlinearity="relu")
        assert torch.equal(first[name].weight, shapes[name].weight), name
    assert torch.equal(torch.get_rng_state(), state)


def test_the_larger_resnets_are_registered():
    for build in (resnet18, resnet34, resnet50, resnet101, resnet152):
        assert BACKBONE_REGISTRY.get(build.__name__) is build
    with torch.device("meta"):
        parts = [len(list(build(pretrained=False).layer3)) for build in (resnet34, resnet101, resnet152)]
    assert parts == [6, 23, 36]


def test_own_backbones_and_heads_are_found_by_name(monkeypatch, bare_cfg, capsys):
    class Flat(Backbone):
        def __init__(self):
            super().__init__()
            self._out_features = 12

        def forward(self, x):
            return x.flatten(1)

    def flat(pretrained=True, **kwargs):
        return Flat()

    for registry in (BACKBONE_REGISTRY, HEAD_REGISTRY, NETWORK_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))
    BACKBONE_REGISTRY.register(flat)
    NETWORK_REGISTRY.register(flat)
    assert isinstance(build_network("flat"), Flat) and Backbone().out_features is None
    cfg = bare_cfg("MODEL.BACKBONE.NAME", "flat", "MODEL.HEAD.NAME", "mlp", "MODEL.HEAD.HIDDEN_LAYERS", (5, 7))
    net = SimpleNet(cfg, cfg.MODEL, 3)
    assert net(torch.randn(4, 3, 2, 2)).shape == (4, 3) and net.fdim == 7
    assert "Backbone: flat" in capsys.readouterr().out
    with pytest.raises(ValueError, match="resnet18"):
        build_backbone("resnet19")


def test_heads():
    assert HEAD_REGISTRY.get("mlp") is mlp
    head = build_head("mlp", verbose=False, in_features=6, hidden_layers=[5, 4], dropout=0.5, activation="leaky_relu")
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "LeakyReLU", "Dropout"] * 2 and head.out_features == 4
    assert head(torch.randn(3, 6)).shape == (3, 4)
    assert [type(layer) for layer in mlp(in_features=2, hidden_layers=3, bn=False).mlp] == [nn.Linear, nn.ReLU]
    for wrong in ({"hidden_layers": ()}, {"hidden_layers": (3,), "activation": "relu6"}):
        with pytest.raises(ValueError, match="HIDDEN_LAYERS|leaky_relu"):
            build_head("mlp", **wrong)


# ------------------------------------------------------------------ ops


def test_reverse_grad():
    x = torch.randn(4, 3, requires_grad=True)
    y = ReverseGrad()(x, grad_scaling=0.3)
    assert torch.equal(y, x)
    (y * torch.arange(3.0)).sum().backward()
    torch.testing.assert_close(x.grad, -0.3 * torch.arange(3.0).expand(4, 3))
    with pytest.raises(ValueError, match="at least 0"):
        ReverseGrad()(x, -1.0)


def test_mixup():
    x1, x2, y1, y2 = torch.randn(6, 3, 4, 4), torch.randn(6, 3, 4, 4), torch.rand(6, 5), torch.rand(6, 5)
    for preserve in (False, True):
        torch.manual_seed(1)
        x, y = mixup(x1, x2, y1, y2, 0.75, preserve)
        torch.manual_seed(1)
        weights = torch.distributions.Beta(0.75, 0.75).sample([6, 1, 1, 1]).flatten().tolist()
        for i, weight in enumerate(weights):
            weight = max(weight, 1 - weight) if preserve else weight
            torch.testing.assert_close(x[i], weight * x1[i] + (1 - weight) * x2[i])
            torch.testing.assert_close(y[i], weight * y1[i] + (1 - weight) * y2[i])


def test_small_operations():
    logits, label = torch.randn(7, 4), torch.randint(4, (7,))
    torch.testing.assert_close(cross_entropy(logits, label), F.cross_entropy(logits, label))
    smooth = 0.9 * create_onehot(label, 4) + 0.1 / 4
    torch.testing.assert_close(
        cross_entropy(logits, label, 0.1, "sum"), -(smooth * logits.log_softmax(1)).sum(), msg="label smoothing"
    )
    assert create_onehot(label, 4).argmax(1).tolist() == label.tolist() and create_onehot(label, 4).sum() == 7
    p = torch.rand(3, 4)
    torch.testing.assert_close(sharpen_prob(p, 3), p**3 / (p**3).sum(1, keepdim=True))
    data = torch.arange(7.0)
    assert reverse_index(data, label)[0].tolist() == list(range(7))[::-1]
    torch.manual_seed(2)
    mixed, labels = shuffle_index(data, label)
    torch.manual_seed(2)
    assert mixed.tolist() == torch.randperm(7).tolist() and labels.tolist() == label[mixed.long()].tolist()
    assert [linear_rampup(n, 4) for n in (-1, 1, 9)] == [0.0, 0.25, 1.0]
    assert sigmoid_rampup(1, 4) == pytest.approx(math.exp(-5 * 0.75**2)) and sigmoid_rampup(9, 4) == 1
    with pytest.raises(ValueError, match="above 0"):
        linear_rampup(1, 0)
    model, average = nn.Linear(2, 2), nn.Linear(2, 2)
    expected = 0.9 * average.weight.detach() + 0.1 * model.weight.detach()
    ema_model_update(model, average, 0.9)
    torch.testing.assert_close(average.weight.detach(), expected)


# ------------------------------------------------------------------ optim and utils


def test_every_available_name_builds(bare_cfg):
    for name in AVAI_OPTIMS:
        cfg = bare_cfg("OPTIM.NAME", name)
        optimizer = build_optimizer(nn.Linear(2, 2), cfg.OPTIM)
        for schedule in AVAI_SCHEDS:
            cfg.OPTIM.LR_SCHEDULER = schedule
            build_lr_scheduler(optimizer, cfg.OPTIM)
    assert AVAI_OPTIMS == ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"]


def test_radam_is_its_formula():
    weight = nn.Parameter(torch.randn(5, dtype=torch.double))
    optimizer = RAdam([weight], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    expected, mean, square = weight.detach().clone(), 0.0, 0.0
    for t in range(1, 30):
        gradient = torch.randn(5, dtype=torch.double)
        weight.grad = gradient
        optimizer.step()
        mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
        expected = expected * (1 - 0.01 * 0.1)
        longest = 2 / (1 - 0.99) - 1
        length = longest - 2 * t * 0.99**t / (1 - 0.99**t)
        step = 0.01 * mean / (1 - 0.9**t)
        if length > 5:
            ratio = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
            step = step * math.sqrt(ratio * (1 - 0.99**t)) / (square.sqrt() + 1e-8)
        expected = expected - step
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="degenerated_to_sgd"):
        RAdam([weight], degenerated_to_sgd=False)


def test_learning_rate_without_a_scheduler():
    optimizer = torch.optim.SGD(
        [{"params": nn.Linear(1, 1).parameters()}, {"params": [nn.Parameter(torch.ones(1))]}], 1.0
    )
    for options, expected in (
        ({"epoch": 45}, 0.2 * 0.1**2),
        ({"epoch": 7, "stepsize": 3, "gamma": 0.5}, 0.2 * 0.5**2),
        ({"epoch": 25, "linear_decay": True, "final_lr": 0.1}, 0.175),
    ):
        adjust_learning_rate(optimizer, 0.2, **options)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)


def test_batch_normalisations_go_to_evaluation_alone():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()).train()
    net.apply(set_bn_to_eval)
    assert [module.training for module in net] == [True, False, True] and net[1].weight.requires_grad


@pytest.mark.parametrize("kind", ["normal", "xavier", "kaiming", "orthogonal"])
def test_network_weights(kind):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True), nn.Linear(64, 64))
    for param in net.parameters():
        nn.init.constant_(param, 5.0)
    init_network_weights(net, kind, gain=0.5)
    weight = net[3].weight.detach()
    if kind == "orthogonal":
        torch.testing.assert_close(weight @ weight.T, 0.25 * torch.eye(64), rtol=1e-4, atol=1e-4)
    else:
        deviation = {"normal": 0.5, "xavier": 0.5 * math.sqrt(2 / 128), "kaiming": math.sqrt(2 / 64)}[kind]
        assert weight.std() == pytest.approx(deviation, rel=0.1)
    assert not any(module.bias.any() for module in net)
    assert net[1].weight.eq(1).all() and net[2].weight.eq(1).all() and net[0].weight.abs().max() < 5
    with pytest.raises(ValueError, match="xavier"):
        init_network_weights(net, "xaviers")


def test_summary_writer_comes_from_the_trainers_module(tmp_path):
    with SummaryWriter(log_dir=str(tmp_path)) as writer:
        writer.add_scalar("a", 1.0, 0)
    assert list(tmp_path.glob("events.*"))


def test_input_domains():
    class Two(DatasetBase):
        domains = ["photo", "sketch"]

    dataset = Two(train_x=[Datum(label=0)])
    dataset.is_input_domain_valid(["photo", "sketch"])
    for wrong in (
        lambda: dataset.is_input_domain_valid(["photos"]),
        lambda: dataset.check_input_domains([], ["photos"]),
    ):
        with pytest.raises(ValueError, match='"photos".*"photo"'):
            wrong()

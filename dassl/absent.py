"""The public names of Dassl.pytorch that this package does not have, with their files in Dassl."""

_TRAINERS = {
    "da": "AdaBN ADDA CDAC DAEL DANN M3SDA MCD MME SE SourceOnly",
    "dg": "CrossGrad DAELDG DDAIG DomainMix Vanilla",
    "ssl": "EntMin FixMatch MeanTeacher MixMatch SupBaseline",
}
_DATASETS = {
    "da": "CIFARSTL Digit5 DomainNet miniDomainNet Office31 OfficeHome VisDA17",
    "dg": "Camelyon17 CIFAR10C CIFAR100C DigitSingle DigitsDG FMoW IWildCam OfficeHomeDG PACS VLCS",
    "ssl": "CIFAR10 CIFAR100 STL10 SVHN",
}
_BACKBONES = {
    "alexnet": "alexnet",
    "vgg": "vgg16",
    "wide_resnet": "wide_resnet_16_4 wide_resnet_28_2",
    "cnn_digitsdg": "cnn_digitsdg",
    "cnn_digitsingle": "cnn_digitsingle",
    "cnn_digit5_m3sda": "cnn_digit5_m3sda",
    "preact_resnet18": "preact_resnet18",
    "efficientnet": " ".join(f"efficientnet_b{i}" for i in range(8)),
    "resnet": "resnet18_ms_l1 resnet18_ms_l12 resnet18_ms_l123 resnet50_ms_l1 resnet50_ms_l12 resnet50_ms_l123 "
    "resnet101_ms_l1 resnet101_ms_l12 resnet101_ms_l123 resnet18_efdmix_l1 resnet18_efdmix_l12 resnet18_efdmix_l123 "
    "resnet50_efdmix_l1 resnet50_efdmix_l12 resnet50_efdmix_l123 resnet101_efdmix_l1 resnet101_efdmix_l12 "
    "resnet101_efdmix_l123",
}
_OPS = {
    "mmd": "MaximumMeanDiscrepancy",
    "dsbn": "DSBN1d DSBN2d",
    "transnorm": "TransNorm1d TransNorm2d",
    "sequential2": "Sequential2",
    "optimal_transport": "SinkhornDivergence MinibatchEnergyDistance",
    "mixstyle": "MixStyle random_mixstyle activate_mixstyle run_with_mixstyle deactivate_mixstyle crossdomain_mixstyle "
    "run_without_mixstyle",
    "efdmix": "EFDMix random_efdmix activate_efdmix run_with_efdmix deactivate_efdmix crossdomain_efdmix "
    "run_without_efdmix",
}

# module of Dassl -> {name: description and place in Dassl}
ABSENT = {
    "dassl.engine": {
        name: f"a trainer of Dassl's own, of dassl/engine/{folder}/"
        for folder, names in _TRAINERS.items()
        for name in names.split()
    },
    "dassl.data.datasets": {
        name: f"a data set of Dassl's own, of dassl/data/datasets/{folder}/"
        for folder, names in _DATASETS.items()
        for name in names.split()
    },
    "dassl.modeling.backbone": {
        name: f"a backbone of dassl/modeling/backbone/{file}"
        for file, names in _BACKBONES.items()
        for name in names.split()
    },
    "dassl.modeling.network": {
        name: "a network of dassl/modeling/network/ddaig_fcn.py"
        for name in ("fcn_3x32_gctx", "fcn_3x64_gctx", "fcn_3x32_gctx_stn", "fcn_3x64_gctx_stn")
    },
    "dassl.modeling.ops": {
        name: f"an operation of dassl/modeling/ops/{file}.py" for file, names in _OPS.items() for name in names.split()
    },
    "dassl.optim.radam": {name: "an optimizer of dassl/optim/radam.py" for name in ("PlainRAdam", "AdamW")},
}


def explain(name, module):
    """Return a line about a name of Dassl's `module` that is missing here; "" for any other name."""
    description = ABSENT[module].get(name)
    if not description:
        return ""
    advice = "copy the file from Dassl.pytorch and register it" if module != "dassl.modeling.ops" else "copy that file"
    return f"{name} is not in this dassl. It is {description} in Dassl.pytorch: {advice}, see docs/coop.md"


def absent_names(module):
    """Return a `__getattr__` for a module. It raises ImportError with the reason for a missing name of Dassl."""

    def __getattr__(name):
        reason = explain(name, module)
        if reason:
            raise ImportError(reason)
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return __getattr__


def check_registered(name, registry, module):
    """Check that `name` is registered.

    Raises:
        ValueError: it is not. The message has its file in Dassl, or else the nearest registered name.
    """
    from dassl.names import check_availability

    names = registry.registered_names()
    if name not in names and explain(name, module):
        raise ValueError(explain(name, module))
    check_availability(name, names)

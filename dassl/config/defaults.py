"""The generic config keys, with Dassl's names and defaults, and their allowed values.

Trainers add theirs to TRAINER.
"""

from yacs.config import CfgNode as CN

from .keys import Key, values

SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")
TRANSFORMS = (
    *("random_translation", "random_crop", "random_resized_crop", "random_flip", "center_crop"),
    *("imagenet_policy", "cifar10_policy", "svhn_policy", "randaugment", "randaugment_fixmatch", "randaugment2"),
    *("colorjitter", "randomgrayscale", "gaussian_blur", "cutout", "normalize", "gaussian_noise", "instance_norm"),
)
RISING = ("the second no smaller than the first", lambda pair: pair[0] <= pair[1])

# A plain value instead of a Key allows all values of its type
KEYS = {
    "OUTPUT_DIR": "./output",  # log, checkpoints, results
    "RESUME": "",  # OUTPUT_DIR of the run to resume
    "SEED": Key(-1, below=2**32),  # negative: every run differs
    "USE_CUDA": True,  # if there is a CUDA device
    "VERBOSE": True,  # print which trainer, data set, backbone... is built
    "INPUT": {
        "SIZE": Key((224, 224), length=2, low=1, high=4096),  # height, width in pixels
        "INTERPOLATION": Key("bilinear", choices=("bilinear", "bicubic", "nearest")),  # of resizing
        # of test images: "shorter" resizes the shorter side and crops the centre, "squash" changes the aspect ratio
        "RESIZE": Key("shorter", choices=("shorter", "squash")),  # not in Dassl
        "TRANSFORMS": Key((), choices=TRANSFORMS),  # of training, in any order: dassl/data/transforms fixes it
        "EXIF_TRANSPOSE": False,  # own photographs: upright, on white, large ones reduced; not in Dassl
        "NO_TRANSFORM": False,  # leave the images as they are
        "PIXEL_MEAN": Key([0.485, 0.456, 0.406], length=3, low=0, high=1),  # ImageNet's, of values in [0, 1]
        "PIXEL_STD": Key([0.229, 0.224, 0.225], length=3, low=0.001, high=100),
        "CROP_PADDING": Key(4, low=0),  # random_crop, in pixels
        "RRCROP_SCALE": Key((0.08, 1.0), length=2, above=0, high=1, rule=RISING),  # random_resized_crop: of the area
        "CUTOUT_N": Key(1, low=0, high=1000),  # cutout: number of squares
        "CUTOUT_LEN": Key(16, low=0),  # and their side in pixels
        "GN_MEAN": Key(0.0, low=-100, high=100),  # gaussian_noise
        "GN_STD": Key(0.15, low=0, high=100),
        "RANDAUGMENT_N": Key(2, low=0, high=100),  # number of operations
        "RANDAUGMENT_M": Key(10, low=0, high=30),  # magnitude
        "COLORJITTER_B": Key(0.4, low=0, high=10),  # brightness
        "COLORJITTER_C": Key(0.4, low=0, high=10),  # contrast
        "COLORJITTER_S": Key(0.4, low=0, high=10),  # saturation
        "COLORJITTER_H": Key(0.1, low=0, high=0.5),  # hue
        "RGS_P": Key(0.2, low=0, high=1),  # random gray scale: probability
        "GB_P": Key(0.5, low=0, high=1),  # Gaussian blur: probability
        "GB_K": Key(21, low=1, rule=("odd", lambda size: size % 2 == 1)),  # and kernel size
    },
    "DATASET": {
        "ROOT": "",  # directory that holds the data sets
        "NAME": "",
        "SOURCE_DOMAINS": Key((), of=str),  # names of the domains to train on, where a data set has several
        "TARGET_DOMAINS": Key((), of=str),  # and to test on
        "NUM_SHOTS": Key(-1, low=-1, rule=("not 0: -1 means all", bool)),  # labelled images a class (few-shot learning)
    },
    "DATALOADER": {
        "NUM_WORKERS": Key(4, low=0, high=1024),
        "K_TRANSFORMS": Key(1, low=1, high=1000),  # transformed copies of each training image
        "RETURN_IMG0": False,  # add the image without augmentation as "img0"
        "TRAIN_X": {  # labelled
            "SAMPLER": Key("RandomSampler", choices=SAMPLERS),
            "BATCH_SIZE": Key(32, low=1),
            "N_DOMAIN": Key(0, low=-1),  # domains in a batch (RandomDomainSampler); 0 or -1: all
            "N_INS": Key(16, low=1),  # images a class in a batch (RandomClassSampler)
        },
        "TRAIN_U": {  # unlabelled
            "SAME_AS_X": True,  # use TRAIN_X's settings instead of the following
            "SAMPLER": Key("RandomSampler", choices=SAMPLERS),
            "BATCH_SIZE": Key(32, low=1),
            "N_DOMAIN": Key(0, low=-1),
            "N_INS": Key(16, low=1),
        },
        "TEST": {
            "SAMPLER": Key("SequentialSampler", choices=SAMPLERS[:2]),  # the others leave images out
            "BATCH_SIZE": Key(32, low=1),
        },
    },
    "MODEL": {
        "INIT_WEIGHTS": "",  # checkpoint to start from
        "BACKBONE": {"NAME": "", "PRETRAINED": True},
        "HEAD": {  # layers between backbone and classifier
            "NAME": Key("", choices=("", "mlp")),  # empty: none
            "HIDDEN_LAYERS": Key((), of=int, low=1),  # widths, e.g. (512, 512)
            "ACTIVATION": Key("relu", choices=("relu", "leaky_relu")),
            "BN": True,
            "DROPOUT": Key(0.0, low=0, below=1),
        },
    },
    "OPTIM": {
        "NAME": Key("adam", choices=("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")),
        "LR": Key(0.0003, low=0, high=1000),
        "WEIGHT_DECAY": Key(5e-4, low=0, high=1000),
        "MOMENTUM": Key(0.9, low=0, below=1),  # sgd, rmsprop
        "SGD_DAMPNING": Key(0, low=0, high=1),
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": Key(0.99, low=0, below=1),
        "ADAM_BETA1": Key(0.9, low=0, below=1),  # of adam, amsgrad, radam, adamw
        "ADAM_BETA2": Key(0.999, low=0, below=1),
        "STAGED_LR": False,  # train the layers not in NEW_LAYERS at LR * BASE_LR_MULT
        "NEW_LAYERS": Key((), of=str),  # names of direct children of the model
        "BASE_LR_MULT": Key(0.1, low=0, high=1000),
        "LR_SCHEDULER": Key("single_step", choices=("single_step", "multi_step", "cosine")),
        "STEPSIZE": Key((-1,), rule=("at least one", len)),  # epochs; single_step: 0 or negative means MAX_EPOCH
        "GAMMA": Key(0.1, above=0, high=1000),  # factor of a step
        "MAX_EPOCH": Key(10, low=1, high=10**6),
        "WARMUP_EPOCH": Key(-1, high=10**6),  # 0 or negative: no warm-up
        "WARMUP_TYPE": Key("linear", choices=("linear", "constant")),
        "WARMUP_CONS_LR": Key(1e-5, low=0, high=1000),  # constant: the learning rate
        "WARMUP_MIN_LR": Key(1e-5, low=0, high=1000),  # linear: the learning rate of epoch 0
        "WARMUP_RECOUNT": True,  # the schedule after the warm-up counts epochs from 0, not from WARMUP_EPOCH
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": 0,  # in epochs; 0 or negative: the last one only
        "PRINT_FREQ": 10,  # in batches
        "CLASS_CHUNK": Key(0, low=0),  # of CLIP: prompts encoded at once; 0: as many as memory has room for
        "COUNT_ITER": Key("train_x", choices=("train_x", "train_u", "smaller_one")),  # loader that ends an epoch
        "COMPILE": False,  # compile CLIP's encoders; differs in the last bits, see docs/speed.md; not in Dassl
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,  # print each class's accuracy and their mean
        "COMPUTE_CMAT": False,  # save the confusion matrix to OUTPUT_DIR/cmat.pt
        "NO_TEST": False,  # no test after training
        "CALIBRATE": False,  # after training: find a temperature on val and keep it beside the model
        "SPLIT": Key("test", choices=("test", "val")),  # of the final evaluation
        "FINAL_MODEL": Key("last_step", choices=("last_step", "best_val")),  # best_val evaluates every epoch on val
    },
    "TRAINER": {"NAME": ""},
}


def _fits(transform, name):
    """Return a row of TOGETHER: the condition that a transform's length in pixels does not exceed the image."""
    allowed = f'at most the shorter side of INPUT.SIZE, with "{transform}" among INPUT.TRANSFORMS'
    return f"INPUT.{name}", allowed, lambda inp: transform not in inp.TRANSFORMS or inp[name] <= min(inp.SIZE)


# conditions on two keys of INPUT: the key, the allowed values in words, the test
TOGETHER = (_fits("cutout", "CUTOUT_LEN"), _fits("gaussian_blur", "GB_K"), _fits("random_crop", "CROP_PADDING"))

# Keys of Dassl's own data sets, which this project does not have. Nothing in this repository reads them.
# `get_cfg_default` has them, because the train.py of other projects merges YAML files that set them.
UNREAD = {
    "VERSION": 1,
    "DATASET.NUM_LABELED": -1,
    "DATASET.VAL_PERCENT": 0.1,
    "DATASET.STL10_FOLD": -1,
    "DATASET.CIFAR_C_TYPE": "",
    "DATASET.CIFAR_C_LEVEL": 1,
    "DATASET.ALL_AS_UNLABELED": False,
}

_C = CN(values(KEYS))
for _key, _value in UNREAD.items():
    _node = _C.DATASET if _key.startswith("DATASET.") else _C
    _node[_key.rpartition(".")[2]] = _value

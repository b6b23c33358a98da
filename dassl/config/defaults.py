"""Every generic config key with its default, by Dassl's names and values. Trainers add theirs to TRAINER."""

from yacs.config import CfgNode as CN

_C = CN()
_C.OUTPUT_DIR = "./output"  # log, checkpoints, results
_C.RESUME = ""  # OUTPUT_DIR of the run to resume
_C.SEED = -1  # negative: every run differs
_C.USE_CUDA = True  # if there is a CUDA device
_C.VERBOSE = True  # print which trainer, data set, backbone... is built

_C.INPUT = CN()
_C.INPUT.SIZE = (224, 224)  # height, width in pixels
_C.INPUT.INTERPOLATION = "bilinear"  # of resizing: a key of dassl.data.transforms.INTERPOLATION_MODES
_C.INPUT.TRANSFORMS = ()  # names of the training transforms, in any order: dassl/data/transforms fixes it
_C.INPUT.EXIF_TRANSPOSE = False  # own photographs: upright, on white, large ones reduced; not Dassl's
_C.INPUT.NO_TRANSFORM = False  # leave the images as they are
_C.INPUT.PIXEL_MEAN = [0.485, 0.456, 0.406]  # ImageNet's, of values in [0, 1]
_C.INPUT.PIXEL_STD = [0.229, 0.224, 0.225]
_C.INPUT.CROP_PADDING = 4  # random_crop, in pixels
_C.INPUT.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop: fraction of the area
_C.INPUT.CUTOUT_N = 1  # cutout: number of squares
_C.INPUT.CUTOUT_LEN = 16  # and their side in pixels
_C.INPUT.GN_MEAN = 0.0  # gaussian_noise
_C.INPUT.GN_STD = 0.15
_C.INPUT.RANDAUGMENT_N = 2  # number of operations
_C.INPUT.RANDAUGMENT_M = 10  # magnitude
_C.INPUT.COLORJITTER_B = 0.4  # brightness
_C.INPUT.COLORJITTER_C = 0.4  # contrast
_C.INPUT.COLORJITTER_S = 0.4  # saturation
_C.INPUT.COLORJITTER_H = 0.1  # hue
_C.INPUT.RGS_P = 0.2  # random gray scale: probability
_C.INPUT.GB_P = 0.5  # Gaussian blur: probability
_C.INPUT.GB_K = 21  # and kernel size, odd

_C.DATASET = CN()
_C.DATASET.ROOT = ""  # directory that holds the data sets
_C.DATASET.NAME = ""
_C.DATASET.SOURCE_DOMAINS = ()  # names of the domains to train on, where a data set has several
_C.DATASET.TARGET_DOMAINS = ()  # and to test on
_C.DATASET.NUM_SHOTS = -1  # labelled images a class (few-shot learning); negative: all

_C.DATALOADER = CN()
_C.DATALOADER.NUM_WORKERS = 4
_C.DATALOADER.K_TRANSFORMS = 1  # transformed copies of each training image
_C.DATALOADER.RETURN_IMG0 = False  # add the image without augmentation as "img0"
_C.DATALOADER.TRAIN_X = CN()  # labelled
_C.DATALOADER.TRAIN_X.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_X.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_X.N_DOMAIN = 0  # domains in a batch (RandomDomainSampler); 0 or -1: all
_C.DATALOADER.TRAIN_X.N_INS = 16  # images a class in a batch (RandomClassSampler)
_C.DATALOADER.TRAIN_U = CN()  # unlabelled
_C.DATALOADER.TRAIN_U.SAME_AS_X = True  # use TRAIN_X's settings instead of the following
_C.DATALOADER.TRAIN_U.SAMPLER = "RandomSampler"
_C.DATALOADER.TRAIN_U.BATCH_SIZE = 32
_C.DATALOADER.TRAIN_U.N_DOMAIN = 0
_C.DATALOADER.TRAIN_U.N_INS = 16
_C.DATALOADER.TEST = CN()
_C.DATALOADER.TEST.SAMPLER = "SequentialSampler"
_C.DATALOADER.TEST.BATCH_SIZE = 32

_C.MODEL = CN()
_C.MODEL.INIT_WEIGHTS = ""  # checkpoint to start from
_C.MODEL.BACKBONE = CN()
_C.MODEL.BACKBONE.NAME = ""
_C.MODEL.BACKBONE.PRETRAINED = True
_C.MODEL.HEAD = CN()  # layers between backbone and classifier
_C.MODEL.HEAD.NAME = ""  # empty: none
_C.MODEL.HEAD.HIDDEN_LAYERS = ()  # widths, e.g. (512, 512)
_C.MODEL.HEAD.ACTIVATION = "relu"
_C.MODEL.HEAD.BN = True
_C.MODEL.HEAD.DROPOUT = 0.0

_C.OPTIM = CN()
_C.OPTIM.NAME = "adam"  # adam, amsgrad, sgd, rmsprop, radam, adamw
_C.OPTIM.LR = 0.0003
_C.OPTIM.WEIGHT_DECAY = 5e-4
_C.OPTIM.MOMENTUM = 0.9  # sgd, rmsprop
_C.OPTIM.SGD_DAMPNING = 0
_C.OPTIM.SGD_NESTEROV = False
_C.OPTIM.RMSPROP_ALPHA = 0.99
_C.OPTIM.ADAM_BETA1 = 0.9  # of adam, amsgrad, radam, adamw
_C.OPTIM.ADAM_BETA2 = 0.999
_C.OPTIM.STAGED_LR = False  # train the layers not in NEW_LAYERS at LR * BASE_LR_MULT
_C.OPTIM.NEW_LAYERS = ()  # names of direct children of the model
_C.OPTIM.BASE_LR_MULT = 0.1
_C.OPTIM.LR_SCHEDULER = "single_step"  # single_step, multi_step, cosine: see dassl/optim/lr_scheduler.py
_C.OPTIM.STEPSIZE = (-1,)  # in epochs; single_step: 0 or negative means MAX_EPOCH
_C.OPTIM.GAMMA = 0.1  # factor of a step
_C.OPTIM.MAX_EPOCH = 10
_C.OPTIM.WARMUP_EPOCH = -1  # 0 or negative: no warm-up
_C.OPTIM.WARMUP_TYPE = "linear"  # linear, constant
_C.OPTIM.WARMUP_CONS_LR = 1e-5  # constant: the learning rate
_C.OPTIM.WARMUP_MIN_LR = 1e-5  # linear: the learning rate of epoch 0
_C.OPTIM.WARMUP_RECOUNT = True  # the schedule after the warm-up counts epochs from 0, not from WARMUP_EPOCH

_C.TRAIN = CN()
_C.TRAIN.CHECKPOINT_FREQ = 0  # in epochs; 0 or negative: the last one only
_C.TRAIN.PRINT_FREQ = 10  # in batches
_C.TRAIN.COUNT_ITER = "train_x"  # loader that sets the length of an epoch: train_x, train_u, smaller_one

_C.TEST = CN()
_C.TEST.EVALUATOR = "Classification"
_C.TEST.PER_CLASS_RESULT = False  # print each class's accuracy and their mean
_C.TEST.COMPUTE_CMAT = False  # save the confusion matrix to OUTPUT_DIR/cmat.pt
_C.TEST.NO_TEST = False  # no test after training
_C.TEST.SPLIT = "test"  # of the final evaluation: test, val
_C.TEST.FINAL_MODEL = "last_step"  # last_step, best_val (evaluates every epoch on val)

_C.TRAINER = CN()
_C.TRAINER.NAME = ""

# Keys of Dassl's own data sets, which are not here. Nothing reads them, but the config.yaml of earlier runs has them
RETIRED = tuple(
    "VERSION DATASET.NUM_LABELED DATASET.VAL_PERCENT DATASET.STL10_FOLD DATASET.CIFAR_C_TYPE DATASET.CIFAR_C_LEVEL "
    "DATASET.ALL_AS_UNLABELED".split()
)

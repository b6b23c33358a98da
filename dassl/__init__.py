"""Dassl: the training engine with the public API of KaiyangZhou/Dassl.pytorch, rewritten for current PyTorch.

No module of this package imports clip, trainers or datasets, which build on it.

These names are available with Dassl's arguments and results, its config keys, and the methods and attributes of its
trainers:

    dassl.config          get_cfg_default clean_cfg
    dassl.data            DataManager DatasetWrapper
    dassl.data.datasets   DATASET_REGISTRY Datum DatasetBase build_dataset
    dassl.data.transforms build_transform INTERPOLATION_MODES
    dassl.engine          TRAINER_REGISTRY build_trainer TrainerBase SimpleTrainer TrainerX TrainerXU SimpleNet
    dassl.evaluation      EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification
    dassl.metrics         compute_accuracy compute_distance_matrix cosine_distance euclidean_squared_distance
    dassl.modeling        BACKBONE_REGISTRY build_backbone Backbone HEAD_REGISTRY build_head NETWORK_REGISTRY
                          build_network
    dassl.optim           build_optimizer build_lr_scheduler
    dassl.utils           AverageMeter MetricMeter Registry Logger setup_logger collect_env_info set_random_seed
                          mkdir_if_missing check_isfile read_json write_json read_image listdir_nohidden download_url
                          get_most_similar_str_to_a_from_b check_availability tolist_if_not count_num_param
                          save_checkpoint load_checkpoint resume_from_checkpoint load_pretrained_weights
                          open_all_layers open_specified_layers init_network_weights

Other code also imports names from these modules directly:

    dassl.config.defaults            _C
    dassl.data.data_manager          DataManager DatasetWrapper build_data_loader
    dassl.data.samplers              build_sampler RandomDomainSampler SeqDomainSampler RandomClassSampler
    dassl.data.datasets.base_dataset Datum DatasetBase
    dassl.data.datasets.build        DATASET_REGISTRY build_dataset
    dassl.data.transforms.transforms build_transform Random2DTranslation InstanceNormalization Cutout GaussianNoise
    dassl.engine.build               TRAINER_REGISTRY build_trainer
    dassl.engine.trainer             TrainerBase SimpleTrainer TrainerX TrainerXU SimpleNet SummaryWriter
    dassl.evaluation.build           EVALUATOR_REGISTRY build_evaluator
    dassl.evaluation.evaluator       EvaluatorBase Classification
    dassl.metrics.accuracy           compute_accuracy
    dassl.metrics.distance           compute_distance_matrix cosine_distance euclidean_squared_distance
    dassl.modeling.backbone          resnet18 resnet34 resnet50 resnet101 resnet152
    dassl.modeling.head              mlp
    dassl.modeling.ops               ReverseGrad mixup cross_entropy
    dassl.modeling.ops.utils         sharpen_prob reverse_index shuffle_index create_onehot sigmoid_rampup linear_rampup
                                     ema_model_update
    dassl.optim.optimizer            build_optimizer AVAI_OPTIMS
    dassl.optim.lr_scheduler         build_lr_scheduler ConstantWarmupScheduler LinearWarmupScheduler AVAI_SCHEDS
    dassl.optim.radam                RAdam
    dassl.utils.logger               Logger setup_logger
    dassl.utils.meters               AverageMeter MetricMeter
    dassl.utils.registry             Registry
    dassl.utils.tools                mkdir_if_missing set_random_seed read_image download_url collect_env_info
    dassl.utils.torchtools           load_checkpoint load_pretrained_weights count_num_param resume_from_checkpoint
                                     init_network_weights adjust_learning_rate set_bn_to_eval

Dassl's own trainers, data sets and special networks are missing. `dassl.absent` lists them. Importing one raises an
error with its file in Dassl. docs/coop.md has the table of all public names.
"""

__version__ = "1.4.0"
